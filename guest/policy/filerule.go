package policy

import (
	"embed"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"gopkg.in/yaml.v3"

	"github.com/carrel-vm/carrel/guest/api"
)

// rules reads a list of rules: "- allow: example.org" with what narrows it.
func (r *reader) rules(n *yaml.Node, what string, k kind) (out []*api.EgressRule) {
	r.list(n, what, false, func(e *yaml.Node) {
		if len(out) >= maxRules {
			r.problem(e, "%s has more than %d rules", what, maxRules)
			return
		}
		if e.Kind != yaml.MappingNode {
			r.problem(e, "a rule is a mapping (- allow: example.org), not %s", kindOf(e))
			return
		}
		if rule := r.rule(e, k); rule != nil {
			out = append(out, rule)
		}
	})
	return out
}

// rule returns nil if there is a problem with it.
func (r *reader) rule(n *yaml.Node, k kind) *api.EgressRule {
	before := len(r.problems)
	out := &api.EgressRule{Origin: fmt.Sprintf("%s:%d", r.name, n.Line)}
	var word *yaml.Node
	fields := []field{}
	for _, a := range []struct {
		word   string
		action api.EgressAction
	}{{"allow", allow}, {"deny", deny}, {"ask", ask}} {
		fields = append(fields, field{a.word, func(v *yaml.Node) {
			if word != nil {
				r.problem(v, "a rule allows, denies or asks: one of them")
				return
			}
			word = v
			out.Action, out.Host = a.action, r.text(v, "the host of a rule")
		}})
	}
	fields = append(fields,
		field{"ports", func(v *yaml.Node) {
			r.list(v, "ports", true, func(e *yaml.Node) { out.Ports = append(out.Ports, uint32(r.number(e, "a port", 1, 65535))) })
			r.some(v, "ports", len(out.Ports))
		}},
		field{"methods", func(v *yaml.Node) {
			r.list(v, "methods", true, func(e *yaml.Node) { out.Methods = append(out.Methods, r.text(e, "a method")) })
			r.some(v, "methods", len(out.Methods))
		}},
		field{"paths", func(v *yaml.Node) {
			r.list(v, "paths", true, func(e *yaml.Node) { out.Paths = append(out.Paths, r.text(e, "a path")) })
			r.some(v, "paths", len(out.Paths))
		}},
		field{"max-up", func(v *yaml.Node) { out.MaxUpBytes = r.bytes(v, "max-up", 1, math.MaxInt64) }},
		field{"rate", func(v *yaml.Node) { out.Rate = r.bytes(v, "rate (bytes a second)", 1, math.MaxInt64) }},
		field{"inspect", func(v *yaml.Node) { out.Inspect = r.boolean(v, "inspect") }})
	if k != aRequest {
		fields = append(fields,
			field{"secret", func(v *yaml.Node) { out.Secret = r.text(v, "secret") }},
			field{"wide", func(v *yaml.Node) { out.Wide = r.boolean(v, "wide") }},
			field{"private", func(v *yaml.Node) { out.Private = r.boolean(v, "private") }})
	}
	r.mapping(n, "a rule", fields...)
	if word == nil && len(r.problems) == before {
		r.problem(n, "the rule does not say what to do (- allow: example.org)")
	}
	if len(r.problems) > before || word == nil {
		return nil
	}
	if err := CheckRule(out); err != nil {
		if why := out.Host; k == aRequest && out.Action != deny && len(why) > 0 && why[0] == '*' {
			r.problem(word, "%v: a repository's request cannot be wide", err)
		} else {
			r.problem(word, "%v", err)
		}
		return nil
	}
	return out
}

// some refuses an empty list where none at all would mean any: "methods: []"
// must not be read as all methods.
func (r *reader) some(n *yaml.Node, what string, count int) {
	if count == 0 {
		r.problem(n, "%s is empty (leave it out if any is meant)", what)
	}
}

//go:embed presets/*.yaml
var presetFiles embed.FS

// builtins returns the presets that every Carrel has, beside "none". It is set
// in init since reading a preset file refers to it.
var builtins func() map[string][]*api.EgressRule

func init() { builtins = sync.OnceValue(readPresets) }

func readPresets() map[string][]*api.EgressRule {
	all := map[string][]*api.EgressRule{}
	for _, name := range []string{"packages", "github"} {
		content, err := presetFiles.ReadFile("presets/" + name + ".yaml")
		if err != nil {
			panic(err)
		}
		f, problems := parseFile(content, name+".yaml", builtIn)
		if f == nil || f.Defined[name] == nil { // a mistake in our own source, which a test finds
			panic("preset " + name + ": " + Problems(name, problems))
		}
		for _, r := range f.Defined[name] {
			r.Origin = "preset " + name
		}
		all[name] = f.Defined[name]
	}
	return all
}

// presetNames lists the presets there are.
func presetNames[T any](defined map[string]T) []string {
	names := []string{"none"}
	for n := range builtins() {
		names = append(names, n)
	}
	for n := range defined {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// preset returns the rules of a preset.
func preset(name string, defined map[string]RuleList) ([]*api.EgressRule, error) {
	if name == "none" {
		return nil, nil
	}
	if rules, is := builtins()[name]; is {
		return clone(rules), nil
	}
	if rules, is := defined[name]; is {
		out := clone(rules)
		for _, r := range out {
			r.Origin = "preset " + name + ", " + r.Origin
		}
		return out, nil
	}
	return nil, refuse("unknown_preset", "use one of "+strings.Join(presetNames(defined), ", "), "there is no preset %q", clip(name))
}
