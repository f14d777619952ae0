package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

var broadcast = netip.MustParseAddr("255.255.255.255")

// Address judges the address that is about to be dialled for a destination.
// own are the addresses of the host's own interfaces.
//
// A rule with exactly an address allows exactly that one, whatever it is. A name
// that policy allows may resolve to what the whole internet can reach; to a
// private address if a rule that permits it says private; to another special
// address if a rule allows just that address too, since who may reach it by
// itself gains nothing by a name for it; and never to what is the machine
// itself, its link, or a cloud's metadata service. A rule that denies an address
// denies it under all names.
func (e *Egress) Address(d Destination, a netip.Addr, own []netip.Addr) error {
	no := func(cure, format string, args ...any) error {
		return refuse("address_refused", cure, "%s must not lead to %s: %s", d, a, fmt.Sprintf(format, args...))
	}
	if !a.IsValid() {
		return no("", "it is not an address")
	}
	if a.Zone() != "" {
		return no("", "it has a zone")
	}
	a = a.Unmap()
	m := e.reaching(d)
	if !slices.ContainsFunc(m, (*rule).permits) {
		return no("", "no rule allows the destination")
	}
	literal, is := d.Host.Addr()
	switch {
	case is && literal != a:
		return no("", "it is another address than the one that was asked for")
	case d.Host.IsHost() && !a.IsLoopback():
		return no("", "the name stands for the loopback of the host")
	}
	ends := append(embedded(a), a)
	for _, to := range ends {
		if is && to == a {
			continue // what is about the address itself, Connect and Request have weighed
		}
		for _, r := range e.reaching(Destination{Host: Host{name: to.String(), addr: to}, Port: d.Port}) {
			if r.action == deny && !r.host.all { // "deny *" was weighed with the name
				return no("", "the address is denied by %s", r)
			}
		}
	}
	if is || d.Host.IsHost() {
		return nil // NewEgress took no address that is not one machine's
	}
	if slices.ContainsFunc(own, func(o netip.Addr) bool { return slices.Contains(ends, o.Unmap().WithZone("")) }) {
		return no("name the address itself in a rule if that is meant", "it is this machine's own")
	}
	if why := notPublic(a); why != "" {
		if slices.ContainsFunc(m, func(r *rule) bool { return r.permits() && r.src.Private }) && private(a) {
			return nil
		}
		if !a.IsLoopback() && !a.IsLinkLocalUnicast() && !slices.Contains(metadata, a) && e.names(a, d.Port) {
			return nil
		}
		cure := "name the address itself in a rule if that is meant"
		if private(a) {
			cure = "say private: true in the rule if the name is one of your own network"
		}
		return no(cure, "it is %s", why)
	}
	return nil
}

// names says whether a rule allows all of an address by itself.
func (e *Egress) names(a netip.Addr, port uint16) bool {
	return slices.ContainsFunc(e.reaching(Destination{Host: Host{name: a.String(), addr: a}, Port: port}), func(r *rule) bool {
		return r.action == allow && !r.inspects()
	})
}

// metadata are the addresses at which clouds serve a machine its credentials,
// and which the blocks below do not hold, or which lie in a private one. AWS
// (fd00:ec2::23 is for EKS pods), Oracle and GCP have them in IPv6 too; the others
// are Oracle's old one, Alibaba's, Azure's and Scaleway's.
var metadata = addresses("169.254.169.254", "fd00:ec2::254", "fd00:ec2::23", "fd00:c1::a9fe:a9fe", "fd20:ce::254", "192.0.0.192", "100.100.100.200", "168.63.129.16", "fd00:42::42")

// blocks are what is not globally reachable in IANA's registries of special
// purpose addresses, and what is special in another way. Order: the narrower
// first, since its word is the better one.
var blocks = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), `"this network" (RFC 791)`},
	{netip.MustParsePrefix("10.0.0.0/8"), "private (RFC 1918)"},
	{netip.MustParsePrefix("100.64.0.0/10"), "a carrier's private address (RFC 6598)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local (RFC 3927)"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private (RFC 1918)"},
	{netip.MustParsePrefix("192.0.0.0/24"), "reserved for protocols (RFC 6890)"},
	{netip.MustParsePrefix("192.0.2.0/24"), "for documentation (RFC 5737)"},
	{netip.MustParsePrefix("192.31.196.0/24"), "reserved for AS112 (RFC 7535)"},
	{netip.MustParsePrefix("192.52.193.0/24"), "reserved for AMT (RFC 7450)"},
	{netip.MustParsePrefix("192.88.99.0/24"), "a 6to4 relay (RFC 7526)"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private (RFC 1918)"},
	{netip.MustParsePrefix("192.175.48.0/24"), "reserved for AS112 (RFC 7534)"},
	{netip.MustParsePrefix("198.18.0.0/15"), "for benchmarks (RFC 2544), and synthetic in a guest"},
	{netip.MustParsePrefix("198.51.100.0/24"), "for documentation (RFC 5737)"},
	{netip.MustParsePrefix("203.0.113.0/24"), "for documentation (RFC 5737)"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved (RFC 1112)"},
	{netip.MustParsePrefix("::/128"), "unspecified"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("::/96"), "an IPv4-compatible address (RFC 4291)"},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), "an IPv4-translated address (RFC 2765)"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "a local translation prefix (RFC 8215)"},
	{netip.MustParsePrefix("100::/63"), "discarded (RFC 6666) or a dummy (RFC 9780)"},
	{netip.MustParsePrefix("2001:db8::/32"), "for documentation (RFC 3849)"},
	{netip.MustParsePrefix("3fff::/20"), "for documentation (RFC 9637)"},
	{netip.MustParsePrefix("5f00::/16"), "a segment routing id (RFC 9602)"},
	{netip.MustParsePrefix("fc00::/7"), "private (unique local, RFC 4193)"},
	{netip.MustParsePrefix("fe80::/10"), "link-local (RFC 4291)"},
	{netip.MustParsePrefix("fec0::/10"), "site-local (RFC 3879)"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// protocols is what the IETF keeps for protocols of its own (RFC 2928); Teredo
// in it is judged by the IPv4 address that it leads to.
var (
	protocols = netip.MustParsePrefix("2001::/23")
	teredo    = netip.MustParsePrefix("2001::/32")
	sixToFour = netip.MustParsePrefix("2002::/16")
	nat64     = netip.MustParsePrefix("64:ff9b::/96")
	unicast6  = netip.MustParsePrefix("2000::/3")
)

// notPublic says what an address is if it is not one that the internet routes
// to one machine, or "".
func notPublic(a netip.Addr) string {
	if slices.Contains(metadata, a) {
		return "a cloud's metadata service"
	}
	for _, b := range blocks {
		if b.prefix.Contains(a) {
			return b.what
		}
	}
	for _, v4 := range embedded(a) {
		if why := notPublic(v4); why != "" {
			return fmt.Sprintf("a way to %s, which is %s", v4, why)
		}
	}
	switch {
	case a.Is4(), nat64.Contains(a), teredo.Contains(a):
		return ""
	case protocols.Contains(a):
		return "reserved for protocols (RFC 2928)"
	case !unicast6.Contains(a):
		return "in no block that is in use (RFC 4291)"
	}
	return ""
}

// private says whether an address is one of a private network: what a rule with
// private allows.
func private(a netip.Addr) bool {
	cgnat := netip.MustParsePrefix("100.64.0.0/10")
	return (a.IsPrivate() || cgnat.Contains(a)) && !slices.Contains(metadata, a)
}

// embedded returns the IPv4 addresses to which a gateway or a tunnel would send
// what is sent to a: NAT64 (RFC 6052), 6to4 (RFC 3056), Teredo (RFC 4380: the
// server, and the client with its bits inverted), ISATAP (RFC 5214).
func embedded(a netip.Addr) (v4 []netip.Addr) {
	if a.Is4() {
		return nil
	}
	b := a.As16()
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	switch {
	case nat64.Contains(a):
		v4 = append(v4, at(12))
	case sixToFour.Contains(a):
		v4 = append(v4, at(2))
	case teredo.Contains(a):
		v4 = append(v4, at(4), netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}))
	}
	if b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe {
		v4 = append(v4, at(12))
	}
	return v4
}

func addresses(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}
