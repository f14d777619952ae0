package policy

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFullFile(t *testing.T) {
	f, problems := ParseFile(read(t, "policy/full.yaml"), "policy.yaml")
	if f == nil {
		t.Fatal(Problems("policy.yaml", problems))
	}
	if len(f.Rules) != 8 || f.MinBoundary != "gvisor" || f.MaxCPUs != 4 || f.MaxMemoryMiB != 4096 || f.MaxDiskMiB != 20480 || *f.MaxShares != 8 || len(f.Presets) != 2 {
		t.Errorf("%+v", f)
	}
	want := &api.EgressRule{Action: allow, Host: "api.example.org", Ports: []uint32{443, 8443}, Methods: []string{"GET", "POST"}, Paths: []string{"/v1/*", "/v2/**"},
		MaxUpBytes: 10 << 20, Rate: 1_000_000, Secret: "example", Origin: "policy.yaml:24"}
	if !proto.Equal(f.Rules[4], want) {
		t.Errorf("got  %v\nwant %v", f.Rules[4], want)
	}
	if f.Upstream.HttpsProxy != "http://user:pass@proxy.example.net:3128" || f.Upstream.NoProxy != "localhost,.example.net" {
		t.Errorf("upstream %v", f.Upstream)
	}
	if r := f.Defined["intranet"]; len(r) != 1 || !r[0].Private {
		t.Errorf("own preset: %v", r)
	}
}

// E01: a file that says nothing allows nothing, and a file that cannot be
// understood is an error. The control is TestFullFile.
func TestE01Files(t *testing.T) {
	for _, name := range []string{"empty", "comments", "list", "null", "mapping", "nulls"} {
		f, problems := ParseFile(read(t, "policy/"+name+".yaml"), "policy.yaml")
		if f == nil {
			t.Errorf("%s: %s", name, Problems("policy.yaml", problems))
			continue
		}
		g, err := Decide(&api.GuestSpec{Name: "g", Ephemeral: true}, f.Apply(Default("/nonexistent")))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		e := mustEgress(t, g.EgressRules()...)
		for _, d := range []string{"example.org", "1.1.1.1", "127.0.0.1:80", "host.carrel.internal:80"} {
			if v := e.Connect(to(t, d)); v.Action != deny {
				t.Errorf("%s: %s: %+v", name, d, v)
			}
		}
	}
	for in, want := range map[string]string{
		`[""]`:                  "1:1: a policy file is a mapping",
		`""`:                    "mapping",
		`true`:                  "mapping",
		"version: 1\negress: [": "not YAML",
		`{"version": 1, "egress": {"rules": [{"allow": "example.org`: "not YAML",
		"egress: {}\n":                             "1:1: the version is missing",
		"version: 2\n":                             "1:10: version is 1, not 2",
		"version: '1'\n":                           "1:10: version is a number",
		"version: 1\nversion: 1\n":                 `2:1: the key "version" is there twice`,
		"version: 1\negres: {}\n":                  `2:1: unknown key "egres"`,
		"version: 1\n1: x\n":                       "2:1: a key is text",
		"version: 1\negress:\n  rules: [\"\"]\n":   "3:11: a rule is a mapping",
		"version: 1\negress:\n  rules:\n    - x\n": "4:7: a rule is a mapping",
		"version: 1\negress:\n  rules: allow\n":    "3:10: egress.rules is a list",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      deny: b.example\n":     "5:13: a rule allows, denies or asks",
		"version: 1\negress:\n  rules:\n    - ports: 443\n":                                  "4:7: the rule does not say",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      port: 443\n":           `5:7: unknown key "port"`,
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      ports: []\n":           "5:14: ports is empty",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      ports:\n":              "ports is empty",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      methods: []\n":         "methods is empty",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      paths: []\n":           "paths is empty",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      ports: [80, x]\n":      "5:19: a port is a number",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      ports: [0]\n":          "a port is between 1 and 65535",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      methods: [get]\n":      "upper case",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      wide: maybe\n":         "true or false",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      max-up: 10\n":          "with its unit",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      max-up: -1MiB\n":       "with its unit",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      max-up: 0B\n":          "between",
		"version: 1\negress:\n  rules:\n    - allow: a.example\n      max-up: 99999999EiB\n": "max-up is",
		"version: 1\negress:\n  rules:\n    - allow: 5\n":                                    "text",
		"version: 1\negress:\n  rules:\n    - allow: ''\n":                                   "4:14: host \"\" is refused",
		"version: 1\negress:\n  rules:\n    - allow: '*'\n":                                  "wide: true",
		"version: 1\negress:\n  rules:\n    - allow: *\n":                                    "needs quotes",
		"version: 1\negress:\n  rules:\n    - allow: *x\n":                                   "needs quotes",
		"version: 1\negress: &a {}\n":                                                        "anchors",
		"version: 1\negress: &a {}\nlimits: *a\n":                                            "anchors",
		"version: 1\negress: !!map {}\n":                                                     "tags",
		"version: 1\n<<: {egress: {}}\n":                                                     "2:1: a key is text",
		"version: 1\negress:\n  presets: [nothing]\n":                                        "no preset \"nothing\"",
		"version: 1\negress:\n  presets: packages\n":                                         "is a list",
		"version: 1\negress:\n  secrets: [x]\n":                                              "unknown key \"secrets\"",
		"version: 1\npresets:\n  packages: []\n":                                             "built in",
		"version: 1\npresets:\n  none: []\n":                                                 "built in",
		"version: 1\npresets:\n  Bad: []\n":                                                  "not possible",
		"version: 1\nboundary: {minimum: chroot}\n":                                          "one of vm, gvisor, process",
		"version: 1\nlimits: {cpus: 0}\n":                                                    "between",
		"version: 1\nlimits: {memory: 4096}\n":                                               "with its unit",
		"version: 1\negress: {upstream: {https_proxy: 'socks5://x'}}":                        "URL of a proxy",
		"version: 1\negress: {upstream: {https_proxy: 'http://u:hunter2@p/x'}}":              "URL of a proxy",
		"version: 1\n---\nversion: 1\n":                                                      "second document",
		"version: 1\n\x00":                                                                   "not YAML",
		"\xff\xfe\x00":                                                                       "not YAML",
		strings.Repeat("[", 5000):                                                            "",
		strings.Repeat("- ", 100) + "x":                                                      "nested",
		strings.Repeat("# x\n", maxFile/4+1):                                                 "at most",
		"version: 1\negress:\n  rules:\n    - allow: " + strings.Repeat("a", maxText+1):      "longer",
	} {
		f, problems := ParseFile([]byte(in), "policy.yaml")
		text := Problems("policy.yaml", problems)
		if f != nil || len(problems) == 0 || !strings.Contains(text, want) || strings.Contains(text, "hunter2") {
			t.Errorf("%.80q: %v does not say %q: %q", in, f, want, text)
		}
	}
	f, problems := ParseFile([]byte("version: 1\n"+strings.Repeat("x: 1\n", 1000)), "policy.yaml")
	if f != nil || len(problems) != maxProblems {
		t.Errorf("%d problems", len(problems))
	}
}

// A repository's request cannot say what only the user can.
func TestRequestFile(t *testing.T) {
	f, problems := ParseRequest(read(t, "request/full.yaml"), RequestName)
	if f == nil {
		t.Fatal(Problems(RequestName, problems))
	}
	if s := f.Spec(true); len(s.Rules) != 3 || len(s.Presets) != 1 || len(s.Secrets) != 1 || s.Rules[0].Origin != ".carrel.yaml:7" {
		t.Errorf("agreed: %v", s)
	}
	if s := f.Spec(false); len(s.Rules) != 1 || s.Rules[0].Action != deny || len(s.Presets) != 0 || len(s.Secrets) != 0 {
		t.Errorf("not agreed: %v", s)
	}
	const head = "version: 1\negress:\n  rules:\n    - "
	for in, want := range map[string]string{
		head + "allow: a.example\n      private: true\n":                "unknown key \"private\"",
		head + "allow: a.example\n      secret: github\n":               "unknown key \"secret\"",
		head + "allow: '*'\n      wide: true\n":                         "unknown key \"wide\"",
		head + "allow: '*'\n":                                           "cannot be wide",
		head + "ask: '*.github.io'\n":                                   "cannot be wide",
		"version: 1\nboundary: {minimum: process}\n":                    "unknown key \"boundary\"",
		"version: 1\nlimits: {cpus: 64}\n":                              "unknown key \"limits\"",
		"version: 1\npresets: {x: []}\n":                                "unknown key \"presets\"",
		"version: 1\negress: {upstream: {https_proxy: 'http://p:1'}}\n": "unknown key \"upstream\"",
	} {
		if f, problems := ParseRequest([]byte(in), RequestName); f != nil || !strings.Contains(Problems("", problems), want) {
			t.Errorf("%q: %v: %s", in, f, Problems("", problems))
		}
	}
	if f, problems := ParseRequest([]byte(head+"deny: '*'\n"), RequestName); f == nil {
		t.Errorf("control: %s", Problems("", problems))
	}
}

// E01 on disk: a missing file is empty; one that cannot be read or understood
// stops every start, and says where and what mends it.
func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "policy.yaml")
	if f, err := Load(path); err != nil || len(f.Rules) != 0 {
		t.Errorf("missing: %v %v", f, err)
	}
	if err := os.WriteFile(path, read(t, "policy/full.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := Load(path); err != nil || len(f.Rules) != 8 {
		t.Errorf("control: %v %v", f, err)
	}
	if err := os.WriteFile(path, []byte("version: 1\negres: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var r *Refusal
	if f, err := Load(path); f != nil || !errors.As(err, &r) || !strings.Contains(r.Reason, path+":2:1: ") || r.Cure == "" {
		t.Errorf("broken: %v %v", f, err)
	}
	if f, err := Load(dir); f != nil || !errors.As(err, &r) {
		t.Errorf("a folder: %v %v", f, err)
	}
	if err := os.WriteFile(path, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := Load(path); f != nil || !errors.As(err, &r) {
		t.Errorf("too large: %v %v", f, err)
	}
}

func TestLoadRequest(t *testing.T) {
	dir := t.TempDir()
	if f, content, problems, err := LoadRequest(dir); f != nil || content != nil || problems != nil || err != nil {
		t.Errorf("none: %v %v %v", f, problems, err)
	}
	path := filepath.Join(dir, RequestName)
	full := read(t, "request/full.yaml")
	if err := os.WriteFile(path, full, 0o600); err != nil {
		t.Fatal(err)
	}
	if f, content, _, err := LoadRequest(dir); f == nil || err != nil || Hash(content) != Hash(full) {
		t.Errorf("control: %v %v", f, err)
	}
	outside := filepath.Join(t.TempDir(), "x")
	if err := os.Rename(path, outside); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, path); err != nil {
		t.Fatal(err)
	}
	if f, content, _, err := LoadRequest(dir); f != nil || content != nil || err == nil {
		t.Errorf("a link was followed: %v", f)
	}
}

func TestAgreements(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agreed.json")
	a, err := LoadAgreements(path)
	if err != nil {
		t.Fatal(err)
	}
	one, two := Hash([]byte("one")), Hash([]byte("two"))
	if a.Has("/src/x", one) {
		t.Error("agreed to before anybody did")
	}
	if err := a.Add("/src/x", one); err != nil {
		t.Fatal(err)
	}
	again, err := LoadAgreements(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []*Agreements{a, again} {
		if !a.Has("/src/x", one) || a.Has("/src/x", two) || a.Has("/src/y", one) || a.Has("", one) || a.Has("/src/x", "") {
			t.Error("not exactly this content in this folder")
		}
	}
	var none *Agreements
	if none.Has("/src/x", one) {
		t.Error("nil agrees")
	}
	for _, bad := range [][2]string{{"/src/x", "abc"}, {"/src/x", strings.ToUpper(one)}, {"x", one}, {"/src/../x", one}, {"", one}, {"/a\nb", one}} {
		if a.Add(bad[0], bad[1]) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	for _, content := range []string{"{", "[]", `{"version":2}`, ""} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadAgreements(path); err == nil {
			t.Errorf("%q was read", content)
		}
	}
	fi, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(fi) != 1 {
		t.Errorf("files left: %v %v", fi, err)
	}
}

func TestPresets(t *testing.T) {
	e := func(names ...string) *Egress {
		g, err := Decide(&api.GuestSpec{Name: "g", Ephemeral: true, Egress: &api.EgressSpec{Presets: names}}, Default("/nonexistent"))
		if err != nil {
			t.Fatal(err)
		}
		return mustEgress(t, g.EgressRules()...)
	}
	if v := e("none").Connect(to(t, "github.com")); v.Action != deny {
		t.Error("the preset none allows github.com")
	}
	pk, gh := e("packages"), e("github")
	for line, want := range map[string]bool{
		"p registry.npmjs.org GET /@babel%2fcore": true, "p registry.npmjs.org PUT /x": false, "p registry.npmjs.org POST /-/npm/v1/login": false,
		"p deb.debian.org:80 GET /debian/dists/bookworm/InRelease": true, "p pypi.org GET /simple/requests/": true, "p pypi.org:80 GET /": false, "p upload.pypi.org POST /legacy/": false,
		"p proxy.golang.org GET /golang.org/x/net/@v/list": true, "p storage.googleapis.com GET /proxy-golang-org-prod/a": true, "p storage.googleapis.com GET /other/a": false, "p storage.googleapis.com PUT /proxy-golang-org-prod/a": false,
		"p proxy.golang.org GET /data.evil.example/x/@v/list": false, "p proxy.golang.org GET /sumdb/sum.golang.org/lookup/data.evil.example/x@v1.0.0": false, "p sum.golang.org GET /lookup/data.evil.example/x@v1.0.0": false,
		"p sum.golang.org GET /lookup/golang.org/x/net@v0.1.0": true, "p proxy.golang.org GET /sumdb/sum.golang.org/lookup/github.com/!azure/x@v1.0.0": true, "p sum.golang.org GET /tile/8/0/x001": true,
		"p static.crates.io HEAD /crates/a.crate": true, "p crates.io PUT /api/v1/crates/new": false, "p github.com GET /": false,
		"g github.com GET /o/r.git/info/refs": true, "g github.com POST /o/r.git/git-upload-pack": true, "g github.com POST /o/r.git/git-receive-pack": false, "g github.com POST /o/r/x/git-upload-pack": false,
		"g api.github.com GET /repos/o/r": true, "g api.github.com POST /gists": false, "g gist.github.com POST /": false, "g github.com:22 GET /": false,
	} {
		f := strings.Fields(line)
		set := map[string]*Egress{"p": pk, "g": gh}[f[0]]
		if v := set.Request(to(t, f[1]), Request{f[2], f[3]}); (v.Action == allow) != want {
			t.Errorf("%s: %+v", line, v)
		}
	}
	for _, rules := range builtins() {
		for _, r := range rules {
			if r.Action != allow || r.Wide || r.Private || len(r.Methods) == 0 || !strings.HasPrefix(r.Origin, "preset ") || strings.Contains(r.Host, "*") {
				t.Errorf("%v", r)
			}
		}
	}
}

func TestDecideEgress(t *testing.T) {
	rules := Default("/nonexistent")
	f, _ := ParseFile([]byte("version: 1\negress:\n  presets: [mine]\n  rules:\n    - deny: b.example\npresets:\n  mine:\n    - allow: a.example\n"), "policy.yaml")
	rules = f.Apply(rules)
	rules.SecretRules = map[string]RuleList{"tok": {{Action: allow, Host: "s.example", Secret: "tok", Methods: []string{"GET"}}}, "bad": {{Action: allow, Host: "s.example"}}}
	want := func(e *api.EgressSpec) *api.GuestSpec { return &api.GuestSpec{Name: "g", Ephemeral: true, Egress: e} }
	g, err := Decide(want(&api.EgressSpec{Rules: []*api.EgressRule{{Action: allow, Host: "b.example"}, {Action: allow, Host: "c.example", Origin: Answered}}, Secrets: []string{"tok"}}), rules)
	if err != nil {
		t.Fatal(err)
	}
	var origins []string
	for _, r := range g.EgressRules() {
		origins = append(origins, r.Host+" "+r.Origin)
	}
	if got := strings.Join(origins, "; "); got != "b.example policy.yaml:5; a.example preset mine, policy.yaml:8; b.example the request; c.example the request; s.example secret tok" {
		t.Error(got)
	}
	if s := g.Secrets(); len(s) != 1 || s[0] != "tok" {
		t.Error(s)
	}
	g.EgressRules()[0].Action = allow // a copy
	if v := mustEgress(t, g.EgressRules()...).Connect(to(t, "b.example")); v.Action != deny {
		t.Errorf("a request took back what the user denies: %+v", v)
	}
	for why, spec := range map[string]*api.EgressSpec{
		"unknown_preset": {Presets: []string{"all"}},
		"unknown_secret": {Secrets: []string{"nope"}},
		"bad_rule":       {Rules: []*api.EgressRule{{Action: allow, Host: "*"}}},
		"bad_rule ":      {Rules: []*api.EgressRule{nil}},
		"bad_rule  ":     {Secrets: []string{"bad"}},
		"bad_rule   ":    {Rules: []*api.EgressRule{{Action: allow, Host: "elsewhere.example", Secret: "tok"}}},
		"bad_rule    ":   {Rules: []*api.EgressRule{{Action: allow, Host: "s.example", Ports: []uint32{80}, Secret: "tok"}}},
		"too_large":      {Rules: make([]*api.EgressRule, maxRules+1)},
		"too_large ":     {Secrets: make([]string, maxNames+1)},
	} {
		_, err := Decide(want(spec), rules)
		var r *Refusal
		if !errors.As(err, &r) || r.Code != strings.TrimSpace(why) {
			t.Errorf("%s: %v", why, err)
		}
	}
	if _, err := Decide(want(&api.EgressSpec{Rules: []*api.EgressRule{{Action: allow, Host: "s.example", Paths: []string{"/x"}, Secret: "tok"}}}), rules); err != nil {
		t.Errorf("control: %v", err)
	}
}

// The rules that a keeper reads are those that the daemon had.
func TestRulesThroughJSON(t *testing.T) {
	f, _ := ParseFile(read(t, "policy/full.yaml"), "policy.yaml")
	rules := f.Apply(Default("/home/u", "/home/u/carrel"))
	rules.SecretRules = map[string]RuleList{"example": {{Action: allow, Host: "api.example.org", Ports: []uint32{443, 8443}, Secret: "example"}}}
	b, err := json.Marshal(rules)
	if err != nil {
		t.Fatal(err)
	}
	var back Rules
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	spec := &api.GuestSpec{Name: "g", Ephemeral: true, Egress: &api.EgressSpec{Presets: []string{"github"}}}
	one, err := Decide(spec, rules)
	if err != nil {
		t.Fatal(err)
	}
	two, err := Decide(spec, back)
	if err != nil {
		t.Fatal(err)
	}
	a, c := one.EgressRules(), two.EgressRules()
	if len(a) != len(c) || len(a) < 30 {
		t.Fatalf("%d rules became %d", len(a), len(c))
	}
	for i := range a {
		if !proto.Equal(a[i], c[i]) {
			t.Errorf("%v became %v", a[i], c[i])
		}
	}
	if json.Unmarshal([]byte(`[{"host":"a.example","surprise":1}]`), &RuleList{}) == nil {
		t.Error("a field that is not known was passed over")
	}
}

func TestBoundaries(t *testing.T) {
	for _, c := range []struct{ want, minimum, walls string }{
		{"", "", "vm gvisor process"}, {"", "process", "vm gvisor process"}, {"", "gvisor", "vm gvisor"}, {"", "vm", "vm"},
		{"vm", "vm", "vm"}, {"vm", "", "vm"}, {"process", "", "process"}, {"gvisor", "gvisor", "gvisor"},
		{"process", "vm", "!boundary_too_weak"}, {"gvisor", "vm", "!boundary_too_weak"}, {"process", "gvisor", "!boundary_too_weak"},
		{"chroot", "", "!bad_boundary"}, {"VM", "", "!bad_boundary"}, {"", "chroot", "!bad_boundary"},
	} {
		rules := Default("/nonexistent")
		rules.MinBoundary = c.minimum
		g, err := Decide(&api.GuestSpec{Name: "g", Ephemeral: true, Boundary: c.want}, rules)
		var r *Refusal
		switch {
		case errors.As(err, &r):
			if "!"+r.Code != c.walls {
				t.Errorf("%+v: %v", c, err)
			}
		case strings.Join(g.Boundaries(), " ") != c.walls || g.Boundary() != c.want:
			t.Errorf("%+v: %v", c, g.Boundaries())
		}
	}
}

func TestLimitsOnlyTighten(t *testing.T) {
	f, problems := ParseFile([]byte("version: 1\nlimits: {cpus: 2, memory: 1GiB, disk: 1GiB, shares: 0}\n"), "policy.yaml")
	if f == nil {
		t.Fatal(problems)
	}
	r := f.Apply(Default("/nonexistent"))
	if r.MaxCPUs != 2 || r.MaxMemoryMiB != 1024 || r.MaxDiskMiB != 1024 || r.MaxShares != 0 {
		t.Errorf("%+v", r)
	}
	small := Rules{MaxCPUs: 1, MaxMemoryMiB: 512, MaxDiskMiB: 64}
	if r := f.Apply(small); r.MaxCPUs != 1 || r.MaxMemoryMiB != 512 || r.MaxDiskMiB != 64 {
		t.Errorf("a file widened: %+v", r)
	}
}

// FuzzPolicyFile: no content takes the reader down, and what is accepted can be
// decided on, as the user's file and as a request, which never is wide.
func FuzzPolicyFile(f *testing.F) {
	for _, g := range []string{"testdata/policy/*.yaml", "testdata/request/*.yaml", "presets/*.yaml"} {
		names, _ := filepath.Glob(g)
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, parse := range []func([]byte, string) (*File, []*api.PolicyProblem){ParseFile, ParseRequest} {
			file, problems := parse(content, "f.yaml")
			if (file == nil) != (len(problems) > 0) {
				t.Fatalf("%v and %v", file, problems)
			}
			for _, p := range problems {
				if p.Text == "" || strings.ContainsFunc(p.Text, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
					t.Fatalf("problem %q", p.Text)
				}
			}
			if file == nil {
				continue
			}
			if _, err := NewEgress(file.Rules); err != nil {
				t.Fatalf("accepted, and then refused: %v", err)
			}
		}
		if file, _ := ParseRequest(content, "f.yaml"); file != nil {
			for _, r := range file.Rules {
				if r.Wide || r.Private || r.Secret != "" {
					t.Fatalf("a request that widens: %v", r)
				}
			}
		}
		rule := &api.EgressRule{Action: allow, Host: "added.example", Ports: []uint32{8443}}
		if next, err := AppendRule(content, rule); err == nil {
			file, problems := ParseFile(next, "f.yaml")
			if file == nil {
				t.Fatalf("a rule was added and the file broke: %v", problems)
			}
		}
	})
}
