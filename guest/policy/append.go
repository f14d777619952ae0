package policy

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"gopkg.in/yaml.v3"

	"github.com/carrel-vm/carrel/guest/api"
)

// AppendRule returns a user's policy file with one more rule: what an answer
// "always" writes. All other bytes, comments too, stay as they are. An ask rule
// about exactly the same becomes the new rule, since it would go on asking; a
// rule that is there already changes nothing. The result is read again: it is
// never a file that says something else.
func AppendRule(content []byte, r *api.EgressRule) ([]byte, error) {
	r = proto.Clone(r).(*api.EgressRule)
	r.Origin = ""
	if err := CheckRule(r); err != nil {
		return nil, err
	}
	old, problems := ParseFile(content, "policy.yaml")
	if len(problems) > 0 {
		return nil, refuse("policy_invalid", "mend it first: carrel policy check shows all of it", "%s", Problems("policy.yaml", problems[:1]))
	}
	want := clone(old.Rules)
	at := slices.IndexFunc(want, func(o *api.EgressRule) bool { return sameRule(o, r) })
	if at >= 0 {
		return content, nil
	}
	asked := -1
	if r.Action == allow {
		asked = slices.IndexFunc(want, func(o *api.EgressRule) bool {
			o = proto.Clone(o).(*api.EgressRule)
			return o.Action == ask && r.Secret == "" && sameRequest(o, r)
		})
	}
	root, err := rootOf(content)
	if err != nil {
		return nil, err
	}
	var next []byte
	if asked >= 0 {
		next, err = turnIntoAllow(content, root, asked)
		want[asked].Action = allow
	} else {
		next, err = insertRule(content, root, r)
		want = append(want, r)
	}
	if err != nil {
		return nil, err
	}
	now, problems := ParseFile(next, "policy.yaml")
	if len(problems) > 0 || !sameFile(old, now, want) {
		return nil, refuse("policy_not_changed", "add the rule by hand: "+strings.Join(ruleLines(r), " "), "the policy file is written in a way that a rule cannot be added to")
	}
	return next, nil
}

// sameRule compares all but the origin.
func sameRule(a, b *api.EgressRule) bool {
	a, b = proto.Clone(a).(*api.EgressRule), proto.Clone(b).(*api.EgressRule)
	a.Origin, b.Origin = "", ""
	return proto.Equal(a, b)
}

// sameRequest compares what two rules are about.
func sameRequest(a, b *api.EgressRule) bool {
	ca, aerr := compile(a)
	cb, berr := compile(b)
	return aerr == nil && berr == nil && ca.host == cb.host && slices.Equal(ca.ports, cb.ports) &&
		slices.Equal(a.Methods, b.Methods) && slices.Equal(a.Paths, b.Paths)
}

func sameFile(old, now *File, rules []*api.EgressRule) bool {
	a, b := *old, *now
	return slices.EqualFunc(now.Rules, rules, sameRule) && slices.Equal(a.Presets, b.Presets) && len(a.Defined) == len(b.Defined) &&
		proto.Equal(a.Upstream, b.Upstream) && a.MaxCPUs == b.MaxCPUs && a.MaxMemoryMiB == b.MaxMemoryMiB && a.MaxDiskMiB == b.MaxDiskMiB &&
		(a.MaxShares == nil) == (b.MaxShares == nil) && a.MinBoundary == b.MinBoundary && a.Host.same(b.Host)
}

func rootOf(content []byte) (*yaml.Node, error) {
	r := &reader{}
	root := r.document(content)
	if len(r.problems) > 0 {
		return nil, errors.New(r.problems[0].Text)
	}
	return root, nil
}

// value returns the value of a key, or nil.
func value(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// turnIntoAllow replaces the word "ask" of one rule.
func turnIntoAllow(content []byte, root *yaml.Node, i int) ([]byte, error) {
	rules := value(value(root, "egress"), "rules")
	if rules == nil || i >= len(rules.Content) {
		return nil, errors.New("the rule was not found again")
	}
	for j, k := range rules.Content[i].Content {
		if j%2 != 0 || k.Value != "ask" {
			continue
		}
		start, err := offset(content, k)
		if err != nil {
			return nil, err
		}
		if bytes.HasPrefix(content[start:], []byte("ask")) {
			return slices.Concat(content[:start], []byte("allow"), content[start+len("ask"):]), nil
		}
	}
	return nil, errors.New("the rule is written in an unusual way (change ask to allow in policy.yaml)")
}

// offset returns where a node begins. yaml.v3 counts columns in characters.
func offset(content []byte, n *yaml.Node) (int, error) {
	at := 0
	for line := 1; line < n.Line; line++ {
		i := bytes.IndexByte(content[at:], '\n')
		if i < 0 {
			return 0, errors.New("the file ends before its line " + strconv.Itoa(n.Line))
		}
		at += i + 1
	}
	for col := 1; col < n.Column && at < len(content); col++ {
		at++
		for at < len(content) && content[at]&0xc0 == 0x80 {
			at++
		}
	}
	return at, nil
}

// insertRule adds a rule at the end of egress.rules, or adds what of it is
// missing. A file that has it in the flow style ([...]) is left to its owner.
func insertRule(content []byte, root *yaml.Node, r *api.EgressRule) ([]byte, error) {
	unusual := refuse("policy_not_changed", "add the rule by hand: "+strings.Join(ruleLines(r), " "), "the policy file is written in a way that a rule cannot be added to")
	if len(content) > 0 && content[len(content)-1] != '\n' {
		content = append(slices.Clone(content), '\n')
	}
	write := func(indent int, lines ...string) string {
		return strings.Repeat(" ", indent) + strings.Join(lines, "\n"+strings.Repeat(" ", indent)) + "\n"
	}
	if root == nil {
		if !onlyComments(content) {
			return nil, unusual
		}
		return append(slices.Clone(content), write(0, "version: 1", "egress:", "  rules:")+write(4, ruleLines(r)...)...), nil
	}
	if root.Kind != yaml.MappingNode || root.Style&yaml.FlowStyle != 0 || root.Column != 1 {
		return nil, unusual
	}
	egress, rules := value(root, "egress"), value(value(root, "egress"), "rules")
	switch {
	case egress == nil:
		return append(slices.Clone(content), write(0, "egress:", "  rules:")+write(4, ruleLines(r)...)...), nil
	case rules != nil && rules.Kind == yaml.SequenceNode && rules.Style&yaml.FlowStyle == 0 && len(rules.Content) > 0:
		after := lastLine(rules)
		at, err := offset(content, &yaml.Node{Line: after + 1})
		if err != nil {
			at = len(content)
		}
		return slices.Concat(content[:at], []byte(write(rules.Column-1, ruleLines(r)...)), content[at:]), nil
	case rules == nil && egress.Kind == yaml.MappingNode && egress.Style&yaml.FlowStyle == 0 && len(egress.Content) > 0:
		at, err := offset(content, &yaml.Node{Line: egress.Content[0].Line})
		if err != nil {
			return nil, err
		}
		text := write(egress.Column-1, "rules:") + write(egress.Column+1, ruleLines(r)...)
		return slices.Concat(content[:at], []byte(text), content[at:]), nil
	}
	return nil, unusual
}

func onlyComments(content []byte) bool {
	for line := range bytes.Lines(content) {
		if l := bytes.TrimSpace(line); len(l) > 0 && l[0] != '#' {
			return false
		}
	}
	return true
}

// lastLine is the last line on which something of n begins; the values of a
// policy file are on one line, and the result is read again in any case.
func lastLine(n *yaml.Node) int {
	last := n.Line
	for _, c := range n.Content {
		last = max(last, lastLine(c))
	}
	return last
}

// ruleLines writes a rule as a policy file has it, all values quoted.
func ruleLines(r *api.EgressRule) []string {
	word := map[api.EgressAction]string{allow: "allow", ask: "ask"}[r.Action]
	if word == "" {
		word = "deny"
	}
	list := func(s []string) string {
		quoted := make([]string, len(s))
		for i, v := range s {
			quoted[i] = strconv.Quote(v)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	l := []string{"- " + word + ": " + strconv.Quote(r.Host)}
	if len(r.Ports) > 0 {
		l = append(l, "  ports: "+strings.ReplaceAll(fmt.Sprint(r.Ports), " ", ", "))
	}
	if len(r.Methods) > 0 {
		l = append(l, "  methods: "+list(r.Methods))
	}
	if len(r.Paths) > 0 {
		l = append(l, "  paths: "+list(r.Paths))
	}
	if r.MaxUpBytes > 0 {
		l = append(l, fmt.Sprintf("  max-up: %dB", r.MaxUpBytes))
	}
	if r.Rate > 0 {
		l = append(l, fmt.Sprintf("  rate: %dB", r.Rate))
	}
	if r.Secret != "" {
		l = append(l, "  secret: "+r.Secret)
	}
	for _, f := range []struct {
		name string
		on   bool
	}{{"wide", r.Wide}, {"private", r.Private}, {"inspect", r.Inspect}} {
		if f.on {
			l = append(l, "  "+f.name+": true")
		}
	}
	return l
}
