package policy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// schema is as much of JSON Schema 2020-12 as ours uses; a keyword that is not
// here is an error, so that none is passed over.
type schema struct {
	defs map[string]any
}

func loadSchema(t *testing.T) (s schema, root map[string]any) {
	t.Helper()
	b, err := os.ReadFile("../../docs/policy.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &root); err != nil {
		t.Fatal(err)
	}
	return schema{root["$defs"].(map[string]any)}, root
}

func (s schema) def(name string) map[string]any { return s.defs[name].(map[string]any) }

func typeOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case int:
		return "integer"
	case float64:
		return "number"
	case string:
		return "string"
	case []any:
		return "array"
	}
	return "object"
}

// check returns what is wrong with a value.
func (s schema) check(at string, sch map[string]any, v any) (bad []string) {
	no := func(format string, args ...any) { bad = append(bad, at+": "+fmt.Sprintf(format, args...)) }
	obj, _ := v.(map[string]any)
	list, isList := v.([]any)
	text, isText := v.(string)
	num, isNum := v.(int)
	count := func(key string) (n int) {
		for _, sub := range sch[key].([]any) {
			if len(s.check(at, sub.(map[string]any), v)) == 0 {
				n++
			}
		}
		return n
	}
	for key, want := range sch {
		switch key {
		case "$schema", "$id", "$defs", "title", "description":
		case "$ref":
			bad = append(bad, s.check(at, s.def(strings.TrimPrefix(want.(string), "#/$defs/")), v)...)
		case "type":
			if t, is := want.(string); is && t != typeOf(v) || !is && !slices.Contains(want.([]any), any(typeOf(v))) {
				no("is %s, not %v", typeOf(v), want)
			}
		case "const":
			if fmt.Sprint(want) != fmt.Sprint(v) || typeOf(v) != "integer" {
				no("is not %v", want)
			}
		case "enum":
			if !slices.Contains(want.([]any), v) {
				no("is not one of %v", want)
			}
		case "not":
			if len(s.check(at, want.(map[string]any), v)) == 0 {
				no("is what it must not be")
			}
		case "anyOf":
			if count(key) == 0 {
				no("is none of anyOf")
			}
		case "oneOf":
			if n := count(key); n != 1 {
				no("is %d of oneOf", n)
			}
		case "required":
			for _, k := range want.([]any) {
				if _, is := obj[k.(string)]; !is {
					no("lacks %v", k)
				}
			}
		case "properties":
			for k, sub := range want.(map[string]any) {
				if e, is := obj[k]; is {
					bad = append(bad, s.check(at+"."+k, sub.(map[string]any), e)...)
				}
			}
		case "additionalProperties":
			known, _ := sch["properties"].(map[string]any)
			for k, e := range obj {
				if _, is := known[k]; is {
					continue
				}
				if sub, is := want.(map[string]any); is {
					bad = append(bad, s.check(at+"."+k, sub, e)...)
				} else {
					no("has %q", k)
				}
			}
		case "propertyNames":
			for k := range obj {
				bad = append(bad, s.check(at+"."+k, want.(map[string]any), k)...)
			}
		case "items":
			for _, e := range list {
				bad = append(bad, s.check(at+"[]", want.(map[string]any), e)...)
			}
		case "maxProperties", "maxItems", "minItems", "minLength", "maxLength", "minimum", "maximum":
			n, limit := 0, int(want.(float64))
			switch {
			case strings.HasSuffix(key, "Properties"):
				n = len(obj)
			case strings.HasSuffix(key, "Items"):
				if n = len(list); !isList {
					continue
				}
			case strings.HasSuffix(key, "Length"):
				if n = len(text); !isText {
					continue
				}
			default:
				if n = num; !isNum {
					continue
				}
			}
			if strings.HasPrefix(key, "max") && n > limit || strings.HasPrefix(key, "min") && n < limit {
				no("%s is %v, and it is %d", key, want, n)
			}
		case "pattern":
			if isText && !regexp.MustCompile(want.(string)).MatchString(text) {
				no("does not match %v", want)
			}
		default:
			no("the schema uses %q, which this test does not know", key)
		}
	}
	return bad
}

// Each example is valid for the schema and for the parser, and what the parser
// refuses for its form, the schema refuses.
func TestSchema(t *testing.T) {
	s, root := loadSchema(t)
	for kind, sch := range map[string]map[string]any{"policy": root, "request": s.def("request")} {
		names, err := filepath.Glob("testdata/" + kind + "/*.yaml")
		if err != nil || len(names) == 0 {
			t.Fatalf("no examples of a %s: %v", kind, err)
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var v any
			if err := yaml.Unmarshal(b, &v); err != nil {
				t.Fatal(err)
			}
			if bad := s.check(kind, sch, v); len(bad) > 0 {
				t.Errorf("%s: %s", name, strings.Join(bad, "\n"))
			}
			parse := ParseFile
			if kind == "request" {
				parse = ParseRequest
			}
			if f, problems := parse(b, name); f == nil {
				t.Errorf("%s: %s", name, Problems(name, problems))
			}
		}
	}
	for _, in := range []string{
		"x", "[1]", "egress: {}", "version: 2", "version: '1'", "version: 1\nx: 1", "version: 1\negress: {secrets: [x]}", "version: 1\negress: {presets: x}", "version: 1\negress: {presets: [X]}",
		"version: 1\negress: {rules: [x]}", "version: 1\negress: {rules: [{}]}", "version: 1\negress: {rules: [{allow: a, deny: a}]}", "version: 1\negress: {rules: [{allow: 1}]}", "version: 1\negress: {rules: [{allow: 'a*b.com'}]}", "version: 1\negress: {rules: [{allow: 'https://x'}]}",
		"version: 1\negress: {rules: [{allow: a, ports: []}]}", "version: 1\negress: {rules: [{allow: a, ports: 0}]}", "version: 1\negress: {rules: [{allow: a, ports: [65536]}]}", "version: 1\negress: {rules: [{allow: a, methods: get}]}", "version: 1\negress: {rules: [{allow: a, paths: x}]}",
		"version: 1\negress: {rules: [{allow: a, max-up: 10}]}", "version: 1\negress: {rules: [{allow: a, wide: 1}]}", "version: 1\negress: {rules: [{allow: a, port: 1}]}", "version: 1\negress: {upstream: {https_proxy: 'socks5://x'}}", "version: 1\negress: {upstream: {x: y}}",
		"version: 1\npresets: {packages: []}", "version: 1\npresets: {X: []}", "version: 1\nboundary: {minimum: chroot}", "version: 1\nlimits: {cpus: 0}", "version: 1\nlimits: {memory: 1}", "version: 1\nlimits: {shares: 65}",
		"version: 1\nlimits: {guests: 0}", "version: 1\nlimits: {guests: 1025}", "version: 1\nlimits: {starts: 0}", "version: 1\nlimits: {starts: 65}", "version: 1\nlimits: {waiting: -1}", "version: 1\nlimits: {waiting: 1025}", "version: 1\nlimits: {memory-free: 1}", "version: 1\nlimits: {memory-free: x}",
		"version: 1\nvolumes: {names: x}", "version: 1\nvolumes: {names: ['A']}", "version: 1\nvolumes: {names: ['../x']}", "version: 1\nvolumes: {count: 5}", "version: 1\nvolumes: {size: 1}", "version: 1\nvolumes: {x: 1}", "version: 1\nhost: {free: 1}",
		"version: 1\npool: {size: 33}", "version: 1\npool: {size: -1}", "version: 1\npool: {boundary: chroot}", "version: 1\npool: {memory: 1}", "version: 1\npool: {image: [x]}", "version: 1\npool: {shares: [x]}",
		"version: 1\nidle: 5m", "version: 1\nidle: {pause: 5}", "version: 1\nidle: {pause: -5m}", "version: 1\nidle: {pause: 500ms}", "version: 1\nidle: {stop: soon}", "version: 1\nidle: {x: 5m}",
		"version: 1\nshares: [x]", "version: 1\nshares: {hidden: []}", "version: 1\nshares: {hide: x}", "version: 1\nshares: {hide: [1]}", "version: 1\nshares: {hide: ['']}", "version: 1\nshares: {protect: ['a\\b']}", "version: 1\nshares: {protect: ['c:']}",
	} {
		var v any
		if err := yaml.Unmarshal([]byte(in), &v); err != nil {
			t.Fatal(err)
		}
		if bad := s.check("policy", root, v); len(bad) == 0 {
			t.Errorf("the schema takes %q", in)
		}
		if f, _ := ParseFile([]byte(in), "x"); f != nil {
			t.Errorf("the parser takes %q", in)
		}
	}
}

// The schema's keys are exactly the parser's.
func TestSchemaKeys(t *testing.T) {
	s, _ := loadSchema(t)
	keys := func(v any) (names []string) {
		for k := range v.(map[string]any)["properties"].(map[string]any) {
			names = append(names, k)
		}
		slices.Sort(names)
		return names
	}
	top := func(def string) any { return s.def(def)["anyOf"].([]any)[2] }
	policy := top("policy").(map[string]any)["properties"].(map[string]any)
	for _, c := range []struct {
		file string
		kind kind
		want map[string][]string
	}{
		{"policy/full.yaml", theUsers, map[string][]string{
			"a policy file": keys(top("policy")), "egress": keys(s.def("egress")), "a rule": keys(s.def("rule")), "egress.upstream": keys(s.def("upstream")),
			"boundary": keys(policy["boundary"]), "limits": keys(policy["limits"]), "volumes": keys(policy["volumes"]), "host": keys(policy["host"]), "pool": keys(policy["pool"]), "idle": keys(policy["idle"]), "shares": keys(s.def("shares")),
			"telemetry": keys(policy["telemetry"]), "a header": {"file"},
		}},
		{"request/full.yaml", aRequest, map[string][]string{"a repository's request": keys(top("request")), "egress": keys(s.def("requestEgress")), "a rule": keys(s.def("requestRule")), "shares": keys(s.def("requestShares"))}},
	} {
		got := map[string][]string{}
		r := &reader{name: "x", keys: func(what string, names []string) {
			names = slices.Clone(names)
			slices.Sort(names)
			got[what] = names
		}}
		if f, problems := r.file(read(t, c.file), c.kind); f == nil {
			t.Fatal(Problems(c.file, problems))
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s:\nparser %v\nschema %v", c.file, got, c.want)
		}
	}
}
