package policy

import (
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
)

func TestAppendRule(t *testing.T) {
	added := &api.EgressRule{Action: allow, Host: "new.example", Ports: []uint32{8443}, Origin: Answered}
	for _, c := range []struct{ name, in, out string }{
		{"empty", "", "version: 1\negress:\n  rules:\n    - allow: \"new.example\"\n      ports: [8443]\n"},
		{"comments", "# mine\n", "# mine\nversion: 1\negress:\n  rules:\n    - allow: \"new.example\"\n      ports: [8443]\n"},
		{"no egress", "version: 1 # one\n", "version: 1 # one\negress:\n  rules:\n    - allow: \"new.example\"\n      ports: [8443]\n"},
		{"no rules", "version: 1\negress:\n  # why\n  presets: [github]\n", "version: 1\negress:\n  # why\n  rules:\n    - allow: \"new.example\"\n      ports: [8443]\n  presets: [github]\n"},
		{"rules", "version: 1\negress:\n  rules:\n  # one\n  - allow: a.example # a\n    ports: [1,\n      2]\n  # end\nlimits: {cpus: 1}", "version: 1\negress:\n  rules:\n  # one\n  - allow: a.example # a\n    ports: [1,\n      2]\n  - allow: \"new.example\"\n    ports: [8443]\n  # end\nlimits: {cpus: 1}\n"},
		{"there already", "version: 1\negress: {rules: [{allow: new.example, ports: 8443}]}", "version: 1\negress: {rules: [{allow: new.example, ports: 8443}]}"},
		{"asked", "version: 1\negress:\n  rules:\n    - ports: [8443]\n      ask: new.example # why\n    - ask: new.example\n", "version: 1\negress:\n  rules:\n    - ports: [8443]\n      allow: new.example # why\n    - ask: new.example\n"},
		{"asked in another way", "version: 1\negress: {rules: [{ask: new.example, ports: 8443}]}", "version: 1\negress: {rules: [{allow: new.example, ports: 8443}]}"},
	} {
		out, err := AppendRule([]byte(c.in), added)
		if err != nil || string(out) != c.out {
			t.Errorf("%s: %v\n%s\nwant\n%s", c.name, err, out, c.out)
			continue
		}
		again, err := AppendRule(out, added)
		if err != nil || string(again) != string(out) {
			t.Errorf("%s: a second time: %v\n%s", c.name, err, again)
		}
		if f, _ := ParseFile(out, "policy.yaml"); f == nil || mustEgress(t, f.Rules...).Connect(to(t, "new.example:8443")).Action != allow {
			t.Errorf("%s: does not allow", c.name)
		}
	}
	for name, in := range map[string]string{
		"flow": "version: 1\negress: {presets: [github]}\n", "null": "null\n", "list": "[]\n", "broken": "version: 1\nx: 1\n", "json": `{"version":1,"egress":{"rules":[]}}`,
	} {
		if out, err := AppendRule([]byte(in), added); err == nil {
			t.Errorf("%s: %s", name, out)
		}
	}
	if _, err := AppendRule(nil, &api.EgressRule{Action: allow, Host: "*"}); err == nil {
		t.Error("a wide rule was added")
	}
	all := &api.EgressRule{Action: allow, Host: "*.x.example", Ports: []uint32{80, 443}, Methods: []string{"GET"}, Paths: []string{"/a b\"/*"}, MaxUpBytes: 5, Rate: 7, Wide: true, Private: true, Inspect: true}
	all.Paths[0] = `/a"/*`
	out, err := AppendRule(read(t, "policy/full.yaml"), all)
	if err != nil || !strings.Contains(string(out), "# Everything that a policy file can say.") {
		t.Fatalf("%v\n%s", err, out)
	}
	f, _ := ParseFile(out, "policy.yaml")
	if got := f.Rules[len(f.Rules)-1]; !sameRule(got, all) {
		t.Errorf("%v became %v", all, got)
	}
}
