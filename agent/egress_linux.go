package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/names"
	"github.com/carrel-vm/carrel/agent/steer"
	"github.com/carrel-vm/carrel/guest/wire"
)

// Bounds of the way out.
const (
	// maxRelays is how many connections are carried at once; more are reset.
	// The host takes 1024 streams from a guest, boot stream and shares
	// included.
	maxRelays = 1000
	// maxQueries is how many DNS clients on TCP are served at once.
	maxQueries = 64
	// dialWait bounds how long the host may take to accept a stream. It does
	// so before it looks at what the stream is for.
	dialWait = 10 * time.Second
)

// portDNS is answered by the agent, whatever server was meant.
const portDNS = 53

// egress is the guest's way out: it answers DNS, and carries each connection
// that is steered here to the host, which decides about it.
type egress struct {
	table   names.Table
	steered *steer.Steering
	dial    func(ctx context.Context, port uint32) (net.Conn, error)
	// owners tell whose connection it is; nil: nobody knows.
	owners *owners

	relays, queries chan struct{}
	group           sync.WaitGroup
	cancel          context.CancelFunc
}

func newEgress(s *steer.Steering, dial func(context.Context, uint32) (net.Conn, error), cgroup string) *egress {
	return &egress{
		steered: s, dial: dial, owners: newOwners(cgroup),
		relays: make(chan struct{}, maxRelays), queries: make(chan struct{}, maxQueries),
	}
}

// start serves until close. broken is called if that cannot go on: what then
// ends leaves names and connections that lead nowhere, or worse, to a task's
// own socket.
func (e *egress) start(ctx context.Context, broken func(error)) {
	ctx, e.cancel = context.WithCancel(ctx)
	for what, run := range map[string]func() error{
		"take connections":     func() error { return e.accept(ctx, e.steered.TCP, e.relays, e.relay) },
		"answer DNS over TCP":  func() error { return e.accept(ctx, e.steered.DNSStreams, e.queries, e.query) },
		"answer DNS":           func() error { return e.table.ServePackets(e.steered.DNS) },
		"follow the addresses": e.steered.Wait,
	} {
		e.serve(ctx, what, run, broken)
	}
	for _, l := range e.steered.More {
		e.serve(ctx, "take connections", func() error { return e.accept(ctx, l, e.relays, e.relay) }, broken)
	}
}

func (e *egress) serve(ctx context.Context, what string, run func() error, broken func(error)) {
	e.group.Go(func() {
		if err := run(); ctx.Err() == nil {
			broken(fmt.Errorf("the guest's way out is broken: %s: %w", what, err))
		}
	})
}

// close ends every connection, and takes the way out away.
func (e *egress) close() {
	if e == nil {
		return
	}
	e.cancel()
	_ = e.steered.Close()
	e.group.Wait()
	e.owners.close()
}

// accept serves each connection while there are places, and resets the others.
func (e *egress) accept(ctx context.Context, l *net.TCPListener, places chan struct{}, serve func(context.Context, *net.TCPConn)) error {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil || !passing(err) {
				return err
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			reset(c)
			continue
		}
		e.group.Go(func() {
			defer func() { <-places }()
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			serve(ctx, c)
		})
	}
}

// passing says whether an error of accept is about one connection, or about a
// shortage, rather than the listener's end (accept(2)).
func passing(err error) bool {
	for _, e := range []error{unix.ECONNABORTED, unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EPROTO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// query answers a DNS client.
func (e *egress) query(_ context.Context, c *net.TCPConn) { e.table.ServeStream(c) }

// relay carries one connection to the host:
//
//  1. where it was to go: a name of the table, or the address itself
//  2. a stream to the host, with that in its first frame
//  3. bytes both ways, until both ends have ended
//
// What leads nowhere is reset.
func (e *egress) relay(ctx context.Context, c *net.TCPConn) {
	to, err := e.steered.Original(c)
	if err != nil {
		reset(c)
		return
	}
	if to.Port() == portDNS {
		select {
		case e.queries <- struct{}{}:
			e.table.ServeStream(c)
			<-e.queries
		default:
			reset(c)
		}
		return
	}
	open, ok := e.destination(to)
	if !ok {
		reset(c)
		return
	}
	if from, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		open.Task = e.owners.task(from.AddrPort(), to)
	}
	late, cancel := context.WithTimeout(ctx, dialWait)
	host, err := e.dial(late, wire.PortEgress)
	cancel()
	if err != nil {
		reset(c)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = host.Close() })
	defer stop()
	if err := wire.Write(host, open); err != nil {
		_ = host.Close()
		reset(c)
		return
	}
	carry(c, host, true)
}

// destination is what a connection to an address means. An address of the
// table that no name has was kept from an earlier life of the guest, or made
// up: it means nothing.
func (e *egress) destination(to netip.AddrPort) (*wire.Open, bool) {
	host := to.Addr().String()
	if names.Synthetic.Contains(to.Addr()) {
		var ok bool
		if host, ok = e.table.Name(to.Addr()); !ok {
			return nil, false
		}
	}
	return &wire.Open{Host: host, Port: uint32(to.Port())}, true
}
