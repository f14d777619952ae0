package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/carrel-vm/carrel/guest/api"
)

// maxNames bounds the presets and the secrets of a request.
const maxNames = 64

// boundaries are the walls there are, the strongest first.
var boundaries = []string{"vm", "gvisor", "process"}

// EgressRules returns a copy of the rules in effect, each with its origin: the
// user's policy file, presets, what was asked for, and what the secrets bring.
// What was changed since the guest started comes on top.
func (g *Grant) EgressRules() []*api.EgressRule { return clone(g.egress) }

// Secrets returns the names of the secrets that the guest uses:
// those of the request, and those that a rule of the policy file adds.
func (g *Grant) Secrets() []string { return slices.Clone(g.secrets) }

// Boundary returns the wall that was asked for; empty: the first of Boundaries
// that works here.
func (g *Grant) Boundary() string { return g.spec.Boundary }

// Boundaries returns the walls that are good enough for this guest, the
// strongest first. The guest gets the first one that works, and none that is
// not in the list.
func (g *Grant) Boundaries() []string { return slices.Clone(g.walls) }

// decideBoundary returns the walls that may be used. A wall that was asked for
// is the only one; it must be as strong as the user's minimum.
func decideBoundary(want, minimum string) ([]string, error) {
	weakest := len(boundaries) - 1
	if minimum != "" {
		if weakest = slices.Index(boundaries, minimum); weakest < 0 {
			return nil, refuse("bad_boundary", "use one of "+strings.Join(boundaries, ", "), "the least boundary %q in the policy is not one", clip(minimum))
		}
	}
	if want == "" {
		return boundaries[: weakest+1 : weakest+1], nil
	}
	i := slices.Index(boundaries, want)
	switch {
	case i < 0:
		return nil, refuse("bad_boundary", "use one of "+strings.Join(boundaries, ", "), "boundary %q is unknown", clip(want))
	case i > weakest:
		return nil, refuse("boundary_too_weak", "use --boundary "+minimum+", or change boundary.minimum in policy.yaml", "boundary %q is weaker than %q, which the policy demands", want, minimum)
	}
	return []string{want}, nil
}

// decideEgress joins the rules in effect, and the names of the secrets they use,
// and checks them. The order does not count: deny beats ask and allow wherever
// it stands, so nobody's request can take back what the user denies.
//
//  1. the policy file's rules and presets
//  2. the presets and rules of the request
//  3. what its secrets bring
func decideEgress(want *api.EgressSpec, rules Rules) (all []*api.EgressRule, used []string, err error) {
	if len(want.GetPresets()) > maxNames || len(want.GetSecrets()) > maxNames || len(want.GetRules()) > maxRules {
		return nil, nil, refuse("too_large", "ask for less", "%d presets, %d secrets and %d rules asked for; %d, %d and %d are allowed",
			len(want.GetPresets()), len(want.GetSecrets()), len(want.GetRules()), maxNames, maxNames, maxRules)
	}
	all = clone(rules.Egress)
	for _, names := range [][]string{rules.Presets, want.GetPresets()} {
		for _, name := range names {
			p, err := preset(name, rules.Defined)
			if err != nil {
				return nil, nil, err
			}
			all = append(all, p...)
		}
	}
	for i, r := range want.GetRules() {
		if r == nil {
			return nil, nil, refuse("bad_rule", "", "egress rule %d is missing", i+1)
		}
		if r.Origin == "" {
			r.Origin = "the request"
		}
		all = append(all, clone([]*api.EgressRule{r})...)
	}
	used = slices.Clone(want.GetSecrets())
	for _, r := range all {
		if r.Origin == Answered { // only what is added to a grant can be an answer
			r.Origin = "the request"
		}
		if r.Secret != "" && !slices.Contains(used, r.Secret) {
			used = append(used, r.Secret)
		}
	}
	var brought []*api.EgressRule
	for _, name := range used {
		list, known := rules.SecretRules[name]
		if !known {
			return nil, nil, refuse("unknown_secret", "carrel secret set "+plain(clip(name), 64), "there is no secret %q%s", clip(name), among(rules.SecretRules))
		}
		for _, r := range clone(list) {
			if r.Action != deny && r.Secret != name {
				return nil, nil, refuse("bad_rule", "", "the definition of secret %q brings a rule that is not its own", clip(name))
			}
			r.Origin = "secret " + name
			brought = append(brought, r)
		}
	}
	for _, r := range all {
		if r.Secret != "" && !bound(r, brought) {
			return nil, nil, refuse("bad_rule", "leave the secret out of the rule, or set it again with this host", "the rule of %s adds secret %q to %q, where it does not belong", plain(r.Origin, maxOrigin), clip(r.Secret), clip(r.Host))
		}
	}
	all = append(all, brought...)
	if _, err := NewEgress(all); err != nil {
		return nil, nil, refuse("bad_rule", "", "%v", err)
	}
	return all, used, nil
}

// bound says whether a secret's definition names the host and the ports of a
// rule that adds it. A rule can say more of methods and paths, never of where
// the secret goes.
func bound(r *api.EgressRule, brought []*api.EgressRule) bool {
	mine, err := compile(r)
	if err != nil {
		return true // and refused with its own words
	}
	for _, port := range mine.ports {
		if !slices.ContainsFunc(brought, func(b *api.EgressRule) bool {
			c, err := compile(b)
			return err == nil && b.Secret == r.Secret && c.host == mine.host && slices.Contains(c.ports, port)
		}) {
			return false
		}
	}
	return true
}

func among[T any](known map[string]T) string {
	if len(known) == 0 {
		return ": there are none yet"
	}
	var names []string
	for n := range known {
		names = append(names, n)
	}
	slices.Sort(names)
	return ": there are " + plain(strings.Join(names, ", "), 512)
}

// RuleList are rules that go through JSON as the API's messages do, so that
// what a keeper reads is what the daemon had.
type RuleList []*api.EgressRule

// MarshalJSON writes a list of protojson messages.
func (l RuleList) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('[')
	for i, r := range l {
		m, err := protojson.Marshal(r)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(m)
	}
	b.WriteByte(']')
	return b.Bytes(), nil
}

// UnmarshalJSON reads what MarshalJSON wrote; an unknown field is an error,
// since it could be one that narrows the rule.
func (l *RuleList) UnmarshalJSON(data []byte) error {
	var raw []json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return err
	}
	*l = nil
	for i, m := range raw {
		r := &api.EgressRule{}
		if err := protojson.Unmarshal(m, r); err != nil {
			return fmt.Errorf("egress rule %d: %w", i+1, err)
		}
		*l = append(*l, r)
	}
	return nil
}
