package egresstest

import (
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// Query is one question that reached a name server of the world.
type Query struct {
	// Name is in lower case without the last dot, Type "A", "TXT", ...
	Name, Type string
	// Server is the address that was asked, Network "udp" or "tcp".
	Server, Network string
}

// DNS is the world's authority for every name.
type DNS struct {
	mu      sync.Mutex
	zone    map[string][]netip.Addr
	queue   map[string][][]netip.Addr
	queries []Query
}

// Set gives a name its addresses; none: the name does not exist.
func (d *DNS) Set(name string, addrs ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.zone[name] = nil
	for _, a := range addrs {
		d.zone[name] = append(d.zone[name], netip.MustParseAddr(a))
	}
}

// Then gives the addresses of a name's next answers, one set for each query of
// type A, before what Set gave counts again: a name that rebinds.
func (d *DNS) Then(name string, answers ...[]string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, as := range answers {
		var set []netip.Addr
		for _, a := range as {
			set = append(set, netip.MustParseAddr(a))
		}
		d.queue[name] = append(d.queue[name], set)
	}
}

// Queries are all that came since the last Reset.
func (d *DNS) Queries() []Query {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]Query(nil), d.queries...)
}

// Asked says how often a name, or one below it, was asked for.
func (d *DNS) Asked(name string) (n int) {
	for _, q := range d.Queries() {
		if q.Name == name || strings.HasSuffix(q.Name, "."+name) {
			n++
		}
	}
	return n
}

// Reset forgets the queries.
func (d *DNS) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queries = nil
}

// ServeDNS answers A and AAAA, with a TTL of zero.
func (d *DNS) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative = true
	if len(r.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		w.WriteMsg(m)
		return
	}
	q := r.Question[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	server, _, _ := net.SplitHostPort(w.LocalAddr().String())
	d.mu.Lock()
	d.queries = append(d.queries, Query{name, dns.TypeToString[q.Qtype], server, w.LocalAddr().Network()})
	addrs, known := d.zone[name]
	if next := d.queue[name]; len(next) > 0 {
		addrs, known = next[0], true
		if q.Qtype == dns.TypeA {
			d.queue[name] = next[1:]
		}
	}
	d.mu.Unlock()
	if !known {
		m.Rcode = dns.RcodeNameError
	}
	for _, a := range addrs {
		h := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET}
		switch {
		case q.Qtype == dns.TypeA && a.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: h, A: a.AsSlice()})
		case q.Qtype == dns.TypeAAAA && a.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
		}
	}
	w.WriteMsg(m)
}
