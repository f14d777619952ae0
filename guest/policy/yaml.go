package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/dustin/go-humanize"
	"gopkg.in/yaml.v3"

	"github.com/carrel-vm/carrel/guest/api"
)

// Bounds of a policy file.
const (
	maxFile     = 1 << 20 // bytes
	maxProblems = 64
	maxDepth    = 16
	maxText     = 2048 // bytes of one value
)

// reader walks the nodes of a file and collects what is wrong with it, so that
// one look mends all of it. It takes plain YAML only: no anchors, aliases, merge
// keys or tags, so that what a person reads is what holds.
type reader struct {
	name     string
	problems []*api.PolicyProblem
	// keys is told of the keys that a mapping may have, if it is set: the schema
	// is compared with them.
	keys func(what string, names []string)
}

func (r *reader) problem(n *yaml.Node, format string, args ...any) {
	line, col := 0, 0
	if n != nil {
		line, col = n.Line, n.Column
	}
	if len(r.problems) < maxProblems {
		r.problems = append(r.problems, &api.PolicyProblem{Line: int32(line), Column: int32(col), Text: plain(fmt.Sprintf(format, args...), 1024)})
	}
}

// document returns the root node, or nil if the file says nothing.
func (r *reader) document(content []byte) *yaml.Node {
	if len(content) > maxFile {
		r.problem(nil, "the file has %d bytes; at most %d are possible", len(content), maxFile)
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(content))
	var doc, more yaml.Node
	switch err := decode(dec, &doc); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		r.syntax(err)
		return nil
	}
	if err := decode(dec, &more); err == nil {
		r.problem(&more, "the file has a second document (one is possible)")
		return nil
	} else if !errors.Is(err, io.EOF) {
		r.syntax(err)
		return nil
	}
	if len(doc.Content) != 1 {
		return nil
	}
	if !r.plainYAML(doc.Content[0], 0) {
		return nil
	}
	root := doc.Content[0]
	if isNull(root) || (root.Kind == yaml.SequenceNode || root.Kind == yaml.MappingNode) && len(root.Content) == 0 {
		return nil
	}
	return root
}

// decode reads one document. What the library panics with is an error of the
// file: it is foreign, and the daemon lives on.
func decode(dec *yaml.Decoder, n *yaml.Node) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("yaml: %v", p)
		}
	}()
	return dec.Decode(n)
}

// syntax reports an error of the library. It says the line in its text only;
// without it the problem is shown without one.
func (r *reader) syntax(err error) {
	n := &yaml.Node{}
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if _, scan := fmt.Sscanf(text, "line %d:", &n.Line); scan == nil {
		_, text, _ = strings.Cut(text, ": ")
		n.Column = 1
	}
	r.problem(n, "this is not YAML: %s (a host that begins with * needs quotes: \"*.example.org\")", text)
}

func (r *reader) plainYAML(n *yaml.Node, depth int) bool {
	switch {
	case depth > maxDepth:
		r.problem(n, "this is nested too deeply")
		return false
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		r.problem(n, "anchors and aliases are not possible here (write it out; quote a host that begins with *)")
		return false
	case n.Style&yaml.TaggedStyle != 0:
		r.problem(n, "tags are not possible here")
		return false
	case n.Kind == yaml.ScalarNode && len(n.Value) > maxText:
		r.problem(n, "this value is longer than %d bytes", maxText)
		return false
	}
	good := true
	for _, c := range n.Content {
		good = r.plainYAML(c, depth+1) && good
	}
	return good
}

// field is one key that may be in a mapping.
type field struct {
	name string
	read func(v *yaml.Node)
}

// mapping reads the keys of a mapping; each may be there once. Null is an empty
// one.
func (r *reader) mapping(n *yaml.Node, what string, fields ...field) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.problem(n, "%s is a mapping (key: value), not %s", what, kindOf(n))
		return
	}
	var names []string
	for _, f := range fields {
		names = append(names, f.name)
	}
	if r.keys != nil {
		r.keys(what, names)
	}
	r.pairs(n, func(k, v *yaml.Node) {
		for _, f := range fields {
			if f.name == k.Value {
				f.read(v)
				return
			}
		}
		r.problem(k, "unknown key %q in %s (possible: %s)", clip(k.Value), what, strings.Join(names, ", "))
	})
}

// pairs calls fn for each key that is text and there for the first time.
func (r *reader) pairs(n *yaml.Node, fn func(k, v *yaml.Node)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.Tag != "!!str" {
			r.problem(k, "a key is text, not %s", kindOf(k))
			continue
		}
		if line, twice := seen[k.Value]; twice {
			r.problem(k, "the key %q is there twice, first in line %d", clip(k.Value), line)
			continue
		}
		seen[k.Value] = k.Line
		fn(k, v)
	}
}

// list calls fn for each entry. Null is an empty list; a single value, where
// single is set, a list of one.
func (r *reader) list(n *yaml.Node, what string, single bool, fn func(*yaml.Node)) {
	switch {
	case isNull(n):
	case n.Kind == yaml.SequenceNode:
		for _, c := range n.Content {
			fn(c)
		}
	case single && n.Kind == yaml.ScalarNode:
		fn(n)
	default:
		r.problem(n, "%s is a list, not %s", what, kindOf(n))
	}
}

func (r *reader) text(n *yaml.Node, what string) string {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		r.problem(n, "%s is text, not %s (quote it if that is meant)", what, kindOf(n))
		return ""
	}
	return n.Value
}

func (r *reader) boolean(n *yaml.Node, what string) (v bool) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" || n.Decode(&v) != nil {
		r.problem(n, "%s is true or false, not %s", what, kindOf(n))
		return false
	}
	return v
}

func (r *reader) number(n *yaml.Node, what string, low, high int64) int64 {
	var v int64
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || n.Decode(&v) != nil {
		r.problem(n, "%s is a number, not %s", what, kindOf(n))
		return 0
	}
	if low == high && v != low {
		r.problem(n, "%s is %d, not %d", what, low, v)
		return 0
	}
	if v < low || v > high {
		r.problem(n, "%s is between %d and %d, not %d", what, low, high, v)
		return 0
	}
	return v
}

// bytes reads an amount with its unit: 512KiB, 10MB, 4GiB.
func (r *reader) bytes(n *yaml.Node, what string, low, high int64) int64 {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		r.problem(n, "%s is an amount with its unit (10MiB), not %s", what, kindOf(n))
		return 0
	}
	v, err := humanize.ParseBytes(n.Value)
	if err != nil {
		r.problem(n, "%s is an amount with its unit (10MiB), not %q", what, clip(n.Value))
		return 0
	}
	if v < uint64(low) || v > uint64(high) {
		r.problem(n, "%s is between %s and %s, not %q", what, humanize.IBytes(uint64(low)), humanize.IBytes(uint64(high)), clip(n.Value))
		return 0
	}
	return int64(v)
}

func isNull(n *yaml.Node) bool {
	return n == nil || n.Kind == 0 || n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "nothing"
	case n.Tag == "!!int" || n.Tag == "!!float":
		return "the number " + clip(n.Value)
	case n.Tag == "!!bool":
		return clip(n.Value)
	}
	return fmt.Sprintf("%q", clip(n.Value))
}
