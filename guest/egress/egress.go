// Package egress lets a guest reach the hosts it was granted, and no others. It
// runs in a process of its own, one for each guest (carreld egress), because it
// is the one part of the host that parses what a guest and what the world's
// servers say, and that may dial.
//
// One connection goes these steps (conn.go):
//
//	open    the stream's first frame: host, port, task
//	judge   one canonical host, one decision by the rules; "ask" waits here
//	hello   what the client says first, where that has to be known
//	dial    resolved once, each address checked, the checked one dialled
//	pass    bytes both ways (pass.go), or requests one by one (inspect*.go)
//	end     both sockets are closed; the event holds the bytes
//
// Any step may refuse, in the connection's own protocol (refuse.go).
package egress

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/carrel-vm/carrel/guest/api"
)

// Options are what a Server is made from.
type Options struct {
	// Guest is the guest's name, for reasons and cures.
	Guest string
	Log   *slog.Logger
	// Record takes every event, in order, before watchers see it. It must not
	// block for long: it writes the audit log.
	Record func(*api.EgressEvent)
	// Refused is told of each refusal, for the task's transcript: the guest's
	// word for the task (may be empty) and one line of printable ASCII, at most
	// wire.MaxText bytes. Refusals that are alike are told once and then counted. It
	// must not block.
	Refused func(task, line string)
	// Lookup resolves a name on the host; nil: the host's own resolver.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)
	// Own lists the host's own addresses, which are never dialled unless a rule
	// names them; nil: those of its interfaces.
	Own func() ([]netip.Addr, error)
	// Dial opens the TCP connection to a checked address; nil: net.Dialer.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Roots are certificates in PEM by which servers are verified; nil: the
	// host's own.
	Roots []byte
}

// Server is one guest's way out. Until it is configured nothing is reachable.
type Server struct {
	opts  Options
	log   *slog.Logger
	ca    *authority
	roots *x509.CertPool // nil: the host's

	events   events
	told     teller
	asks     asks
	arrive   *rate.Limiter
	flood    rate.Sometimes
	lookups  chan struct{}
	longs    chan struct{}
	dials    chan struct{}
	splices  chan struct{}
	own      ownAddrs
	lastConn atomic.Uint64

	wg sync.WaitGroup // connections and ports

	mu    sync.Mutex
	conf  *config
	conns map[*conn]struct{}
	// servers is how many sockets to servers they hold.
	servers int
	ports   map[uint32]*port
	inward  chan struct{} // one for each connection through a port
	closed  bool
}

// ErrClosed is returned by a Server that was closed.
var ErrClosed = errors.New("the guest's way out is closed")

// New makes a Server that lets nothing through yet.
func New(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	nothing, err := compile(&api.ConfigureEdgeRequest{})
	if err != nil {
		return nil, err
	}
	s := &Server{
		conf:   nothing,
		opts:   o,
		arrive: rate.NewLimiter(arrivals, arrivalBurst), flood: rate.Sometimes{Interval: time.Second},
		lookups: make(chan struct{}, maxLookups), longs: make(chan struct{}, maxLongHellos),
		dials: make(chan struct{}, maxDials), splices: make(chan struct{}, maxSplices),
		conns: map[*conn]struct{}{}, ports: map[uint32]*port{}, inward: make(chan struct{}, maxPortConns),
	}
	s.log = slog.New(hiding{o.Log.Handler(), s.hide}).With("guest", o.Guest)
	s.events.init(o.Record)
	s.told.init(o.Refused)
	s.asks.init()
	s.own.list = o.Own
	if o.Roots != nil {
		s.roots = x509.NewCertPool()
		if !s.roots.AppendCertsFromPEM(o.Roots) {
			return nil, errors.New("there is no certificate among the roots that servers are to be verified by (give certificates in PEM)")
		}
	}
	if s.ca, err = newAuthority(o.Guest); err != nil {
		return nil, fmt.Errorf("make the certificate authority of guest %s: %w", o.Guest, err)
	}
	return s, nil
}

// Trust returns the certificate of the guest's own authority, in PEM.
func (s *Server) Trust() []byte { return s.ca.pem() }

// Watch calls fn with the last events (at most last of them; 0: all that are
// kept), and with follow goes on with new ones until ctx ends, the Server is
// closed or fn fails. It never holds up a connection: who is too slow misses
// events, and is told how many by one of no kind. Events are shared: fn must not
// change them.
func (s *Server) Watch(ctx context.Context, last int, follow bool, fn func(*api.EgressEvent) error) error {
	return s.events.watch(ctx, last, follow, fn)
}

// Serve carries one stream of the guest, whose first frame is an Open, and
// returns when it has ended. It closes conn.
func (s *Server) Serve(ctx context.Context, client net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := s.enter(ctx, client, cancel)
	if c == nil {
		return
	}
	defer s.leave(c)
	defer c.rescue()
	defer context.AfterFunc(ctx, func() { c.close("the guest's way out was closed") })()
	waited, stop := context.WithTimeout(ctx, arrivalWait)
	err := s.arrive.Wait(waited)
	stop()
	if err != nil {
		s.flooded(fmt.Sprintf("it opens more than %d connections a second", arrivals))
		return
	}
	c.serve(ctx)
}

// enter counts a new connection, or refuses it.
func (s *Server) enter(ctx context.Context, client net.Conn, cancel context.CancelFunc) *conn {
	c := &conn{s: s, id: s.lastConn.Add(1), client: client, ctx: ctx, cancel: cancel, started: time.Now()}
	s.mu.Lock()
	full, closed := len(s.conns) >= maxConns, s.closed
	if !full && !closed {
		s.conns[c] = struct{}{}
		s.wg.Add(1)
		c.socks = map[net.Conn]netip.Addr{client: {}}
	}
	s.mu.Unlock()
	if full || closed {
		client.Close()
		if full {
			s.flooded(fmt.Sprintf("it has %d connections already", maxConns))
		}
		return nil
	}
	return c
}

// leave is the last step of every connection.
func (s *Server) leave(c *conn) {
	c.end()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.wg.Done()
}

// flooded says, at most once a second, that connections are refused unread.
func (s *Server) flooded(why string) {
	s.flood.Do(func() {
		reason := "connections of the guest are refused: " + why
		s.events.add(&api.EgressEvent{Kind: api.EgressEventKind_EGRESS_EVENT_KIND_CONNECT,
			Verdict: &api.EgressVerdict{Action: api.EgressAction_EGRESS_ACTION_DENY, Reason: reason}})
		s.told.tell("", "carrel: "+reason)
	})
}

// rescue keeps a panic in one connection from ending the process, and with it
// the guest's other connections. Every goroutine of a connection defers it.
func (c *conn) rescue() {
	p := recover()
	if p == nil {
		return
	}
	// What panicked may hold what it worked on; a stack holds only numbers.
	what := c.s.hide(fmt.Sprint(p))
	c.s.log.Error("a connection panicked and was closed", "connection", c.id, "panic", text(what, 256), "stack", string(debug.Stack()))
	why := "An error of Carrel's own; its log says more."
	c.close(why)
	c.s.mu.Lock()
	said := c.said
	c.s.mu.Unlock()
	if !said {
		c.sayRefused(&refusal{reason: why})
	}
}

// Close ends every connection, question, watcher and port, and waits for them.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	var ports []*port
	for _, p := range s.ports {
		ports = append(ports, p)
	}
	s.mu.Unlock()
	for _, p := range ports {
		p.close()
	}
	for _, c := range conns {
		c.close("the guest's way out was closed")
	}
	s.wg.Wait()
	s.told.close()
	s.events.close()
	return nil
}
