package daemon

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/secret"
)

const (
	allow = api.EgressAction_EGRESS_ACTION_ALLOW
	deny  = api.EgressAction_EGRESS_ACTION_DENY
	ask   = api.EgressAction_EGRESS_ACTION_ASK
)

func rule(action api.EgressAction, host, origin string, ports ...uint32) *api.EgressRule {
	return &api.EgressRule{Action: action, Host: host, Origin: origin, Ports: ports}
}

func words(rules []*api.EgressRule) string {
	var out []string
	for _, r := range rules {
		out = append(out, strings.ToLower(strings.TrimPrefix(r.Action.String(), "EGRESS_ACTION_"))+" "+r.Host+" "+r.Origin)
	}
	return strings.Join(out, "; ")
}

// Changes add, take away and take back; what the user's policy file says stays.
func TestLiveChanges(t *testing.T) {
	granted := []*api.EgressRule{rule(allow, "a.example", "--allow"), rule(deny, "b.example", "policy.yaml:3"), rule(allow, "c.example", "policy.yaml:4", 443)}
	l := &live{}
	must := func(add, remove []*api.EgressRule) {
		t.Helper()
		if err := l.change(add, remove); err != nil {
			t.Fatal(err)
		}
	}
	must([]*api.EgressRule{rule(allow, "d.example", "x")}, []*api.EgressRule{rule(allow, "A.EXAMPLE", "", 443), rule(deny, "b.example", ""), rule(allow, "c.example", "")})
	if got, want := words(l.apply(granted)), "deny b.example policy.yaml:3; allow c.example policy.yaml:4; allow d.example x"; got != want {
		t.Errorf("%s", got)
	}
	must([]*api.EgressRule{rule(allow, "a.example", "y"), rule(allow, "d.example", "x")}, nil) // the same twice is once
	if got, want := words(l.apply(granted)), "allow a.example --allow; deny b.example policy.yaml:3; allow c.example policy.yaml:4; allow d.example x; allow a.example y"; got != want {
		t.Errorf("%s", got)
	}
	// Another port, or another action, is another rule.
	must(nil, []*api.EgressRule{rule(allow, "d.example", "", 80), rule(ask, "d.example", "")})
	if !strings.Contains(words(l.apply(granted)), "allow d.example") {
		t.Error("a rule went that nobody took away")
	}
	for range maxLive {
		l.added = append(l.added, rule(allow, "x.example", "x"))
	}
	if err := l.change([]*api.EgressRule{rule(allow, "more.example", "")}, nil); err == nil {
		t.Error("rules without end were kept")
	}
}

// What is saved is read again; damage is an error with the file's name, and is
// never taken for "no rules": a deny rule may be among them.
func TestLiveFile(t *testing.T) {
	dir := t.TempDir()
	if l, err := loadLive(dir); err != nil || len(l.added)+len(l.removed) != 0 {
		t.Fatal(l, err)
	}
	l := &live{added: []*api.EgressRule{rule(deny, "*.b.example", "carrel deny box"), rule(allow, "a.example", "answer", 443)}, removed: []*api.EgressRule{rule(allow, "c.example", "")}}
	if err := l.save(dir); err != nil {
		t.Fatal(err)
	}
	again, err := loadLive(dir)
	if err != nil || words(again.added) != words(l.added) || words(again.removed) != words(l.removed) {
		t.Fatal(again, err)
	}
	path := filepath.Join(dir, fileEgress)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "{", string(whole[:len(whole)/2]), `{"version":9}`, strings.Replace(string(whole), "a.example", "a b", 1), strings.Replace(string(whole), `"host"`, `"hosts"`, 1)} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadLive(dir); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
}

// newDaemon is a daemon with folders and secrets of its own that serves nobody.
func newDaemon(t *testing.T) *Daemon {
	t.Helper()
	p, err := place.At(filepath.Join(t.TempDir(), "home"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{p.State, p.Config} {
		if err := place.MakePrivate(dir); err != nil {
			t.Fatal(err)
		}
	}
	d := &Daemon{opts: Options{Place: p, Rules: policy.Default("/nonexistent", p.Home)}, log: slog.New(slog.NewTextHandler(io.Discard, nil)), guests: filepath.Join(p.State, "guests"), table: map[string]*entry{}}
	if d.secrets, err = secret.Open(secret.Options{Dir: p.Config, Kind: "file"}); err != nil {
		t.Fatal(err)
	}
	return d
}

// A secret that was removed takes its rules with it and leaves the others; a
// start without it is refused.
func TestRemovedSecret(t *testing.T) {
	d := newDaemon(t)
	spec := &api.GuestSpec{Name: "box", Egress: &api.EgressSpec{Secrets: []string{"anthropic"}, Rules: []*api.EgressRule{{Action: allow, Host: "a.example"}}}}
	if _, err := d.decide(spec); err == nil {
		t.Fatal("granted a secret that is not there")
	}
	if _, err := d.secrets.Set(context.Background(), "anthropic", nil, []byte("a value that is long enough")); err != nil {
		t.Fatal(err)
	}
	x, err := d.decide(spec)
	if err != nil || !strings.Contains(words(x.grant.EgressRules()), "api.anthropic.com secret anthropic") {
		t.Fatal(err)
	}
	conf, err := d.configuration(context.Background(), x, d.guests, false)
	if err != nil || len(conf.Secrets) != 1 || len(placeholders(conf.Secrets)) != 1 || strings.Contains(placeholders(conf.Secrets)[0], "long enough") {
		t.Fatalf("%v %v", err, placeholders(conf.GetSecrets()))
	}
	if err := d.secrets.Remove(context.Background(), "anthropic"); err != nil {
		t.Fatal(err)
	}
	x, err = d.decideAgain(spec)
	if err != nil || words(x.grant.EgressRules()) != "allow a.example the request" || len(x.requests) != 1 {
		t.Fatalf("%v %v", x, err)
	}
	if len(spec.Egress.Secrets) != 1 {
		t.Error("the guest's own request was changed")
	}
}

// E24: no policy file is nothing reachable; a bad one is an error with its line.
func TestPolicyFileIsRead(t *testing.T) {
	d := newDaemon(t)
	file := filepath.Join(d.opts.Place.Config, policyFile)
	x, err := d.decide(&api.GuestSpec{Name: "box"})
	if err != nil || len(x.grant.EgressRules()) != 0 {
		t.Fatal(x, err)
	}
	for content, want := range map[string]string{"version: 1\nnonsense: 1\n": "policy.yaml:2", "version: 1\negress: {rules: [{allow: 'a b'}]}\n": "policy.yaml:2", "{": "policy.yaml:1"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.decide(&api.GuestSpec{Name: "box"}); err == nil || !policyBroken(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", content, err)
		}
		if err := d.addToPolicy(rule(allow, "a.example", "")); err == nil {
			t.Errorf("%q was added to", content)
		}
	}
	os.Remove(file)
	if err := d.addToPolicy(rule(allow, "a.example", "answer", 443)); err != nil {
		t.Fatal(err)
	}
	if x, err = d.decide(&api.GuestSpec{Name: "box"}); err != nil || words(x.grant.EgressRules()) != "allow a.example policy.yaml:4" {
		t.Fatalf("%v %s", err, words(x.grant.EgressRules()))
	}
}

func TestUpstream(t *testing.T) {
	for _, n := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"} {
		t.Setenv(n, "")
	}
	t.Setenv("https_proxy", "http://me:secret@proxy.example:3128")
	u := upstream(nil)
	if u.HttpsProxy != "http://me:secret@proxy.example:3128" || u.HttpProxy != "" {
		t.Errorf("%v", u)
	}
	if u := upstream(&api.EdgeUpstream{HttpProxy: "http://other:1"}); u.HttpsProxy != "" { // the file is the whole word
		t.Errorf("%v", u)
	}
	d := newDaemon(t)
	x, err := d.decide(&api.GuestSpec{Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(x.notes(nil), "\n")
	if !strings.Contains(notes, "the proxy http://proxy.example:3128:") || strings.Contains(notes, "secret") {
		t.Errorf("%s", notes)
	}
	for in, want := range map[string]string{"proxy:3128": "http://proxy:3128", "u:p@h:1": "http://h:1", "https://u:p@x@h:1": "https://h:1"} {
		if got := withoutPassword(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

// A rule that an answer makes is exactly what was asked.
func TestAnswerRule(t *testing.T) {
	r, err := answerRule(&api.EgressEvent{Host: "a.example", Port: 8443, Method: "GET", Path: "/x"})
	if err != nil || r.Origin != policy.Answered || r.Host != "a.example" || len(r.Ports) != 1 || r.Ports[0] != 8443 || r.Methods[0] != "GET" || r.Paths[0] != "/x" {
		t.Errorf("%v %v", r, err)
	}
	for _, q := range []*api.EgressEvent{{Host: "a b", Port: 443}, {Host: "a.example"}, {Host: "a.example", Port: 1 << 20}, {Host: "*", Port: 443}} {
		if r, err := answerRule(q); err == nil {
			t.Errorf("%v became %v", q, r)
		}
	}
}

func TestSameSpec(t *testing.T) {
	is := &api.GuestSpec{Name: "box", Cpus: 2, Boundary: "vm", Egress: &api.EgressSpec{Rules: []*api.EgressRule{rule(allow, "a.example", "--allow")}}}
	for _, ok := range []*api.GuestSpec{{Name: "box"}, {Name: "box", Cpus: 2}, {Name: "box", Egress: &api.EgressSpec{Rules: []*api.EgressRule{rule(allow, "a.example", "")}}}, {Name: "box", Boundary: "vm"}} {
		if !sameSpec(ok, is) {
			t.Errorf("%v is another", ok)
		}
	}
	// What a request leaves open of a share is what the policy has filled in.
	is.Shares = []*api.Share{{Path: "/a", GuestPath: "/a", Mode: api.ShareMode_SHARE_MODE_REVIEW}}
	for _, ok := range []*api.Share{{Path: "/a"}, {Path: "/a", GuestPath: "/a"}, {Path: "/a", Mode: api.ShareMode_SHARE_MODE_REVIEW}} {
		if filepath.Separator == '/' && !sameSpec(&api.GuestSpec{Name: "box", Shares: []*api.Share{ok}}, is) {
			t.Errorf("%v is another", ok)
		}
	}
	for _, no := range []*api.Share{nil, {Path: "/b"}, {Path: "/a", GuestPath: "/b"}, {Path: "/a", Mode: api.ShareMode_SHARE_MODE_RW}, {Path: "/a", Plain: true}} {
		if sameSpec(&api.GuestSpec{Name: "box", Shares: []*api.Share{no}}, is) {
			t.Errorf("%v is the same", no)
		}
	}
	for _, no := range []*api.GuestSpec{{Name: "box", Cpus: 3}, {Name: "box", Egress: &api.EgressSpec{Presets: []string{"packages"}}}, {Name: "box", Boundary: "process"}} {
		if sameSpec(no, is) {
			t.Errorf("%v is the same", no)
		}
	}
}
