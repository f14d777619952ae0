package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
)

// Mapping says what became of one key of another program's settings.
type Mapping string

const (
	// Exact: it means here what it means there.
	Exact Mapping = "exact"
	// Stricter: here more is denied than there.
	Stricter Mapping = "stricter"
	// NoMeaning: there is nothing here that it could be about.
	NoMeaning Mapping = "no meaning"
)

// ImportLine is what became of one key, or of one entry of a list.
type ImportLine struct {
	Key     string
	Mapping Mapping
	Text    string
}

// ImportSRT turns the settings of srt (@anthropic-ai/sandbox-runtime,
// ~/.srt-settings.json) into a policy file and says what became of each key.
// What srt denies is denied by the result; where that cannot be kept, and where
// srt itself would refuse the settings, there is an error and no policy. Values
// that may hold credentials are in the policy but never in the report.
func ImportSRT(content []byte) (policyFile []byte, report []ImportLine, err error) {
	if len(content) > maxFile {
		return nil, nil, fmt.Errorf("the settings have %d bytes; at most %d are possible", len(content), maxFile)
	}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(content, &top); err != nil || top == nil {
		return nil, nil, errors.New("the settings are not a JSON object (srt refuses them too)")
	}
	s := &srtImport{}
	for _, part := range []string{"network", "filesystem"} {
		if raw, is := top[part]; is && firstByte(raw) != '{' {
			return nil, nil, fmt.Errorf("%s is not an object", part)
		}
	}
	if err := s.keys("", top); err != nil {
		return nil, nil, err
	}
	var network map[string]json.RawMessage
	if raw := top["network"]; raw != nil {
		if err := json.Unmarshal(raw, &network); err != nil {
			return nil, nil, err
		}
	}
	if err := s.network(network); err != nil {
		return nil, nil, err
	}
	out := s.write()
	if f, problems := ParseFile(out, "policy.yaml"); f == nil {
		return nil, nil, errors.New("the settings cannot be written as a policy: " + Problems("policy.yaml", problems[:1]))
	}
	return out, s.report, nil
}

type srtImport struct {
	report   []ImportLine
	rules    []srtRule
	blocked  []netip.Prefix // deniedResolvedAddresses
	upstream [][2]string
}

type srtRule struct {
	rule    *api.EgressRule
	comment string
}

func (s *srtImport) say(key string, m Mapping, format string, args ...any) {
	s.report = append(s.report, ImportLine{plain(key, 128), m, plain(fmt.Sprintf(format, args...), 512)})
}

// keys reports the keys whose fate does not depend on their value, and goes into
// objects and lists of objects. A key of network that is not known is an error:
// it could be one that denies.
func (s *srtImport) keys(at string, obj map[string]json.RawMessage) error {
	var names []string
	for k := range obj {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		key := strings.TrimPrefix(at+"."+k, ".")
		known, is := srtKeys[key]
		switch {
		case !is && (strings.HasPrefix(key, "network.")):
			return fmt.Errorf("srt's key %q is unknown here and could deny something (take it out if it does not)", plain(clip(key), 128))
		case !is:
			s.say(key, NoMeaning, "Carrel does not know this key")
			continue
		case known.refuse != "":
			return fmt.Errorf("%s: %s", key, known.refuse)
		case known.mapping != "" && !slices.ContainsFunc(s.report, func(l ImportLine) bool { return l.Key == key }):
			s.say(key, known.mapping, "%s", known.text)
		}
		if !known.inside {
			continue
		}
		list := []json.RawMessage{obj[k]}
		if firstByte(obj[k]) == '[' {
			if err := json.Unmarshal(obj[k], &list); err != nil {
				return fmt.Errorf("%s is not a list", key)
			}
		}
		for _, raw := range list {
			if known.plain && firstByte(raw) == '"' {
				continue
			}
			var sub map[string]json.RawMessage
			if err := json.Unmarshal(raw, &sub); err != nil {
				return fmt.Errorf("%s is not an object or a list of them", key)
			}
			if err := s.keys(key, sub); err != nil {
				return err
			}
		}
	}
	return nil
}

// network makes the rules. What srt leaves to another program's filter is
// denied, since what that one denies is not known.
func (s *srtImport) network(n map[string]json.RawMessage) error {
	var allowed, denied, mitm, resolved []string
	var reasons map[string]string
	var strict, all, opaque, match bool
	var parent struct{ HTTP, HTTPS, NoProxy *string }
	for key, into := range map[string]any{
		"allowedDomains": &allowed, "deniedDomains": &denied, "deniedDomainReasons": &reasons, "strictAllowlist": &strict, "allowAllDomains": &all,
		"deniedResolvedAddresses": &resolved, "refuseOpaqueTunnels": &opaque, "requireHostMatch": &match, "parentProxy": &parent,
	} {
		if raw, is := n[key]; is && json.Unmarshal(raw, into) != nil {
			return fmt.Errorf("network.%s is not of its type (srt refuses it too)", key)
		}
	}
	var mitmProxy struct{ Domains []string }
	if raw, is := n["mitmProxy"]; is && json.Unmarshal(raw, &mitmProxy) != nil {
		return errors.New("network.mitmProxy is not of its type (srt refuses it too)")
	}
	mitm = mitmProxy.Domains

	for _, d := range denied {
		if err := s.deny("network.deniedDomains", d, reasons[d]); err != nil {
			return err
		}
	}
	for _, d := range mitm {
		if err := s.deny("network.mitmProxy.domains", d, "goes through another proxy in srt"); err != nil {
			return err
		}
	}
	for _, a := range resolved {
		if err := s.denyAddress(a); err != nil {
			return err
		}
	}
	_, http := n["httpProxyPort"]
	_, socks := n["socksProxyPort"]
	for _, a := range allowed {
		if http || socks {
			s.say("network.allowedDomains", Stricter, "%s: left out, since the proxy of httpProxyPort or socksProxyPort decides in srt", a)
			continue
		}
		if err := s.allow(a, opaque || match); err != nil {
			return err
		}
	}
	if all {
		s.say("network.allowAllDomains", Stricter, `left out; if everything is meant, add: allow: "*" with wide: true`)
	}
	for _, p := range []struct {
		key, name string
		value     *string
	}{{"https", "https_proxy", parent.HTTPS}, {"http", "http_proxy", parent.HTTP}, {"noProxy", "no_proxy", parent.NoProxy}} {
		if p.key == "https" && p.value == nil { // as srt has it
			p.value = parent.HTTP
		}
		if p.value == nil {
			continue
		}
		if u, err := url.Parse(*p.value); p.key != "noProxy" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "") {
			return fmt.Errorf("network.parentProxy.%s is not a proxy that Carrel can use (http://HOST:PORT)", p.key)
		}
		s.upstream = append(s.upstream, [2]string{p.name, *p.value})
	}
	return nil
}

// deny adds a deny rule. A host that Carrel refuses as odd is never reached and
// needs none.
func (s *srtImport) deny(key, entry, why string) error {
	host, port, err := splitSRT(entry, true)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	r := &api.EgressRule{Action: deny, Host: host}
	if port != 0 {
		r.Ports = []uint32{uint32(port)}
	}
	if CheckRule(r) != nil {
		s.say(key, Exact, "%s: nothing by this name can be reached in any case", entry)
		return nil
	}
	s.rules = append(s.rules, srtRule{r, why})
	s.say(key, Exact, "%s is denied", entry)
	return nil
}

// maxExpanded is how many addresses of a block become rules of their own.
const maxExpanded = 256

// denyAddress adds rules for an address, or for a small block; what lies in
// blocks that are never reached through a name needs none.
func (s *srtImport) denyAddress(entry string) error {
	const key = "network.deniedResolvedAddresses"
	p, err := netip.ParsePrefix(entry)
	if err != nil {
		a, aerr := netip.ParseAddr(entry)
		if aerr != nil || a.Zone() != "" {
			return fmt.Errorf("%s: %q is neither an address nor a block (10.0.0.0/8)", key, clip(entry))
		}
		a = a.Unmap()
		p = netip.PrefixFrom(a, a.BitLen())
	}
	p = p.Masked()
	s.blocked = append(s.blocked, p)
	for _, b := range blocks {
		if b.prefix.Bits() <= p.Bits() && b.prefix.Contains(p.Addr()) {
			s.say(key, Exact, "%s is refused in any case: it is %s, and no imported rule names such an address or says private", entry, b.what)
			return nil
		}
	}
	if host := p.Addr().BitLen() - p.Bits(); host > 8 || len(s.rules)+1<<host > maxRules {
		return fmt.Errorf("%s: %s has more addresses than can be denied one by one (%d); Carrel cannot deny what srt denies there (take it out)", key, plain(clip(entry), 64), maxExpanded)
	}
	for a := p.Addr(); p.Contains(a); a = a.Next() {
		r := &api.EgressRule{Action: deny, Host: a.String()}
		if CheckRule(r) == nil {
			s.rules = append(s.rules, srtRule{r, ""})
		}
	}
	s.say(key, Exact, "%s is denied under all names", entry)
	return nil
}

// allow adds an allow rule. An entry without a port means every port in srt,
// and 80 and 443 here.
func (s *srtImport) allow(entry string, inspect bool) error {
	const key = "network.allowedDomains"
	host, port, err := splitSRT(entry, false)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	r := &api.EgressRule{Action: allow, Host: host, Ports: []uint32{80, 443}, Inspect: inspect}
	if port != 0 {
		r.Ports = []uint32{uint32(port)}
	}
	if err := CheckRule(r); err != nil {
		s.say(key, Stricter, "%s: left out: %v", entry, err)
		return nil
	}
	if a, err := netip.ParseAddr(host); err == nil {
		a = a.Unmap()
		why := notPublic(a)
		if slices.ContainsFunc(s.blocked, func(p netip.Prefix) bool { return p.Contains(a) }) {
			why = "in deniedResolvedAddresses"
		}
		if why != "" {
			s.say(key, Stricter, "%s: left out: it is %s; write the rule by hand if that is meant", entry, why)
			return nil
		}
	}
	s.rules = append(s.rules, srtRule{r, ""})
	switch {
	case port == 0:
		s.say(key, Stricter, "%s is allowed on the ports 80 and 443; srt allows every port", entry)
	default:
		s.say(key, Exact, "%s is allowed", entry)
	}
	return nil
}

// splitSRT splits an entry as srt does: an IPv6 literal has to be in brackets,
// a suffix is a port only if it is one. Port 0 is none.
func splitSRT(entry string, denies bool) (host string, port uint16, err error) {
	bad := fmt.Errorf("%q is not a domain pattern (srt refuses it too)", clip(entry))
	host = entry
	if strings.HasPrefix(entry, "[") {
		end := strings.IndexByte(entry, ']')
		if end < 0 {
			return "", 0, bad
		}
		inside, _, _ := strings.Cut(entry[1:end], "%")
		if a, err := netip.ParseAddr(inside); err != nil || !a.Is6() {
			return "", 0, bad
		}
		host = inside
		if rest := entry[end+1:]; rest != "" {
			if port, err = parsePort(strings.TrimPrefix(rest, ":")); err != nil || rest[0] != ':' {
				return "", 0, bad
			}
		}
		return host, port, nil
	}
	if i := strings.IndexByte(entry, ':'); i >= 0 {
		if port, err = parsePort(entry[i+1:]); err != nil {
			return "", 0, bad
		}
		host = entry[:i]
	}
	rest, wild := strings.CutPrefix(host, "*.")
	switch {
	case host == "localhost", denies && host == "*":
	case strings.ContainsAny(rest, "*/") || strings.HasPrefix(rest, ".") || strings.HasSuffix(rest, ".") || !strings.Contains(rest, ".") || wild && strings.Contains(rest, ".."):
		return "", 0, bad
	}
	return host, port, nil
}

func (s *srtImport) write() []byte {
	var b bytes.Buffer
	b.WriteString("# Imported from srt's settings.\nversion: 1\n")
	if len(s.rules)+len(s.upstream) == 0 {
		return b.Bytes()
	}
	b.WriteString("egress:\n")
	if len(s.rules) > 0 {
		b.WriteString("  rules:\n")
	}
	for _, r := range s.rules {
		if r.comment != "" {
			b.WriteString("    # " + plain(r.comment, 256) + "\n")
		}
		for _, l := range ruleLines(r.rule) {
			b.WriteString("    " + l + "\n")
		}
	}
	if len(s.upstream) > 0 {
		b.WriteString("  upstream:\n")
	}
	for _, u := range s.upstream {
		b.WriteString("    " + u[0] + ": " + strconv.QuoteToASCII(u[1]) + "\n")
	}
	return b.Bytes()
}

func firstByte(raw json.RawMessage) byte {
	if t := bytes.TrimSpace(raw); len(t) > 0 {
		return t[0]
	}
	return 0
}
