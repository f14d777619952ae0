package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// HostName is the name by which a guest reaches services on the loopback of
// the host it runs on. No pattern allows it, only a rule with exactly this name
// and the port.
const HostName = "host.carrel.internal"

// Lengths of RFC 1035 section 2.3.4: a name as text, and one label.
const (
	maxName  = 253
	maxLabel = 63
)

// Host is a destination in its one canonical form: a DNS name or an address.
// Only ParseHost makes one; what is decided on is what is dialled. Two Hosts
// are the same destination exactly if they are ==. The zero Host is none, and
// no rule matches it.
type Host struct {
	name string
	addr netip.Addr
}

// ParseHost makes the canonical host of a name or of an address literal. Odd
// input is refused, never repaired. What has one agreed meaning in another
// spelling is made canonical:
//
//   - ASCII upper case becomes lower case,
//   - one dot at the end of a name, which only says that it is complete, goes;
//     "1.2.3.4." and "example.org.." are refused,
//   - a label in Unicode becomes its xn-- form, if it is what that form reads
//     as: full-width letters, ideographic dots and capitals are refused,
//   - an address is written as netip writes it, one that is IPv4 in IPv6 clothes
//     (::ffff:192.0.2.1) as IPv4.
//
// Ports, brackets, zones, user names and percent signs are no part of a host.
// A name whose last label is a number is refused unless it is an address that
// netip reads: inet_aton takes "127.1", "0x7f.1" and "2130706433" for one.
// Labels hold letters, digits and inner dashes, and, but for the last, "_".
func ParseHost(s string) (Host, error) {
	h, err := parseHost(s)
	if err != nil {
		return Host{}, fmt.Errorf("host %q is refused: %w", clip(s), err)
	}
	return h, nil
}

func parseHost(s string) (Host, error) {
	if s == "" {
		return Host{}, errors.New("it is empty")
	}
	if len(s) > 4*maxName { // a name in UTF-8 that could still be one in ASCII
		return Host{}, fmt.Errorf("it is longer than %d bytes", maxName)
	}
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return Host{}, errors.New("an address with a zone means nothing outside its machine")
		}
		a = a.Unmap()
		return Host{name: a.String(), addr: a}, nil
	}
	ascii := true
	for _, c := range []byte(s) {
		switch {
		case c >= 0x80:
			ascii = false
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		case c == ':' || c == '[' || c == ']':
			return Host{}, errors.New("it is not an address, and a port or brackets are no part of a name")
		default:
			return Host{}, fmt.Errorf("%q cannot be in a host name", string(rune(c)))
		}
	}
	name := asciiLower(strings.TrimSuffix(s, "."))
	if !ascii {
		a, err := idna.Lookup.ToASCII(name)
		if err != nil {
			return Host{}, errors.New("it is not a name that IDNA knows")
		}
		if back, err := idna.Lookup.ToUnicode(a); err != nil || back != name {
			return Host{}, fmt.Errorf("it only looks like a name (the name it would be read as is %q)", a)
		}
		name = a
	}
	if len(name) > maxName {
		return Host{}, fmt.Errorf("it is longer than %d bytes", maxName)
	}
	labels := strings.Split(name, ".")
	for i, l := range labels {
		if err := checkLabel(l, i == len(labels)-1); err != nil {
			return Host{}, err
		}
	}
	if numeric(labels[len(labels)-1]) {
		return Host{}, errors.New("it ends in a number but is not an address in its usual form")
	}
	return Host{name: name}, nil
}

func checkLabel(l string, last bool) error {
	switch {
	case l == "":
		return errors.New("a label is empty")
	case len(l) > maxLabel:
		return fmt.Errorf("a label is longer than %d bytes", maxLabel)
	case l[0] == '-' || l[len(l)-1] == '-':
		return errors.New("a label begins or ends with a dash")
	case last && strings.Contains(l, "_"):
		return errors.New(`"_" cannot be in the last label`)
	case !strings.HasPrefix(l, "xn--"):
		return nil // other dashes in the 3rd and 4th place are in use: r3---sn-abc.example
	}
	u, err := idna.Lookup.ToUnicode(l)
	if err != nil {
		return errors.New("a label that begins with xn-- is not valid")
	}
	if back, err := idna.Lookup.ToASCII(u); err != nil || back != l {
		return errors.New("a label that begins with xn-- has another, canonical form")
	}
	return nil
}

// numeric says whether a resolver could take a name that ends in this label for
// an IPv4 address: inet_aton(3), and "ends in a number" of the WHATWG's URL.
func numeric(label string) bool {
	digits := strings.Trim(label, "0123456789") == ""
	hex, is := strings.CutPrefix(label, "0x")
	return digits || is && strings.Trim(hex, "0123456789abcdef") == ""
}

// asciiLower leaves all but A-Z alone, so that no letter of another script
// changes its length or turns into an ASCII one (the Kelvin sign).
func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// String returns the name, or the address without brackets.
func (h Host) String() string { return h.name }

// Addr returns the address and whether the host is one.
func (h Host) Addr() (netip.Addr, bool) { return h.addr, h.addr.IsValid() }

// IsHost says whether this is the name of the machine that the guest runs on.
// It is never resolved: it stands for that machine's loopback.
func (h Host) IsHost() bool { return h.name == HostName }

// Destination is a host and a TCP port.
type Destination struct {
	Host Host
	Port uint16
}

// String returns "host:port", with brackets where they are needed.
func (d Destination) String() string {
	port := strconv.Itoa(int(d.Port))
	if d.Host.addr.Is6() {
		return "[" + d.Host.name + "]:" + port
	}
	return d.Host.name + ":" + port
}

// ParseDestination parses "host", "host:port", "[2001:db8::1]:port" and
// "2001:db8::1". Without a port it is def; if that is 0, a port has to be there.
func ParseDestination(s string, def uint16) (Destination, error) {
	host, port := s, ""
	bracket := strings.HasPrefix(s, "[")
	if bracket {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return Destination{}, fmt.Errorf("%q has no closing bracket", clip(s))
		}
		host, port = s[1:end], s[end+1:]
		if port != "" && port[0] != ':' {
			return Destination{}, fmt.Errorf("%q has something other than a port after its bracket", clip(s))
		}
	} else if i := strings.IndexByte(s, ':'); i >= 0 && i == strings.LastIndexByte(s, ':') {
		host, port = s[:i], s[i:]
	}
	h, err := ParseHost(host)
	if err != nil {
		return Destination{}, err
	}
	// "[::ffff:1.2.3.4]" was IPv6 as it was written, and is IPv4 now.
	if bracket && !strings.Contains(host, ":") {
		return Destination{}, fmt.Errorf("%q has brackets around what is not an IPv6 address", clip(s))
	}
	d := Destination{Host: h, Port: def}
	if port != "" {
		if d.Port, err = parsePort(port[1:]); err != nil {
			return Destination{}, fmt.Errorf("%q: %w", clip(s), err)
		}
	}
	if d.Port == 0 {
		return Destination{}, fmt.Errorf("%q has no port (write HOST:PORT)", clip(s))
	}
	return d, nil
}

// parsePort takes 1 to 65535 in plain digits.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] < '1' || s[0] > '9' {
		return 0, fmt.Errorf("%q is not a port (1 to 65535)", clip(s))
	}
	return uint16(n), nil
}
