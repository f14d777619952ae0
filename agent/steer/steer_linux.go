package steer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// How connections are steered.
const (
	SkLookup = "sk_lookup"
	NFTables = "nftables"
)

// Listen is where this process takes connections and DNS queries. The port of
// connections is one that no task can bind and that nobody connects to.
var (
	listenTCP = netip.MustParseAddrPort("127.0.0.1:1")
	listenDNS = netip.MustParseAddrPort("127.0.0.1:53")
)

// backlog is how many connections may wait to be accepted. A program that opens
// many at once, as package managers do, would wait a second for each beyond.
const backlog = 1024

// ErrOurs is returned for a connection that was made to this process itself.
var ErrOurs = errors.New("a connection to the steering's own port")

// Options choose how to steer.
type Options struct {
	// Own is the address of its own that the namespace gets beside loopback:
	// programs ask for it, and connections come from it.
	Own netip.Addr
	// NFTables does not try sk_lookup.
	NFTables bool
}

// Steering is in force until Close.
type Steering struct {
	// How is SkLookup, or NFTables with the reason why not SkLookup, or Local
	// with the ports.
	How string
	// TCP takes steered connections, DNS and DNSStreams queries.
	TCP, DNSStreams *net.TCPListener
	// More take such connections too, or none.
	More []*net.TCPListener
	DNS  *net.UDPConn

	nft bool
	// local is the namespace's own address and network, where StartLocal steers.
	local netip.Prefix
	undo  []func()
	once  sync.Once
	// watch ends with the watch of addresses.
	watch sync.WaitGroup
	err   error
}

// Start steers the network namespace of the calling process, which must own
// it (CAP_NET_ADMIN) and may bind ports below 1024.
func Start(o Options) (_ *Steering, err error) {
	s := &Steering{}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if err := ownAddress(o.Own); err != nil {
		return nil, err
	}
	if err := s.listen(); err != nil {
		return nil, err
	}
	own, err := watchOwn()
	if err != nil {
		return nil, err
	}
	s.undo = append(s.undo, func() { _ = own.Close() })
	var set ownSet
	if set, err = s.choose(o); err != nil {
		return nil, err
	}
	if err := own.leave(set, o.Own); err != nil {
		return nil, err
	}
	s.watch.Go(func() { s.err = own.run(set) })
	// Last, so that no connection reaches what listens on all addresses.
	if err := routeAll(o.Own); err != nil {
		return nil, err
	}
	s.undo = append(s.undo, unrouteAll)
	return s, nil
}

// choose attaches the program, or else sets the rules.
func (s *Steering) choose(o Options) (ownSet, error) {
	why := errors.New("not wanted")
	if !o.NFTables {
		l, err := attachLookup(s.TCP, s.DNS)
		if err == nil {
			s.undo = append(s.undo, l.close)
			s.How = SkLookup
			// The program does not see ICMP, and refuses datagrams late.
			set, nftErr := rulesForRest()
			if nftErr == nil {
				s.undo = append(s.undo, removeRules)
				return both{l, set}, nil
			}
			return l, ignoreEcho(nftErr)
		}
		why = err
	}
	set, err := rulesForAll()
	if err != nil {
		return nil, fmt.Errorf("steer connections: sk_lookup: %w; nftables: %w (the guest's kernel needs one of them: CONFIG_BPF_SYSCALL, or CONFIG_NF_TABLES, NFT_NAT and NFT_REDIR)", why, err)
	}
	s.undo = append(s.undo, removeRules)
	s.nft, s.How = true, NFTables+": "+why.Error()
	return set, nil
}

// Wait returns when the namespace's addresses are no longer followed, by Close
// or because that failed. Steering is then not to be relied on.
func (s *Steering) Wait() error {
	s.watch.Wait()
	return s.err
}

// Close takes the way out away first, so that no address that is not local
// reaches a task's socket, and then stops. It may be called twice.
func (s *Steering) Close() error {
	s.once.Do(func() {
		for i := len(s.undo) - 1; i >= 0; i-- {
			s.undo[i]()
		}
		s.watch.Wait()
	})
	return nil
}

// Original returns where the client of a connection from TCP meant to go.
func (s *Steering) Original(c *net.TCPConn) (netip.AddrPort, error) {
	to := unmapped(c.LocalAddr())
	if s.nft {
		var err error
		if to, err = redirected(c); err != nil {
			return netip.AddrPort{}, err
		}
	}
	if to == listenTCP || !to.IsValid() || s.local.IsValid() && (!s.local.Contains(to.Addr()) || to.Addr() == s.local.Addr()) {
		return netip.AddrPort{}, ErrOurs
	}
	return to, nil
}

func unmapped(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// listen opens the three sockets.
func (s *Steering) listen() error {
	lc := net.ListenConfig{Control: transparent}
	// A listener that speaks MPTCP cannot be put in a socket map.
	lc.SetMultipathTCP(false)
	ctx := context.Background()
	tcp, err := lc.Listen(ctx, "tcp4", listenTCP.String())
	if err != nil {
		return fmt.Errorf("take connections: %w", err)
	}
	s.TCP = tcp.(*net.TCPListener)
	// Go's own number is read from /proc, which may be out of reach now.
	if err := control(s.TCP, func(fd int) error { return unix.Listen(fd, backlog) }); err != nil {
		return fmt.Errorf("take connections: %w", err)
	}
	s.undo = append(s.undo, func() { _ = s.TCP.Close() })
	return s.listenDNS(lc)
}

func (s *Steering) listenDNS(lc net.ListenConfig) error {
	ctx := context.Background()
	dns, err := lc.Listen(ctx, "tcp4", listenDNS.String())
	if err != nil {
		return fmt.Errorf("answer DNS: %w", err)
	}
	s.DNSStreams = dns.(*net.TCPListener)
	s.undo = append(s.undo, func() { _ = s.DNSStreams.Close() })
	udp, err := lc.ListenPacket(ctx, "udp4", listenDNS.String())
	if err != nil {
		return fmt.Errorf("answer DNS: %w", err)
	}
	s.DNS = udp.(*net.UDPConn)
	s.undo = append(s.undo, func() { _ = s.DNS.Close() })
	return nil
}

// transparent lets a socket answer from an address that is not its own, also
// where somebody's "ip rule" has split the kernel's routing tables.
func transparent(_, _ string, c syscall.RawConn) error {
	return controlRaw(c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
	})
}

// control calls f with a socket's descriptor.
func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return controlRaw(raw, f)
}

func controlRaw(c syscall.RawConn, f func(fd int) error) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}
