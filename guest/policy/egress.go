package policy

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

// Bounds of the rules of one guest.
const (
	maxRules     = 4096
	maxPorts     = 64 // of one rule, as the next ones
	maxMethods   = 16
	maxPatterns  = 256
	maxPattern   = 512 // bytes
	maxPath      = 8192
	maxOrigin    = 256
	maxMethodLen = 32
)

// Egress are the compiled rules of one guest. They do not change; the zero
// value denies all.
//
// Of the rules that match, deny beats the others. Between ask and allow the more
// exact one counts, so that "ask *" asks about what no other rule names: the
// name itself before a longer suffix before a shorter one before "*", and for
// the same host, one with paths before one with methods before one with neither.
// Between equals, ask beats allow; but an answer that somebody gave (see Answer)
// beats what asked. Without a rule: deny.
type Egress struct {
	rules []rule
}

// NewEgress compiles rules; one that is malformed is an error that names its
// origin.
func NewEgress(rules []*api.EgressRule) (*Egress, error) {
	if len(rules) > maxRules {
		return nil, fmt.Errorf("there are %d egress rules; at most %d are possible", len(rules), maxRules)
	}
	e := &Egress{}
	for i, r := range rules {
		c, err := compile(r)
		if err != nil {
			from := "number " + fmt.Sprint(i+1)
			if o := r.GetOrigin(); o != "" {
				from = "of " + plain(o, maxOrigin)
			}
			return nil, fmt.Errorf("egress rule %s: %w", from, err)
		}
		e.rules = append(e.rules, c)
	}
	return e, nil
}

// CheckRule says what is wrong with one rule, or nil.
func CheckRule(r *api.EgressRule) error {
	_, err := compile(r)
	return err
}

// Verdict is a decision.
type Verdict struct {
	// Action is ALLOW, DENY or ASK; anything else is to be taken as DENY.
	Action api.EgressAction
	// Inspect says that TLS has to be terminated so that each request can be
	// judged; Action is then what holds for the connection itself.
	Inspect bool
	// Rule is the rule that decided; nil if none matched. Not to be changed.
	Rule *api.EgressRule
	// Reason is one sentence for people, plain text without control characters.
	Reason string
	// Secret names the secret to add to this request; only Request sets it.
	Secret string
	// Bound says that a secret belongs to this destination: credentials that the
	// guest sends there have to be taken off even where none is added.
	Bound bool
	// MaxUp is the least of the limits of the rules that match, in bytes out of
	// the guest; 0: none. Of Connect it is for the connection, of Request for the
	// request.
	MaxUp int64
	// Rated are the rules with a rate that match. Each rate is for all
	// connections of its rule together. Not to be changed.
	Rated []*api.EgressRule
}

// Request is one HTTP request to judge.
type Request struct {
	Method string
	// Path is the request's path as it was sent, escaped and without its query;
	// it is normalised before it is matched, and one that cannot be is denied.
	Path string
}

// Answered is the origin of the rules that somebody's answer made. Only Answer
// sets it: Decide and the policy files never let it in.
const Answered = "answer"

// Answer makes the rule that holds after somebody's answer about a destination
// or, if r is not nil, about one request: yes or no. A path that no rule can be
// about, such as one with "..", makes a rule that does not compile: that answer
// can only be for once.
func Answer(d Destination, r *Request, yes bool) *api.EgressRule {
	a := &api.EgressRule{Action: api.EgressAction_EGRESS_ACTION_DENY, Host: d.Host.String(), Ports: []uint32{uint32(d.Port)}, Origin: Answered}
	if yes {
		a.Action = api.EgressAction_EGRESS_ACTION_ALLOW
	}
	if r != nil {
		a.Methods = []string{r.Method}
		a.Paths = []string{r.Path}
		if p, err := normal(r.Path); err == nil {
			a.Paths = []string{p}
			if all, err := forms(p); err == nil {
				a.Paths = all
			}
		}
	}
	return a
}

// clone copies rules, so that what is granted cannot be changed from outside. A
// missing one becomes one that does not compile.
func clone(rules []*api.EgressRule) []*api.EgressRule {
	out := make([]*api.EgressRule, 0, len(rules))
	for _, r := range rules {
		if r == nil {
			r = &api.EgressRule{}
		}
		out = append(out, proto.Clone(r).(*api.EgressRule))
	}
	return out
}
