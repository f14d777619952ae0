package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Each key of srt's schema has a fate, and the settings with all of them become
// a policy.
func TestImportSRTKeys(t *testing.T) {
	content := read(t, "srt/all.json")
	out, report, err := ImportSRT(content)
	if err != nil {
		t.Fatal(err)
	}
	var top any
	if err := json.Unmarshal(content, &top); err != nil {
		t.Fatal(err)
	}
	in := map[string]bool{}
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, sub := range v {
				key := strings.TrimPrefix(at+"."+k, ".")
				if _, known := srtKeys[key]; !known { // the keys of a record: deniedDomainReasons
					continue
				}
				in[key] = true
				walk(key, sub)
			}
		case []any:
			for _, sub := range v {
				walk(at, sub)
			}
		}
	}
	walk("", top)
	for key, known := range srtKeys {
		switch {
		case known.refuse != "", key == "network.httpProxyPort", key == "network.socksProxyPort":
			if in[key] {
				t.Errorf("%s cannot be among the others", key)
			}
		case !in[key]:
			t.Errorf("testdata/srt/all.json lacks %s", key)
		case key == "network", key == "filesystem", key == "credentials", key == "network.parentProxy", key == "network.allowAllDomains":
		case !slices.ContainsFunc(report, func(l ImportLine) bool { return l.Key == key && l.Mapping != "" && l.Text != "" }):
			t.Errorf("%s is not in the report", key)
		}
	}
	for _, l := range report {
		if strings.Contains(l.Text, "hunter2") || strings.ContainsAny(l.Text, "\n\x00") {
			t.Errorf("%+v", l)
		}
	}
	f, problems := ParseFile(out, "policy.yaml")
	if f == nil {
		t.Fatalf("%s\n%s", Problems("policy.yaml", problems), out)
	}
	if f.Upstream.HttpProxy != "http://u:hunter2@proxy.example.com:3128" || f.Upstream.HttpsProxy != "http://proxy.example.com:3128" || f.Upstream.NoProxy != "localhost,10.0.0.0/8" {
		t.Errorf("upstream %v", f.Upstream)
	}
	e := mustEgress(t, f.Rules...)
	for dest, want := range map[string]bool{
		"example.com": true, "example.com:80": true, "example.com:8080": false, "a.npmjs.org": true, "a.evil.npmjs.org": false, "npmjs.org": false, "api.example.com:8443": true, "api.example.com": false,
		"[2606:4700::1111]:443": true, "[2606:4700::1111]:80": false, "1.1.1.1": true, "x.github.io": false, "deny.example.com": false, "example.com:22": false, "mitm.example.com": false, "other.org": false, "host.carrel.internal:80": false, "8.8.8.1": false,
	} {
		if v := e.Connect(to(t, dest)); (v.Action == allow) != want {
			t.Errorf("%s: %+v", dest, v)
		}
	}
	for _, a := range []string{"93.184.215.14", "8.8.8.3", "10.1.1.1", "127.0.0.1"} {
		if e.Address(to(t, "example.com"), addresses(a)[0], nil) == nil {
			t.Errorf("example.com may lead to %s", a)
		}
	}
	if err := e.Address(to(t, "example.com"), addresses("8.8.8.4")[0], nil); err != nil {
		t.Errorf("control: %v", err)
	}
}

// Wherever srt denies, Carrel denies: its matcher, written again here from its
// description, against what the import makes of the same lists.
func TestImportSRTDeniesAsMuch(t *testing.T) {
	entries := []string{"example.com", "*.example.com", "a.example.com:443", "*.a.example.com:8443", "example.org:22", "*.co.uk", "1.1.1.1", "1.1.1.1:80", "[2606:4700::1]", "[2606:4700::1]:443", "localhost", "localhost:80", "EXAMPLE.net"}
	dests := []string{}
	for _, h := range []string{"example.com", "a.example.com", "b.a.example.com", "example.org", "x.co.uk", "1.1.1.1", "1.1.1.2", "[2606:4700::1]", "localhost", "example.net", "xexample.com", "host.carrel.internal"} {
		for _, p := range []int{22, 80, 443, 8443} {
			dests = append(dests, fmt.Sprintf("%s:%d", h, p))
		}
	}
	srt := func(pattern string, d Destination) bool {
		host, port, err := splitSRT(pattern, true)
		if err != nil {
			t.Fatal(err)
		}
		host = strings.ToLower(host)
		name := d.Host.String()
		_, literal := d.Host.Addr()
		switch {
		case port != 0 && port != d.Port:
			return false
		case host == "*":
			return true
		case strings.HasPrefix(host, "*."):
			return !literal && strings.HasSuffix(name, host[1:])
		}
		return name == host
	}
	both := 0
	for i, a := range entries {
		for _, denied := range append([]string{"", "*", "*:22", "*:443"}, entries...) {
			allowed := []string{a, entries[(i+3)%len(entries)]}
			settings := map[string]any{"network": map[string]any{"allowedDomains": allowed, "deniedDomains": []string{}}, "filesystem": map[string]any{}}
			if denied != "" {
				settings["network"].(map[string]any)["deniedDomains"] = []string{denied}
			}
			content, _ := json.Marshal(settings)
			out, _, err := ImportSRT(content)
			if err != nil {
				t.Fatalf("%s: %v", content, err)
			}
			f, problems := ParseFile(out, "policy.yaml")
			if f == nil {
				t.Fatal(problems)
			}
			e := mustEgress(t, f.Rules...)
			for _, s := range dests {
				d := to(t, s)
				theirs := slices.ContainsFunc(allowed, func(p string) bool { return srt(p, d) }) && (denied == "" || !srt(denied, d))
				ours := e.Connect(d).Action != deny
				if ours && !theirs {
					t.Errorf("%s: srt denies %s, Carrel does not", content, s)
				}
				if ours && theirs {
					both++
				}
			}
		}
	}
	if both < 100 {
		t.Errorf("control: only %d destinations are allowed by both", both)
	}
}

func TestImportSRTRefuses(t *testing.T) {
	network := func(s string) string { return `{"network":{` + s + `},"filesystem":{}}` }
	for in, want := range map[string]string{
		"": "JSON", "[]": "JSON", "null": "JSON", "{": "JSON", `{"network":[]}`: "not an object", `{"network":null}`: "not an object",
		network(`"allowedDomains":["*"]`):                   "not a domain pattern",
		network(`"allowedDomains":["*.com"]`):               "not a domain pattern",
		network(`"allowedDomains":["https://x.org"]`):       "not a domain pattern",
		network(`"allowedDomains":["x.org:0"]`):             "not a domain pattern",
		network(`"allowedDomains":["::1"]`):                 "not a domain pattern",
		network(`"allowedDomains":"x.org"`):                 "type",
		network(`"deniedDomains":[1]`):                      "type",
		network(`"filterRequest":"x"`):                      "function",
		network(`"denyMore":["x"]`):                         "is unknown here",
		network(`"deniedResolvedAddresses":["8.0.0.0/8"]`):  "one by one",
		network(`"deniedResolvedAddresses":["10.0.0.0/7"]`): "one by one",
		network(`"deniedResolvedAddresses":["0.0.0.0/0"]`):  "one by one",
		network(`"deniedResolvedAddresses":["x"]`):          "neither",
		network(`"parentProxy":{"http":"socks5://p:1"}`):    "proxy that Carrel can use",
		strings.Repeat(" ", maxFile+1):                      "at most",
	} {
		if out, _, err := ImportSRT([]byte(in)); err == nil || out != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %s, %v; want %q", in, out, err, want)
		}
	}
	out, report, err := ImportSRT([]byte(network(`"allowedDomains":["x.example.com"],"deniedDomains":[],"httpProxyPort":8080`)))
	if err != nil || strings.Contains(string(out), "allow") || len(report) == 0 {
		t.Errorf("a proxy of their own: %s %v", out, err)
	}
	out, _, err = ImportSRT([]byte(network(`"allowedDomains":["x.example.com"],"refuseOpaqueTunnels":true`)))
	if err != nil || !strings.Contains(string(out), "inspect: true") {
		t.Errorf("opaque tunnels: %s %v", out, err)
	}
	for _, n := range []string{`"allowedDomains":["127.0.0.1:80"]`, `"allowedDomains":["169.254.169.254:80"]`, `"allowedDomains":["10.0.0.5"]`, `"allowedDomains":["8.8.8.8"],"deniedResolvedAddresses":["8.8.8.0/24"]`} {
		out, report, err = ImportSRT([]byte(network(n)))
		if err != nil || strings.Contains(string(out), "allow") || len(report) == 0 {
			t.Errorf("%s: %s %v", n, out, err)
		}
	}
	out, report, err = ImportSRT([]byte(network(`"allowAllDomains":true`)))
	if err != nil || strings.Contains(string(out), "allow") || !slices.ContainsFunc(report, func(l ImportLine) bool { return l.Key == "network.allowAllDomains" && l.Mapping == Stricter }) {
		t.Errorf("all domains: %s %v %v", out, report, err)
	}
}

func FuzzImportSRT(f *testing.F) {
	f.Add([]byte(`{"network":{"allowedDomains":["a.example.com:80"],"deniedDomains":["*:22"],"deniedResolvedAddresses":["8.8.8.0/29"]}}`))
	f.Add([]byte(`{"network":{"parentProxy":{"http":"http://p:1"}},"credentials":{"files":[{"path":"x"}]}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		out, _, err := ImportSRT(content)
		if err != nil {
			return
		}
		if file, problems := ParseFile(out, "p.yaml"); file == nil {
			t.Fatalf("%s\n%s", Problems("p.yaml", problems), out)
		}
	})
}
