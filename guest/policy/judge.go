package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Connect judges a connection before anything is resolved or dialled.
//
//  1. a deny rule about all of the destination: deny
//  2. no rule that permits at least some request: deny
//  3. an ask rule about all of the destination, unless a rule that permits is
//     more exact: ask. Ask rules about some requests only ask when such a
//     request comes.
//  4. otherwise allow; and if a rule that needs to see requests is about the
//     destination, whatever its action, then each request is judged too
func (e *Egress) Connect(d Destination) Verdict {
	m := e.reaching(d)
	for _, r := range m {
		if r.action == deny && !r.narrow() {
			return denied(d.String(), r)
		}
	}
	v := m.decide(d.String(), func(r *rule) bool { return r.action == ask && !r.narrow() })
	if v.Rule == nil {
		v.Reason = e.nothing(d)
		return v
	}
	for _, r := range m {
		v.Inspect = v.Inspect || r.inspects()
		v.Bound = v.Bound || r.src.Secret != ""
		if r.permits() && !r.narrow() {
			v.limit(r)
		}
	}
	return v
}

// Request judges one request on a connection that Connect allowed, or about
// which it asked and somebody said yes: that question is not put again.
//
//  1. a deny rule about the request: deny
//  2. a path or method that cannot be judged: deny
//  3. no rule that permits it: deny
//  4. an ask rule that has not been answered, as in Connect: ask
//  5. otherwise allow, with the secret of the rules that permit it; if they
//     name two, deny
func (e *Egress) Request(d Destination, r Request) Verdict {
	c := e.Connect(d)
	if c.Action != allow && c.Action != ask {
		return c
	}
	if !validMethod(r.Method) {
		return Verdict{Action: deny, Reason: fmt.Sprintf("%s is not a method of HTTP that can be judged.", strconv.QuoteToASCII(clip(r.Method)))}
	}
	m := e.reaching(d)
	path, read, err := m.read(r.Path)
	if err != nil {
		return Verdict{Action: deny, Reason: fmt.Sprintf("The path of a %s request to %s cannot be judged: %v.", r.Method, d, err)}
	}
	what := r.Method + " " + plain(path, 200) + " on " + d.String()
	m = slices.DeleteFunc(m, func(ru *rule) bool { return !ru.covers(r.Method, read) })
	for _, ru := range m {
		if ru.action == deny {
			return denied(what, ru)
		}
	}
	answered := c.Action == ask // the question about all of d
	v := m.decide(what, func(ru *rule) bool { return ru.action == ask && (ru.narrow() || !answered) })
	v.Inspect, v.Bound = c.Inspect, c.Bound
	if v.Rule == nil {
		v.Reason = fmt.Sprintf("No rule allows %s.", what)
		return v
	}
	for _, ru := range m { // all that are left permit
		v.limit(ru)
		switch s := ru.src.Secret; {
		case s == "" || s == v.Secret:
		case v.Secret != "":
			return Verdict{Action: deny, Rule: ru.src, Inspect: c.Inspect, Bound: true,
				Reason: fmt.Sprintf("Two secrets, %s and %s, are for %s; only one can be added.", v.Secret, s, what)}
		default:
			v.Secret = s
		}
	}
	return v
}

// matched are rules that have been found to be about something.
type matched []*rule

func (e *Egress) reaching(d Destination) (m matched) {
	if e == nil || d.Port == 0 {
		return nil
	}
	for i := range e.rules {
		if e.rules[i].reaches(d) {
			m = append(m, &e.rules[i])
		}
	}
	return m
}

// read returns a path in its normal form, and if a rule is about paths, in all
// the forms in which a server may read it. If none is, a path that means
// another one ("//", "..") passes: it decides nothing.
func (m matched) read(p string) (path string, read []string, err error) {
	if path, err = normal(p); err != nil {
		return "", nil, err
	}
	if slices.ContainsFunc(m, func(r *rule) bool { return len(r.paths) > 0 }) {
		read, err = forms(path)
	}
	return path, read, err
}

// decide weighs the rules that ask against the others that permit. A rule that
// asks at another time permits too, but stops no question; nor does what a
// repository would like, since it can never widen what the user says.
func (m matched) decide(what string, asks func(*rule) bool) Verdict {
	var question, yes *rule
	weight := func(r *rule) int {
		if r.action == ask && !asks(r) || r.action == allow && r.requested() {
			return -1
		}
		return r.weight()
	}
	for _, r := range m {
		switch {
		case !r.permits():
		case asks(r):
			if question == nil || weight(r) > weight(question) {
				question = r
			}
		case yes == nil || weight(r) > weight(yes):
			yes = r
		}
	}
	switch {
	case question != nil && (yes == nil || weight(yes) <= weight(question)):
		return Verdict{Action: ask, Rule: question.src, Reason: fmt.Sprintf("%s waits for an answer, because of %s.", what, question)}
	case yes != nil:
		return Verdict{Action: allow, Rule: yes.src, Reason: fmt.Sprintf("%s is allowed by %s.", what, yes)}
	}
	return Verdict{Action: deny}
}

// weight is how exact a rule that permits is: by its host, then by its paths,
// then by its methods. An answer counts more than any question.
func (r *rule) weight() int {
	w := 4 * r.host.exactness()
	if len(r.paths) > 0 {
		w += 2
	}
	if len(r.methods) > 0 {
		w++
	}
	if r.src.Origin == Answered {
		w += 4 * 4 * maxName
	}
	return w
}

// limit adds the limits of one more rule that matches: the least one holds.
func (v *Verdict) limit(r *rule) {
	if up := r.src.MaxUpBytes; up > 0 && (v.MaxUp == 0 || up < v.MaxUp) {
		v.MaxUp = up
	}
	if r.src.Rate > 0 {
		v.Rated = append(v.Rated, r.src)
	}
}

func denied(what string, r *rule) Verdict {
	return Verdict{Action: deny, Rule: r.src, Reason: fmt.Sprintf("%s is denied by %s.", what, r)}
}

// nothing says why no rule is about d: what nearly is helps to mend it.
func (e *Egress) nothing(d Destination) string {
	var ports []string
	if e != nil {
		for i := range e.rules {
			if r := &e.rules[i]; r.permits() && r.host.match(d.Host, false) {
				for _, p := range r.ports {
					if s := strconv.Itoa(int(p)); len(ports) < 8 && !slices.Contains(ports, s) {
						ports = append(ports, s)
					}
				}
			}
		}
	}
	if len(ports) > 0 {
		return fmt.Sprintf("No rule allows port %d of %s, only %s.", d.Port, d.Host, strings.Join(ports, ", "))
	}
	if _, is := d.Host.Addr(); is {
		return fmt.Sprintf("No rule names the address %s; a pattern does not cover addresses.", d)
	}
	if d.Host.IsHost() {
		return fmt.Sprintf("No rule names %s, the machine that this guest runs on, with port %d.", d.Host, d.Port)
	}
	if d.Host == (Host{}) || d.Port == 0 {
		return "There is no destination."
	}
	return fmt.Sprintf("No rule allows %s.", d)
}
