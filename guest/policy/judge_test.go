package policy

import (
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

func mustEgress(t *testing.T, rules ...*api.EgressRule) *Egress {
	t.Helper()
	e, err := NewEgress(rules)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func to(t *testing.T, s string) Destination {
	t.Helper()
	d, err := ParseDestination(s, 443)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// r makes a rule from a line: "allow example.org:443,8443 GET,HEAD /a/** wide".
func r(line string) *api.EgressRule {
	f := strings.Fields(line)
	out := &api.EgressRule{Action: map[string]api.EgressAction{"allow": allow, "deny": deny, "ask": ask}[f[0]], Host: f[1], Origin: "test"}
	if i := strings.LastIndex(f[1], "="); i > 0 {
		out.Host = f[1][:i]
		for _, p := range strings.Split(f[1][i+1:], ",") {
			n, _ := parsePort(p)
			out.Ports = append(out.Ports, uint32(n))
		}
	}
	for _, w := range f[2:] {
		switch {
		case w == "wide":
			out.Wide = true
		case w == "private":
			out.Private = true
		case w == "inspect":
			out.Inspect = true
		case w == "answered":
			out.Origin = Answered
		case strings.HasPrefix(w, "/"):
			out.Paths = append(out.Paths, w)
		case strings.HasPrefix(w, "secret:"):
			out.Secret = w[len("secret:"):]
		case strings.HasPrefix(w, "up:"):
			out.MaxUpBytes = int64(len(w))
		default:
			out.Methods = strings.Split(w, ",")
		}
	}
	return out
}

// E01, at the level of rules: none, and the zero value, deny.
func TestE01NoRulesDeny(t *testing.T) {
	d := to(t, "example.org")
	var none *Egress
	for name, e := range map[string]*Egress{"nil": none, "zero": {}, "no rules": mustEgress(t), "a rule without an action": mustEgress(t, &api.EgressRule{Host: "example.org"})} {
		if v := e.Connect(d); v.Action != deny || v.Reason == "" {
			t.Errorf("%s: %+v", name, v)
		}
		if v := e.Request(d, Request{"GET", "/"}); v.Action != deny || v.Reason == "" {
			t.Errorf("%s: request: %+v", name, v)
		}
		if err := e.Address(d, addresses("93.184.215.14")[0], nil); err == nil {
			t.Errorf("%s: an address was allowed", name)
		}
	}
	e := mustEgress(t, r("allow example.org"))
	if v := e.Connect(d); v.Action != allow || v.Inspect || v.Reason == "" {
		t.Fatalf("control: %+v", v)
	}
	for _, d := range []Destination{{}, {Host: d.Host}, {Port: 443}} {
		if v := e.Connect(d); v.Action != deny || v.Reason == "" {
			t.Errorf("%v: %+v", d, v)
		}
	}
}

// E06: patterns that cover what belongs to others, and malformed rules.
func TestE06Rules(t *testing.T) {
	good := []string{"allow example.org", "allow *.example.org", "allow *.a.github.io", "allow * wide", "allow *.com wide", "allow *.github.io wide",
		"deny *", "deny *.com", "deny *=22", "allow 192.0.2.7", "allow 2001:db8::1", "allow 127.0.0.1=80", "ask * wide", "allow host.carrel.internal=8080", "deny host.carrel.internal",
		"allow api.example.org GET,M-SEARCH /v1/* /a/** secret:x", "allow example.org up:1"}
	for _, line := range good {
		if _, err := NewEgress([]*api.EgressRule{r(line)}); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	for line, why := range map[string]string{
		"allow *":                              "wide",
		"ask *":                                "wide",
		"allow *.com":                          "wide",
		"allow *.co.uk":                        "wide",
		"allow *.github.io":                    "wide",
		"allow *.amazonaws.com":                "wide",
		"allow *.core.windows.net":             "wide",
		"allow *.s3.amazonaws.com":             "wide",
		"allow *.ck":                           "wide",
		"allow *.compute.amazonaws.com":        "wide",
		"allow *.corp":                         "wide",
		"allow a*b.com":                        "stands alone",
		"allow **.com":                         "stands alone",
		"allow *.*.com":                        "stands alone",
		"allow *com":                           "stands alone",
		"allow a.*.example.org":                "stands alone",
		"allow https://x":                      "without scheme",
		"allow x.example/path":                 "without scheme",
		"allow example.org:443":                "ports: [443]",
		"allow [::1]:443":                      "ports: [443]",
		"allow *.1.2.3.4":                      "no names below",
		"allow *.":                             "empty",
		"allow example.org get":                "upper case",
		"allow example.org GET /a/../b":        `".."`,
		"allow example.org GET /a//b":          "two slashes",
		"allow example.org GET /a***":          "in a row",
		"allow example.org GET /a?b":           "part of a path",
		"allow *.example.org secret:x":         "one host",
		"allow 192.0.2.7 secret:x":             "one host",
		"allow example.org secret:X!":          "not possible",
		"deny example.org secret:x":            "it denies",
		"deny example.org wide":                "it denies",
		"allow 10.0.0.1 private":               "is an address",
		"allow 0.0.0.0":                        "not the address",
		"allow 224.0.0.1":                      "one machine",
		"allow 255.255.255.255":                "one machine",
		"allow ff02::1":                        "one machine",
		"allow localhost":                      HostName,
		"allow a.localhost":                    HostName,
		"allow host.carrel.internal":           "port",
		"allow *.host.carrel.internal=80 wide": "nothing is",
	} {
		_, err := NewEgress([]*api.EgressRule{r(line)})
		if err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "of test") {
			t.Errorf("%s: %v does not say %q", line, err, why)
		}
	}
	for name, x := range map[string]*api.EgressRule{
		"nil": nil, "no host": {Action: allow}, "action": {Action: 9, Host: "example.org"}, "port 0": {Action: allow, Host: "example.org", Ports: []uint32{0}},
		"port": {Action: allow, Host: "example.org", Ports: []uint32{1 << 16}}, "ports": {Action: allow, Host: "example.org", Ports: make([]uint32, 65)},
		"rate": {Action: allow, Host: "example.org", Rate: -1}, "max": {Action: allow, Host: "example.org", MaxUpBytes: -1},
	} {
		if _, err := NewEgress([]*api.EgressRule{x}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := NewEgress(make([]*api.EgressRule, maxRules+1)); err == nil {
		t.Error("too many rules: no error")
	}
}

// E14 and the order of rules. Each case says what a list of rules does to
// destinations; the allowed ones are the controls of the others.
func TestConnect(t *testing.T) {
	for _, c := range []struct {
		rules string
		want  string // "host:port=verdict"; "+i" for inspected
	}{
		{"allow example.org", "example.org=allow example.org:80=deny example.org:22=deny example.org:6379=deny example.org:2375=deny a.example.org=deny xexample.org=deny example.org.evil=deny"},
		{"allow example.org=80,443", "example.org:80=allow example.org:443=allow example.org:8080=deny"},
		{"allow *.example.org", "a.example.org=allow a.b.example.org=allow example.org=deny xexample.org=deny .=skip"},
		{"allow * wide", "example.org=allow 93.184.215.14=deny [2606:4700::1]=deny host.carrel.internal=deny example.org:80=deny"},
		{"allow *=1,443 wide; deny *.evil.org", "example.org=allow a.evil.org=deny evil.org=allow a.evil.org:1=deny"},
		{"allow *.carrel.internal", "a.carrel.internal=allow host.carrel.internal=deny"},
		{"allow host.carrel.internal=8080", "host.carrel.internal:8080=allow host.carrel.internal:8081=deny host.carrel.internal=deny"},
		{"allow host.carrel.internal=8080; deny *", "host.carrel.internal:8080=deny"},
		{"allow host.carrel.internal=8080; deny *.internal", "host.carrel.internal:8080=deny"},
		{"allow 192.0.2.7=443,80", "192.0.2.7=allow [::ffff:192.0.2.7]:80=allow 192.0.2.8=deny example.org=deny"},
		{"allow 192.0.2.7; deny *", "192.0.2.7=deny"},
		{"allow example.org=22,443; deny example.org", "example.org=deny example.org:22=deny"},
		{"allow example.org=22,443; deny example.org=22", "example.org=allow example.org:22=deny"},
		{"allow example.org; ask example.org", "example.org=ask"},
		{"ask * wide; allow example.org", "example.org=allow other.org=ask"},
		{"ask *.example.org; allow *.a.example.org", "b.a.example.org=allow a.example.org=ask"},
		{"allow * wide; ask example.org", "example.org=ask other.org=allow"},
		{"ask example.org; allow example.org answered", "example.org=allow"},
		{"ask example.org; deny example.org answered", "example.org=deny"},
		{"deny *.org; allow example.org answered", "example.org=deny"},
		{"allow example.org GET", "example.org=allow+i example.org:80=deny"},
		{"allow example.org /x", "example.org=allow+i"},
		{"allow example.org secret:x", "example.org=allow+i"},
		{"allow example.org up:1", "example.org=allow+i"},
		{"allow example.org inspect", "example.org=allow+i"},
		{"allow example.org; deny example.org POST", "example.org=allow+i"},
		{"allow example.org=443,80; deny example.org=80 POST", "example.org=allow example.org:80=allow+i"},
		{"deny example.org POST", "example.org=deny"},
		{"allow example.org; ask example.org POST", "example.org=allow+i"},
		{"ask example.org POST", "example.org=allow+i"},
		{"ask example.org; allow example.org GET", "example.org=allow+i"},
		{"ask example.org GET; ask example.org; allow example.org", "example.org=ask+i"},
		{"allow *.example.org; allow a.example.org secret:x", "a.example.org=allow+i b.example.org=allow"},
	} {
		e := mustEgress(t, lines(c.rules)...)
		for _, w := range strings.Fields(c.want) {
			dest, want, _ := strings.Cut(w, "=")
			if want == "skip" {
				continue
			}
			v := e.Connect(to(t, dest))
			got := map[api.EgressAction]string{allow: "allow", deny: "deny", ask: "ask"}[v.Action]
			if v.Inspect {
				got += "+i"
			}
			if got != want || v.Reason == "" || strings.Contains(v.Reason, "\n") {
				t.Errorf("%s: %s = %s, want %s (%s)", c.rules, dest, got, want, v.Reason)
			}
			if v.Action != deny && v.Rule == nil {
				t.Errorf("%s: %s: no rule", c.rules, dest)
			}
		}
	}
}

func lines(s string) (out []*api.EgressRule) {
	for _, l := range strings.Split(s, ";") {
		out = append(out, r(strings.TrimSpace(l)))
	}
	return out
}

func TestRequest(t *testing.T) {
	for _, c := range []struct {
		rules string
		want  string // "METHOD path=verdict[+secret]", separated by ";"
	}{
		{"allow h.example", "GET /=allow;POST /x//y/../z=allow;GET /@a%2fb=allow;GET /\x00=deny;GET /a b=deny;GET /a%00=deny;GET /a%0d%0aX=deny;GET =deny;GET *=deny;GET /a\\b=deny;GET /a%5cb=deny;GET /%zz=deny;GET /\xff=deny;get /=deny;G@T /=deny; /=deny"},
		{"allow h.example GET,HEAD", "GET /any=allow;HEAD /=allow;POST /=deny;get /=deny;OPTIONS /=deny"},
		{"allow h.example POST /v1/messages", "POST /v1/messages=allow;POST /v1/messages/=deny;GET /v1/messages=deny;POST /v1/files=deny;POST /V1/messages=deny;POST /%76%31/messages=allow;POST /v1/m%65ssages=allow;POST /v1%2Fmessages=deny;POST /v1/messages;x=deny;POST /v1/files/../messages=deny;POST /v1/./messages=deny;POST //v1/messages=deny;POST /v1/messages%2f..%2ffiles=deny;POST /v1/messages%252f=deny"},
		{"allow h.example /a/*", "GET /a/b=allow;GET /a/=allow;GET /a/b/c=deny;GET /a=deny;GET /a/b%2Fc=deny;GET /a/b;c=allow;GET /a/*=allow"},
		{"allow h.example /a/**", "GET /a/b/c=allow;GET /a/=allow;GET /a=deny;GET /a/b%2Fc=allow;GET /a/%2e%2e/b=deny;GET /a/..;/b=deny;GET /a/..%3b/b=deny;GET /a/..%2fb=deny;GET /a/..%252fb=deny;GET /a/%25zz/%252e%252e/b=deny;GET /a/100%25/b=allow;GET /a/%c0%ae%c0%ae/b=deny;GET /a/%c3%a9=allow"},
		{"allow h.example /r/*.git/info/refs", "GET /r/x.git/info/refs=allow;GET /r/x/info/refs=deny;GET /r/x/y.git/info/refs=deny"},
		{"allow h.example; deny h.example /v1/files", "GET /v1/files=deny;GET /v1/other=allow;GET /v1%2ffiles=deny;GET /v1/files;a=b=deny;GET /v1/files%3Ba=deny;GET /v1/%66iles=deny;GET /v1//files=deny;GET /v1/x/../files=deny;GET /V1/Files=deny"},
		{"allow h.example; ask h.example /Evil/**", "GET /evil/x=ask;GET /EVIL/x=ask;GET /good/x=allow"},
		{"allow h.example; deny h.example POST,PUT", "GET /=allow;POST /=deny;PUT /=deny"},
		{"allow h.example; deny *.example POST /up/**", "POST /up/x=deny;POST /=allow;GET /up/x=allow"},
		{"allow h.example; ask h.example POST", "GET /=allow;POST /=ask"},
		{"ask h.example POST", "POST /=ask;GET /=deny"},
		{"ask h.example", "GET /=allow"}, // asked when it was connected
		{"ask h.example; ask h.example POST", "GET /=allow;POST /=ask"},
		{"ask * wide; allow h.example GET", "GET /=allow;POST /=ask"},
		{"ask h.example; allow h.example GET", "GET /=allow;POST /=ask"},
		{"ask h.example POST; allow h.example POST", "POST /=ask"},
		{"ask h.example POST; allow h.example POST /x", "POST /x=allow;POST /y=ask"},
		{"ask h.example POST /x/**; allow h.example POST", "POST /x/y=ask;POST /y=allow"},
		{"ask h.example POST; allow h.example POST /x answered", "POST /x=allow;POST /y=ask"},
		{"allow h.example; allow h.example POST /v1 secret:k", "POST /v1=allow+k;GET /v1=allow;POST /v2=allow"},
		{"allow h.example secret:a; allow h.example GET secret:b", "POST /=allow+a;GET /=deny"},
		{"allow h.example secret:a; allow h.example GET secret:a", "GET /=allow+a"},
		{"allow h.example GET secret:a; ask h.example GET", "GET /=ask+a"},
	} {
		e := mustEgress(t, lines(c.rules)...)
		for _, w := range splitCases(c.want) {
			i := strings.LastIndex(w, "=")
			method, path, _ := strings.Cut(w[:i], " ")
			v := e.Request(to(t, "h.example"), Request{Method: method, Path: path})
			got := map[api.EgressAction]string{allow: "allow", deny: "deny", ask: "ask"}[v.Action]
			if v.Secret != "" && v.Action != deny {
				got += "+" + v.Secret
			}
			if got != w[i+1:] || v.Reason == "" || strings.ContainsAny(v.Reason, "\r\n\x00") || !utf8.ValidString(v.Reason) {
				t.Errorf("%s: %q = %s, want %s (%s)", c.rules, w[:i], got, w[i+1:], v.Reason)
			}
		}
	}
}

// splitCases cuts at each ";" that comes after a verdict.
func splitCases(s string) (out []string) {
	start := 0
	for i := 0; i < len(s); i++ {
		if s[i] != ';' {
			continue
		}
		piece := s[start:i]
		verdict := piece[strings.LastIndex(piece, "=")+1:]
		if v, _, _ := strings.Cut(verdict, "+"); v == "allow" || v == "deny" || v == "ask" {
			out = append(out, piece)
			start = i + 1
		}
	}
	return append(out, s[start:])
}

// The least limit holds; a destination that a secret is for is marked even for
// the requests without it.
func TestLimits(t *testing.T) {
	rated := r("allow *.example GET wide")
	rated.Rate = 1000
	a, b := r("allow h.example"), r("allow h.example GET /x")
	a.MaxUpBytes, b.MaxUpBytes = 100, 50
	e := mustEgress(t, rated, a, b, r("allow h.example POST /s secret:k"))
	d := to(t, "h.example")
	if v := e.Connect(d); v.MaxUp != 100 || len(v.Rated) != 0 || !v.Bound {
		t.Errorf("connect: %+v", v)
	}
	if v := e.Request(d, Request{"GET", "/x"}); v.MaxUp != 50 || len(v.Rated) != 1 || !v.Bound || v.Secret != "" {
		t.Errorf("request: %+v", v)
	}
	if v := e.Request(d, Request{"PUT", "/x"}); v.MaxUp != 100 || len(v.Rated) != 0 {
		t.Errorf("request: %+v", v)
	}
	if v := mustEgress(t, r("allow h.example")).Connect(d); v.Bound || v.MaxUp != 0 {
		t.Errorf("control: %+v", v)
	}
}

func TestAnswer(t *testing.T) {
	d := to(t, "[2001:db8::1]:8443")
	for _, req := range []*Request{nil, {"POST", "/a/%62"}} {
		for _, yes := range []bool{true, false} {
			a := Answer(d, req, yes)
			e := mustEgress(t, r("ask 2001:db8::1=8443"), r("ask 2001:db8::1=8443 POST"), a)
			v := e.Request(d, Request{"POST", "/a/b"})
			if want := map[bool]api.EgressAction{true: allow, false: deny}[yes]; v.Action != want {
				t.Errorf("%v %v: %+v", req, yes, v)
			}
			if req != nil && e.Request(d, Request{"POST", "/a/c"}).Action != ask {
				t.Errorf("an answer about one request answers another too")
			}
		}
	}
}

// An answer about a request is about no other one, whatever its path has in it.
func TestAnswerIsNarrow(t *testing.T) {
	d := to(t, "h.example")
	for _, path := range []string{"/a/**", "/*", "/a%2A%2a", "/@s%2fname", "/a;b", "/a%3bb", "/x/y"} {
		req := Request{"POST", path}
		e := mustEgress(t, r("ask h.example POST"), Answer(d, &req, true))
		if v := e.Request(d, req); v.Action != allow {
			t.Errorf("%s: %+v", path, v)
		}
		for _, other := range []string{"/a/b/c", "/b", "/aXX", "/x/z", "/x/y/z"} {
			if v := e.Request(d, Request{"POST", other}); v.Action != ask {
				t.Errorf("the answer about %s holds for %s: %+v", path, other, v)
			}
		}
	}
	for _, path := range []string{"/a/../b", "//x", "/" + strings.Repeat("a", maxPattern), "/%zz", "/a%252fb"} {
		if CheckRule(Answer(d, &Request{"POST", path}, true)) == nil {
			t.Errorf("%.40s made a rule", path)
		}
	}
}

// What a repository would like stops no question of the user's.
func TestRequestedStopsNoQuestion(t *testing.T) {
	wish := r("allow a.h.example GET /x")
	wish.Origin = RequestName + ":5"
	e := mustEgress(t, r("ask *.h.example"), wish)
	if v := e.Connect(to(t, "a.h.example")); v.Action != ask {
		t.Errorf("%+v", v)
	}
	wish.Origin = "policy.yaml:5"
	e = mustEgress(t, r("ask *.h.example"), wish)
	if v := e.Connect(to(t, "a.h.example")); v.Action != allow {
		t.Errorf("control: %+v", v)
	}
}

// A compiled set does not change with the messages it came from.
func TestRulesAreCopied(t *testing.T) {
	src := r("allow example.org GET")
	e := mustEgress(t, src)
	proto.Reset(src)
	src.Methods = append(src.Methods, "POST")
	if v := e.Request(to(t, "example.org"), Request{"GET", "/"}); v.Action != allow {
		t.Error(v)
	}
}

// FuzzRequestPath: whatever the path, a rule about paths never lets through
// what the path, read in the usual ways, is not.
func FuzzRequestPath(f *testing.F) {
	for _, s := range []string{"/a/b", "/a/../b", "/a%2f..%2fb", "/a;x/b", "/%61/b", "/a//b", "/a/%252e%252e/b", "/a/..;/b", "/a\\b", "/a/%c0%ae/b", "/a/%25zz/%252e%252e/b", "/a/SECRET/x", "/a/.%2e/b", "/a/%2e%2E", "/a/..%3B/b"} {
		f.Add(s)
	}
	e, err := NewEgress([]*api.EgressRule{r("allow h.example /a/**"), r("deny h.example /a/secret/**"), r("deny h.example /a/secret")})
	if err != nil {
		f.Fatal(err)
	}
	h, _ := ParseHost("h.example")
	f.Fuzz(func(t *testing.T, p string) {
		v := e.Request(Destination{h, 443}, Request{"GET", p})
		if v.Reason == "" || strings.ContainsFunc(v.Reason, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			t.Fatalf("reason %q", v.Reason)
		}
		if v.Action != allow {
			return
		}
		for _, read := range readings(p) {
			if !strings.HasPrefix(read, "/a/") || read == "/a/secret" || strings.HasPrefix(read, "/a/secret/") {
				t.Fatalf("%q is allowed, and may be read as %q", p, read)
			}
		}
	})
}
