package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/net/publicsuffix"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/hypervisor"
)

const (
	allow = api.EgressAction_EGRESS_ACTION_ALLOW
	deny  = api.EgressAction_EGRESS_ACTION_DENY
	ask   = api.EgressAction_EGRESS_ACTION_ASK
)

// rule is an EgressRule that was checked.
type rule struct {
	src    *api.EgressRule
	action api.EgressAction
	host   pattern
	// ports are those it is about; nil: all, which only a deny rule is.
	ports   []uint16
	methods []string
	paths   []*regexp.Regexp
}

// narrow says whether the rule is about some requests only.
func (r *rule) narrow() bool { return len(r.methods) > 0 || len(r.paths) > 0 }

// inspects says whether the rule can only be kept by who sees the requests.
func (r *rule) inspects() bool {
	return r.narrow() || r.action != deny && (r.src.Secret != "" || r.src.MaxUpBytes > 0 || r.src.Inspect)
}

// permits says whether the rule can lead to a yes.
func (r *rule) permits() bool { return r.action == allow || r.action == ask }

// requested says whether the rule is from a repository's request.
func (r *rule) requested() bool { return strings.HasPrefix(r.src.Origin, RequestName+":") }

// reaches says whether the rule is about connections to d.
func (r *rule) reaches(d Destination) bool {
	return (r.ports == nil || slices.Contains(r.ports, d.Port)) && r.host.match(d.Host, r.action == deny)
}

// covers says whether the rule, which reaches the destination, is about this
// request. A path that a server may read in several ways (see forms) is denied
// or asked about if one of them is, and allowed if all are.
func (r *rule) covers(method string, forms []string) bool {
	if len(r.methods) > 0 && !slices.Contains(r.methods, method) {
		return false
	}
	if len(r.paths) == 0 {
		return true
	}
	matches := func(p string) bool {
		return slices.ContainsFunc(r.paths, func(re *regexp.Regexp) bool { return re.MatchString(p) })
	}
	if r.action != allow {
		return slices.ContainsFunc(forms, matches)
	}
	return len(forms) > 0 && !slices.ContainsFunc(forms, func(p string) bool { return !matches(p) })
}

// String shows the rule as a policy file has it, and its origin.
func (r *rule) String() string {
	word := map[api.EgressAction]string{allow: "allow", deny: "deny", ask: "ask"}[r.action]
	s := word + " " + r.host.String()
	if len(r.methods) > 0 {
		s += " " + strings.Join(r.methods, ",")
	}
	if len(r.src.Paths) == 1 {
		s += " " + r.src.Paths[0]
	} else if len(r.src.Paths) > 1 {
		s += fmt.Sprintf(" %s and %d more paths", r.src.Paths[0], len(r.src.Paths)-1)
	}
	if r.src.Origin != "" {
		s += " (" + r.src.Origin + ")"
	}
	return plain(s, maxOrigin+2*maxPattern)
}

// compile checks a rule. All that a rule says is checked here, whoever it is
// from: a policy file, a preset, a secret's definition, the API.
func compile(src *api.EgressRule) (rule, error) {
	if src == nil {
		return rule{}, errors.New("it is missing")
	}
	src = proto.Clone(src).(*api.EgressRule)
	src.Origin = plain(src.Origin, maxOrigin)
	r := rule{src: src, action: src.Action}
	if r.action == api.EgressAction_EGRESS_ACTION_UNSPECIFIED {
		r.action = deny
	}
	if r.action != allow && r.action != deny && r.action != ask {
		return rule{}, fmt.Errorf("action %d is unknown (use allow, deny or ask)", src.Action)
	}
	var err error
	if r.host, err = parsePattern(src.Host); err != nil {
		return rule{}, err
	}
	if r.permits() {
		if why := r.host.wide(); why != "" && !src.Wide {
			return rule{}, fmt.Errorf("host %q %s (say wide: true if that is meant)", src.Host, why)
		}
		if why := r.host.unusable(); why != "" {
			return rule{}, fmt.Errorf("host %q %s", src.Host, why)
		}
	}
	if err := r.compilePorts(); err != nil {
		return rule{}, err
	}
	if err := r.compileRequest(); err != nil {
		return rule{}, err
	}
	switch {
	case src.MaxUpBytes < 0 || src.Rate < 0:
		return rule{}, errors.New("max-up and rate are not negative (0 is no limit)")
	case r.action == deny && (src.Secret != "" || src.MaxUpBytes != 0 || src.Rate != 0 || src.Private || src.Wide || src.Inspect):
		return rule{}, errors.New("a deny rule has no secret, max-up, rate, wide, private or inspect: it denies (take them out)")
	case src.Secret != "" && !hypervisor.ValidName(src.Secret):
		return rule{}, fmt.Errorf("secret name %q is not possible", clip(src.Secret))
	case src.Secret != "" && !r.host.exactName():
		return rule{}, fmt.Errorf("secret %s is for %q: a secret goes to one host by its name, not to a pattern or an address", src.Secret, src.Host)
	case src.Private && r.host.isAddr():
		return rule{}, fmt.Errorf("private is about what a name resolves to, and %q is an address (leave private out)", src.Host)
	}
	return r, nil
}

func (r *rule) compilePorts() error {
	if len(r.src.Ports) > maxPorts {
		return fmt.Errorf("it has %d ports; at most %d are possible", len(r.src.Ports), maxPorts)
	}
	for _, p := range r.src.Ports {
		if p < 1 || p > 65535 {
			return fmt.Errorf("%d is not a port (1 to 65535)", p)
		}
		r.ports = append(r.ports, uint16(p))
	}
	if r.ports != nil {
		return nil
	}
	if r.host.host.IsHost() && r.permits() {
		return fmt.Errorf("%s needs the port that is meant (ports: [8080])", HostName)
	}
	// A deny rule without ports is about all of them: a port is no way round it.
	if r.action != deny {
		r.ports = []uint16{443}
	}
	return nil
}

func (r *rule) compileRequest() error {
	if len(r.src.Methods) > maxMethods || len(r.src.Paths) > maxPatterns {
		return fmt.Errorf("it has %d methods and %d paths; at most %d and %d are possible", len(r.src.Methods), len(r.src.Paths), maxMethods, maxPatterns)
	}
	for _, m := range r.src.Methods {
		if !validMethod(m) {
			return fmt.Errorf("%q is not an HTTP method (write it in upper case: GET)", clip(m))
		}
	}
	r.methods = r.src.Methods
	for _, p := range r.src.Paths {
		// Some servers take /Admin for /admin (GitHub does): a rule that allows is
		// about the one, a rule that denies or asks about both.
		re, err := compilePath(p, r.action != allow)
		if err != nil {
			return err
		}
		r.paths = append(r.paths, re)
	}
	return nil
}

// validMethod takes upper case only: methods are case-sensitive (RFC 9110
// section 9.1), but not every server knows that.
func validMethod(m string) bool {
	return m != "" && len(m) <= maxMethodLen && strings.Trim(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") == "" && m[0] != '-'
}

// pattern is a rule's host: "*", "*.suffix" or one host.
type pattern struct {
	all    bool
	suffix string // ".example.org"
	host   Host
}

func parsePattern(s string) (pattern, error) {
	if s == "*" {
		return pattern{all: true}, nil
	}
	rest, is := strings.CutPrefix(s, "*.")
	if strings.Contains(rest, "*") {
		return pattern{}, fmt.Errorf("host %q is refused: a \"*\" stands alone or for whole labels at the beginning (*.example.org)", clip(s))
	}
	if strings.Contains(rest, "/") {
		return pattern{}, fmt.Errorf("host %q is refused: it is a host without scheme and path (example.org)", clip(s))
	}
	h, err := ParseHost(rest)
	if err != nil {
		if _, derr := ParseDestination(rest, 1); derr == nil {
			return pattern{}, fmt.Errorf("host %q is refused: the port stands by itself (ports: [443])", clip(s))
		}
		return pattern{}, err
	}
	if !is {
		return pattern{host: h}, nil
	}
	if h.addr.IsValid() {
		return pattern{}, fmt.Errorf("host %q is refused: an address has no names below it", clip(s))
	}
	return pattern{suffix: "." + h.name}, nil
}

// match says whether h is meant. What allows never covers an address, or the
// machine itself, by a pattern; what denies does.
func (p pattern) match(h Host, denies bool) bool {
	switch {
	case h.name == "":
		return false
	case !p.all && p.suffix == "":
		return p.host == h
	case !denies && (h.addr.IsValid() || h.IsHost()):
		return false
	case p.all:
		return true
	}
	return !h.addr.IsValid() && len(h.name) > len(p.suffix) && strings.HasSuffix(h.name, p.suffix)
}

// exactness orders patterns: the host itself, then longer suffixes, then "*".
func (p pattern) exactness() int {
	switch {
	case p.all:
		return 0
	case p.suffix != "":
		return len(p.suffix)
	}
	return maxName + 2
}

func (p pattern) exactName() bool { return p.host.name != "" && !p.host.addr.IsValid() }
func (p pattern) isAddr() bool    { return p.host.addr.IsValid() }

func (p pattern) String() string {
	switch {
	case p.all:
		return "*"
	case p.suffix != "":
		return "*" + p.suffix
	}
	return p.host.name
}

// shared are names that the public suffix list does not hold, because what it
// holds, or what is everybody's, lies further down: buckets, blobs, machines.
var shared = []string{"amazonaws.com", "amazonaws.com.cn", "windows.net", "core.windows.net", "azure.com", "cloudflarestorage.com", "r2.cloudflarestorage.com",
	"backblazeb2.com", "firebaseio.com", "oraclecloud.com", "aliyuncs.com", "myqcloud.com"}

// wide says why a pattern covers what belongs to many people, or "".
func (p pattern) wide() string {
	if p.all {
		return "is every name there is"
	}
	if p.suffix == "" {
		return ""
	}
	// The list's own wildcards (*.compute.amazonaws.com) make the names one
	// label further down the public ones. A TLD that is not in the list counts.
	s := p.suffix[1:]
	if slices.Contains(shared, s) {
		return "covers names of many owners: everybody can have one below " + s
	}
	for _, name := range []string{s, "x." + s} {
		if public, _ := publicsuffix.PublicSuffix(name); public == name {
			return "covers names of many owners: everybody can have one under " + s
		}
	}
	return ""
}

// unusable says why nothing can be reached under the pattern, or "".
func (p pattern) unusable() string {
	a := p.host.addr
	switch {
	case p.host.name == "localhost" || strings.HasSuffix(p.host.name, ".localhost"):
		return "is the guest itself (the machine it runs on is " + HostName + ")"
	case p.suffix == "."+HostName || strings.HasSuffix(p.suffix, "."+HostName):
		return "is below " + HostName + ", where nothing is"
	case !a.IsValid():
		return ""
	case a.IsUnspecified() || a.Is4() && a.As4()[0] == 0:
		return "is not the address of anything"
	case a.IsMulticast() || a == broadcast:
		return "is not the address of one machine"
	}
	return ""
}

// plain bounds a text and keeps it on one line.
func plain(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		if b.Len() >= limit {
			break
		}
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}
