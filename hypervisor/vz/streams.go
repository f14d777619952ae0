package vz

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Bounds of a guest's streams.
const (
	// maxStreams is how many may be open at once, both ways together.
	maxStreams = 1024
	// maxDialing is how many calls may wait for the framework, which has no bound
	// of its own for how long it waits for a guest.
	maxDialing = 64
	// backlog is how many streams may wait for an Accept.
	backlog = 64
	// maxBroken is how many times in a row an acceptor may fail.
	maxBroken = 16
	// dialTimeout bounds a dial whose caller does not.
	dialTimeout = 30 * time.Second
)

// streams are those of one guest.
type streams struct {
	mu     sync.Mutex
	m      machine // nil before the machine runs
	closed bool
	// reached says that the guest has dialled: its vsock driver works.
	reached bool
	ports   map[uint32]*listener
	live    map[*conn]struct{}
	dialing chan struct{}
	down    chan struct{} // closed by close
}

func newStreams() *streams {
	return &streams{ports: map[uint32]*listener{}, live: map[*conn]struct{}{}, dialing: make(chan struct{}, maxDialing), down: make(chan struct{})}
}

// open begins to listen: the machine runs.
func (s *streams) open(m machine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.m = m
	for _, l := range s.ports {
		if err := l.begin(m); err != nil {
			l.closeLocked(err) // nothing waits in it yet
		}
	}
}

// close ends every stream and listener.
func (s *streams) close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	close(s.down)
	for _, l := range s.ports {
		if l.from != nil { // a framework that hangs holds nothing up here
			go l.from.Close()
			l.from = nil
		}
		l.closeLocked(net.ErrClosed)
	}
	live := s.live
	s.live = nil
	s.mu.Unlock()
	for c := range live {
		c.stream.Close()
	}
}

// take makes a stream ours, or closes it if it is one too many.
func (s *streams) take(st stream) (*conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &conn{stream: st, s: s}
	switch {
	case s.closed:
		st.Close()
		return nil, hypervisor.ErrGone
	case len(s.live) >= maxStreams:
		st.Close()
		return nil, fmt.Errorf("the guest has %d streams, and may have no more", maxStreams)
	}
	s.live[c] = struct{}{}
	return c, nil
}

// conn is a stream that is counted.
type conn struct {
	stream
	s *streams
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.s.mu.Lock()
	delete(c.s.live, c)
	c.s.mu.Unlock()
	return c.stream.Close()
}

// dial asks the framework for a stream. Before the guest has dialled itself, it is
// not asked: what it does then is not documented.
func (s *streams) dial(ctx context.Context, port uint32) (net.Conn, error) {
	s.mu.Lock()
	m, ready, closed := s.m, s.reached, s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return nil, hypervisor.ErrGone
	case m == nil || !ready:
		return nil, hypervisor.ErrNotReady
	}
	select {
	case s.dialing <- struct{}{}:
	default:
		return nil, fmt.Errorf("dial port %d of the guest: %d calls wait for it already", port, maxDialing)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("dial port %d of the guest: no answer within %v", port, dialTimeout))
	defer cancel()
	type result struct {
		st  stream
		err error
	}
	got := make(chan result) // nobody takes what comes late
	go func() {
		st, err := m.Connect(port)
		<-s.dialing
		select {
		case got <- result{st, err}:
		case <-ctx.Done():
			if err == nil {
				st.Close()
			}
		}
	}()
	select {
	case r := <-got:
		if r.err != nil {
			return nil, fmt.Errorf("dial port %d of the guest: %w", port, r.err)
		}
		c, err := s.take(r.st)
		if err != nil {
			return nil, err
		}
		return c, nil
	case <-s.down:
		return nil, hypervisor.ErrGone
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// listen takes a port; with the machine it begins to accept.
func (s *streams) listen(port uint32) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, hypervisor.ErrGone
	}
	if s.ports[port] != nil { // the framework would take it from the other
		return nil, fmt.Errorf("port %d is listened on already", port)
	}
	l := &listener{s: s, port: port, queue: make(chan *conn, backlog), done: make(chan struct{})}
	if s.m != nil {
		if err := l.begin(s.m); err != nil {
			return nil, err
		}
	}
	s.ports[port] = l
	return l, nil
}

// listener is one port of the host. Accept returns after Close, though the
// framework's may not: one goroutine for each listener waits there as long as the
// process lives, which is as long as the guest.
type listener struct {
	s     *streams
	port  uint32
	queue chan *conn
	done  chan struct{} // closed by Close, and by the guest's end
	from  acceptor      // nil before the machine runs
	err   error         // what Accept says once done; set before
}

func (l *listener) begin(m machine) error {
	a, err := m.Listen(l.port)
	if err != nil {
		return fmt.Errorf("listen on port %d: %w", l.port, err)
	}
	l.from = a
	go l.pump(a)
	return nil
}

// pump takes what the guest dials. What nobody accepts is bounded: a guest may
// dial as often as it likes.
func (l *listener) pump(a acceptor) {
	for broken := 0; ; {
		st, err := a.Accept()
		if err != nil {
			select {
			case <-l.done:
				return
			default:
			}
			// One stream that could not be made is no reason to refuse the next.
			if broken++; broken < maxBroken {
				continue
			}
			l.fail(err)
			return
		}
		broken = 0
		c, err := l.s.take(st)
		if err != nil {
			continue
		}
		if !l.offer(c) {
			c.Close()
		}
	}
}

// offer puts a stream into the queue, if it has room and somebody may still come.
func (l *listener) offer(c *conn) bool {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.s.reached = true
	select {
	case <-l.done:
		return false
	default:
	}
	select {
	case l.queue <- c:
		return true
	default:
		return false
	}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, l.err
	}
}

// Close implements net.Listener. Streams that nobody has accepted are closed.
func (l *listener) Close() error {
	l.fail(net.ErrClosed)
	return nil
}

func (l *listener) fail(why error) {
	l.s.mu.Lock()
	waiting := l.closeLocked(why)
	l.s.mu.Unlock()
	for _, c := range waiting {
		c.Close()
	}
}

// closeLocked ends a listener once and returns the streams that waited in it.
func (l *listener) closeLocked(why error) (waiting []*conn) {
	select {
	case <-l.done:
		return nil
	default:
	}
	l.err = why
	close(l.done)
	if l.s.ports[l.port] == l {
		delete(l.s.ports, l.port)
	}
	if l.from != nil {
		l.from.Close()
	}
	for {
		select {
		case c := <-l.queue:
			waiting = append(waiting, c)
		default:
			return waiting
		}
	}
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return addr(l.port) }

type addr uint32

func (addr) Network() string { return "vsock" }
func (a addr) String() string {
	return fmt.Sprintf("2:%d", uint32(a)) // VMADDR_CID_HOST
}
