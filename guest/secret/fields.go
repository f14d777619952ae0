package secret

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The grammar of SecretDefinition.refuse_fields:
//
//	entry = path [ "=" alternatives | "!=" alternatives ]
//	path  = segment *( "." segment )       from the top of the body
//	segment = name | "*" | "**"            "*": any one member or element; "**": any number of them, none included
//	alternatives = glob *( "|" glob )      "*" in a glob: any run of characters
//
// "mcp_servers" refuses a body that has the field with anything but null, [] or
// {} in it; "a.type=x_*" one whose field is such a text, number or boolean;
// "a.type!=x|y" one whose field is such a value and none of these. Names and
// values are compared without regard to case, because some servers do.

// Bounds of a body that is looked into.
const (
	maxBody   = 32 << 20 // bytes
	maxDepth  = 64       // of arrays and objects
	maxKeys   = 10_000   // members of one object
	maxValues = 1 << 20  // of the whole body
)

type field struct {
	entry    string
	segments []string
	op       string // "", "=" or "!="
	any      globs
}

func compileFields(entries []string) (out []field, err error) {
	for _, e := range entries {
		f := field{entry: e}
		path, rest, found := strings.Cut(e, "=")
		if found {
			f.op = "="
			if p, not := strings.CutSuffix(path, "!"); not {
				path, f.op = p, "!="
			}
			if f.any, err = compileGlobs(rest); err != nil {
				return nil, fmt.Errorf("refused field %.60q: %w", e, err)
			}
		}
		f.segments = strings.Split(path, ".")
		for _, s := range f.segments {
			if s == "" || len(s) > 64 || s != "*" && s != "**" && strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '*' }) {
				return nil, fmt.Errorf("refused field %.60q: %.40q is not a segment (a name, * or **)", e, s)
			}
		}
		if len(f.segments) > 16 || len(e) > maxText {
			return nil, fmt.Errorf("refused field %.60q is too long", e)
		}
		out = append(out, f)
	}
	return out, nil
}

// globs are alternatives, lower case.
type globs []string

func compileGlobs(s string) (globs, error) {
	g := strings.Split(strings.ToLower(s), "|")
	for _, a := range g {
		if a == "" || strings.Trim(a, "*") == "" {
			return nil, fmt.Errorf("%.40q has an alternative that says nothing", s)
		}
	}
	return g, nil
}

func (g globs) match(s string) bool {
	s = strings.ToLower(s)
	for _, a := range g {
		if globMatch(a, s) {
			return true
		}
	}
	return false
}

// globMatch takes time in proportion to both: each part is looked for once,
// from where the last one ended.
func globMatch(glob, s string) bool {
	parts := strings.Split(glob, "*")
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok || len(parts) == 1 {
		return ok && s == ""
	}
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}

// at is how far one entry has got on the way to the value at hand.
type at struct {
	f *field
	i int
}

// walker goes through a body once.
type walker struct {
	dec    *json.Decoder
	values int
}

// checkFields refuses a body that is not one clean JSON value or that has one of
// the fields. What two parsers may read differently (double names, broken
// UTF-8, control characters in names) is refused too: the server's is not ours.
func checkFields(body []byte, fields []field) error {
	if !utf8.Valid(body) || !json.Valid(body) {
		return refuse("the body is not JSON, and this secret's definition has to look into it")
	}
	start := make([]at, 0, len(fields))
	for i := range fields {
		start = spread(start, at{&fields[i], 0})
	}
	w := &walker{dec: json.NewDecoder(bytes.NewReader(body))}
	w.dec.UseNumber()
	return w.value(start, 0)
}

// spread adds s, and what "**" standing for nothing makes of it.
func spread(list []at, s at) []at {
	for {
		list = append(list, s)
		if s.i >= len(s.f.segments) || s.f.segments[s.i] != "**" {
			return list
		}
		s.i++
	}
}

// step returns where the entries are after one member or element further.
func step(from []at, name string, member bool) (to []at) {
	for _, s := range from {
		if s.i >= len(s.f.segments) {
			continue
		}
		switch seg := s.f.segments[s.i]; {
		case seg == "**":
			// What "**" stands for may go on; that it ended here is in from, too.
			to = spread(to, s)
		case seg == "*", member && strings.EqualFold(seg, name):
			to = spread(to, at{s.f, s.i + 1})
		}
	}
	return to
}

// value reads one value to which the entries in here lead.
func (w *walker) value(here []at, depth int) error {
	if w.values++; w.values > maxValues {
		return refuse("the body has more than %d values, which is more than is looked through", maxValues)
	}
	if depth > maxDepth {
		return refuse("the body is nested more than %d deep", maxDepth)
	}
	here = fewer(here)
	t, err := w.dec.Token()
	if err != nil {
		return refuse("the body cannot be read as JSON")
	}
	d, composite := t.(json.Delim)
	if !composite {
		return scalar(here, t)
	}
	if w.dec.More() {
		for _, s := range here {
			if s.i == len(s.f.segments) && s.f.op == "" {
				return refused(s.f)
			}
		}
	}
	names := map[string]bool{}
	for w.dec.More() {
		name := ""
		if d == '{' {
			t, err := w.dec.Token()
			if err != nil {
				return refuse("the body cannot be read as JSON")
			}
			name, _ = t.(string)
			switch {
			case names[name]:
				return refuse("the body has the field %.60q twice", name)
			case len(names) >= maxKeys:
				return refuse("the body has an object of more than %d fields", maxKeys)
			case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || r == utf8.RuneError }):
				return refuse("the body has a field %.60q, which servers may read in different ways", name)
			}
			names[name] = true
		}
		if err := w.value(step(here, name, d == '{'), depth+1); err != nil {
			return err
		}
	}
	if _, err := w.dec.Token(); err != nil { // the closing one
		return refuse("the body cannot be read as JSON")
	}
	return nil
}

// fewer takes doubles out, so that "**" cannot multiply with depth.
func fewer(list []at) []at {
	out := list[:0:0]
	for _, s := range list {
		double := false
		for _, o := range out {
			double = double || o == s
		}
		if !double {
			out = append(out, s)
		}
	}
	return out
}

func scalar(here []at, t json.Token) error {
	if t == nil {
		return nil // null says nothing
	}
	text := fmt.Sprint(t)
	for _, s := range here {
		if s.i != len(s.f.segments) {
			continue
		}
		if s.f.op == "" || s.f.any.match(text) == (s.f.op == "=") {
			return refused(s.f)
		}
	}
	return nil
}

func refused(f *field) error {
	return refuse("the body has a field that this secret's definition refuses: %s (it would have the server fetch or send by itself)", f.entry)
}
