package steer

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is that of our table of rules.
const tableName = "carrel"

// ruleset is our table and the set of addresses that are left alone.
type ruleset struct {
	conn  *nftables.Conn
	table *nftables.Table
	own   *nftables.Set
}

// newRuleset begins a table in place of one that an agent left behind that was
// killed in this namespace; nothing happens before Flush.
func newRuleset() (*ruleset, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("speak with nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
	c.AddTable(table) // so that there is one to delete
	c.DelTable(table)
	r := &ruleset{conn: c, table: c.AddTable(table)}
	r.own = &nftables.Set{Table: r.table, Name: "own", KeyType: nftables.TypeIPAddr}
	if err := c.AddSet(r.own, nil); err != nil {
		return nil, err
	}
	return r, nil
}

// rulesForRest only refuses what sk_lookup does not see, or too late. With every
// address local, the kernel itself would answer a ping to any of them. And a
// datagram that sk_lookup drops is answered with ICMP, which reaches connected
// sockets alone: QUIC clients have others, and would wait for seconds before they
// fall back to TCP. The sender of what is dropped here gets EPERM.
func rulesForRest() (ownSet, error) {
	r, err := newRuleset()
	if err != nil {
		return nil, err
	}
	out := r.chain("out", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter)
	r.rule(out, outward(r.own), protocol(expr.CmpOpEq, unix.IPPROTO_UDP), port(portDNS), verdict(expr.VerdictAccept))
	r.rule(out, outward(r.own), protocol(expr.CmpOpNeq, unix.IPPROTO_TCP), verdict(expr.VerdictDrop))
	return r, r.flush()
}

// rulesForAll redirects TCP and DNS to our sockets and refuses the rest.
func rulesForAll() (ownSet, error) {
	r, err := newRuleset()
	if err != nil {
		return nil, err
	}
	// Where a table translates addresses, all of loopback is tracked, and a
	// few thousand local connections fill what a small guest can track.
	for name, hook := range map[string]*nftables.ChainHook{"raw_out": nftables.ChainHookOutput, "raw_in": nftables.ChainHookPrerouting} {
		raw := r.chain(name, nftables.ChainTypeFilter, hook, nftables.ChainPriorityRaw)
		r.rule(raw, loopbackNet(saddr, expr.CmpOpEq), loopbackNet(daddr, expr.CmpOpEq), []expr.Any{&expr.Notrack{}})
	}
	nat := r.chain("nat_out", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	r.rule(nat, outward(r.own), protocol(expr.CmpOpEq, unix.IPPROTO_TCP), redirect(listenTCP.Port()))
	r.rule(nat, outward(r.own), protocol(expr.CmpOpEq, unix.IPPROTO_UDP), port(listenDNS.Port()), redirect(listenDNS.Port()))
	// After the redirection, whose packets are to 127.0.0.1 by now. The sender
	// of what is dropped here gets EPERM.
	out := r.chain("out", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter)
	r.rule(out, outward(r.own), protocol(expr.CmpOpNeq, unix.IPPROTO_TCP), verdict(expr.VerdictDrop))
	if err := r.flush(); err != nil {
		return nil, err
	}
	roomToTrack()
	return r, nil
}

// roomToTrack lets many connections be tracked, and not for long. In a
// namespace that is not the first these may not be there or not ours to set.
func roomToTrack() {
	for file, value := range map[string]string{"nf_conntrack_max": "65536", "nf_conntrack_tcp_timeout_time_wait": "5"} {
		_ = os.WriteFile("/proc/sys/net/netfilter/"+file, []byte(value), 0o644)
	}
}

// ignoreEcho is what remains where a kernel has no nftables: nobody answers a
// ping, not even on loopback.
func ignoreEcho(why error) error {
	if err := os.WriteFile("/proc/sys/net/ipv4/icmp_echo_ignore_all", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("keep the kernel from answering pings: nftables: %w; %w", why, err)
	}
	return nil
}

func removeRules() {
	c, err := nftables.New()
	if err != nil {
		return
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName})
	_ = c.Flush()
}

func (r *ruleset) flush() error {
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("set the rules of nftables: %w", err)
	}
	return nil
}

func (r *ruleset) add(a netip.Addr) error    { return r.change(a, r.conn.SetAddElements) }
func (r *ruleset) remove(a netip.Addr) error { return r.change(a, r.conn.SetDeleteElements) }

func (r *ruleset) change(a netip.Addr, do func(*nftables.Set, []nftables.SetElement) error) error {
	if err := do(r.own, []nftables.SetElement{{Key: a.AsSlice()}}); err != nil {
		return err
	}
	return r.flush()
}

func (r *ruleset) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{Table: r.table, Name: name, Type: kind, Hooknum: hook, Priority: priority})
}

func (r *ruleset) rule(c *nftables.Chain, parts ...[]expr.Any) {
	rule := &nftables.Rule{Table: r.table, Chain: c}
	for _, p := range parts {
		rule.Exprs = append(rule.Exprs, p...)
	}
	r.conn.AddRule(rule)
}

// Offsets into an IPv4 header.
const (
	saddr = 12
	daddr = 16
)

// outward matches what leaves over loopback for an address that is not local.
// What goes to a bridge or a container leaves over other devices.
func outward(own *nftables.Set) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, device)
	m := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
	}
	m = append(m, loopbackNet(daddr, expr.CmpOpNeq)...)
	return append(m,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: daddr, Len: net.IPv4len},
		&expr.Lookup{SourceRegister: 1, SetName: own.Name, SetID: own.ID, Invert: true},
	)
}

func loopbackNet(offset uint32, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{127}},
	}
}

func protocol(op expr.CmpOp, p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{p}},
	}
}

func port(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(p)},
	}
}

func redirect(to uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(to)},
		&expr.Redir{RegisterProtoMin: 1},
	}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

// redirected asks the kernel where a redirected connection was to go
// (SO_ORIGINAL_DST; the answer is a struct sockaddr_in).
func redirected(c *net.TCPConn) (netip.AddrPort, error) {
	const soOriginalDst = 80 // linux/netfilter_ipv4.h
	var to netip.AddrPort
	err := control(c, func(fd int) error {
		// The type is that of another option of the same size.
		m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, soOriginalDst)
		if err == nil {
			b := m.Multiaddr
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
		}
		return err
	})
	return to, err
}
