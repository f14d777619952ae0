package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
)

// conn is one connection of the guest.
//
//	open → judged → granted → passing or inspected → ended
//	  └───────┴─────────┴── refused ──────────────────┘
type conn struct {
	s       *Server
	id      uint64
	client  net.Conn
	ctx     context.Context // ends with the connection; for net.Conn's methods, which take none
	cancel  context.CancelFunc
	started time.Time

	// Set by open, before anybody else sees the connection.
	task string
	host string // to show: canonical, or quoted
	port uint32
	dest policy.Destination

	up, down atomic.Int64
	moved    atomic.Int64 // when a byte last went either way: nanoseconds since started
	maxUp    atomic.Int64
	slow     atomic.Pointer[[]*rates]

	// Guarded by s.mu.
	granted   bool                         // the rules allowed it: new rules are held against it
	answered  bool                         // somebody answered with yes
	inspected bool                         // its requests are judged one by one
	said      bool                         // its CONNECT event is out, with ALLOW
	live      map[*policy.Request]struct{} // requests under way
	socks     map[net.Conn]netip.Addr      // the guest's, and those to servers, with the address that was dialled
	last      netip.Addr                   // of those addresses
	gone      string                       // why it ended
	ended     bool
}

// serve takes a connection through its steps.
func (c *conn) serve(ctx context.Context) {
	if err := c.open(); err != nil {
		c.s.log.Warn("a stream of the guest is not an egress stream", "connection", c.id, "error", text(c.s.hide(err.Error()), 256))
		return
	}
	v, no := c.decide(ctx)
	if no != nil {
		c.refuse(ctx, no, nil)
		return
	}
	if !v.Inspect && c.port != 443 && c.port != 80 {
		c.dialFirst(ctx)
		return
	}
	// The client speaks first on these ports, or has to for a rule to be applied.
	c.client.SetReadDeadline(time.Now().Add(helloTimeout))
	hello, err := c.hello(c.client)
	c.client.SetReadDeadline(time.Time{})
	switch {
	case err == nil:
		if no := c.checkHello(hello, true); no != nil {
			c.refuse(ctx, no, hello.raw)
			return
		}
		if v.Inspect || hello.ech {
			c.inspect(ctx, hello)
			return
		}
		server, no := c.connect(ctx)
		if no != nil {
			c.refuse(ctx, no, hello.raw)
			return
		}
		c.pass(ctx, server, &hello)
	case errors.Is(err, errNotTLS) && c.port == 443:
		c.refuse(ctx, &refusal{reason: "What is not TLS may not use port 443."}, hello.raw)
	case errors.Is(err, errNotTLS):
		c.inspectClear(ctx, hello.raw)
	default:
		c.refuse(ctx, helloRefusal(err), hello.raw)
	}
}

// decide judges the connection by the rules of this moment and, where they say
// so, waits for an answer.
func (c *conn) decide(ctx context.Context) (policy.Verdict, *refusal) {
	switch {
	case c.port == 0 || c.port > 65535:
		return policy.Verdict{}, &refusal{reason: "There is no such port."}
	case c.dest.Host == (policy.Host{}):
		return policy.Verdict{}, &refusal{reason: "The host is not a name or an address in its usual form."}
	}
	for {
		f := c.s.current()
		v := f.connect(c.dest, c.answered)
		if v.Action == api.EgressAction_EGRESS_ACTION_ASK {
			yes, no := c.ask(ctx, f, v, nil)
			if no != nil {
				return v, no
			}
			c.s.mu.Lock()
			c.answered = c.answered || yes
			c.s.mu.Unlock()
			continue
		}
		if !allowed(v) {
			return v, c.deny(v, nil)
		}
		c.s.mu.Lock()
		if c.s.conf == f {
			c.granted, c.inspected = true, v.Inspect
			c.slow.Store(new(f.slowed(v)))
			c.maxUp.Store(v.MaxUp)
			c.s.mu.Unlock()
			return v, nil
		}
		c.s.mu.Unlock()
	}
}

// hello reads a ClientHello, within the bound on long ones.
func (c *conn) hello(r io.Reader) (clientHello, error) {
	held := false
	h, err := readHello(r, func() bool {
		select {
		case c.s.longs <- struct{}{}:
			held = true
		default:
		}
		return held
	})
	if held {
		<-c.s.longs // what is kept of it now is the connection's one buffer
	}
	return h, err
}

// helloRefusal makes a refusal of an error of readHello.
func helloRefusal(err error) *refusal {
	var h helloError
	switch {
	case errors.As(err, &h):
		return &refusal{reason: "The TLS connection cannot be checked: " + string(h) + "."}
	case isTimeout(err):
		return &refusal{reason: fmt.Sprintf("The client did not say which server it wants within %d s.", int(helloTimeout.Seconds()))}
	}
	return &refusal{reason: "The client went away before it said which server it wants."}
}

// checkHello holds a ClientHello against the destination. strict is for ports on
// which everything is TLS: there a name has to be there.
func (c *conn) checkHello(h clientHello, strict bool) *refusal {
	_, literal := c.dest.Host.Addr()
	if h.early {
		return &refusal{reason: "The client sends data before the TLS handshake is done (0-RTT)."}
	}
	if h.name == "" {
		if literal || !strict {
			return nil
		}
		return &refusal{reason: "The TLS connection names no server (it has no SNI)."}
	}
	if host, err := policy.ParseHost(h.name); err != nil || host != c.dest.Host {
		return &refusal{reason: fmt.Sprintf("The TLS connection names another server, %s.", text(strconv.QuoteToASCII(h.name), 80))}
	}
	return nil
}

// keep makes a socket to a server one that ends with the connection, and has new
// rules held against the address to which it leads. If the connection has ended
// or the guest has too many of them, it closes it and says why.
func (c *conn) keep(k net.Conn, a netip.Addr) error {
	c.s.mu.Lock()
	gone, ended, full := c.gone, c.ended, c.s.servers >= maxServers
	if !ended && !full {
		c.socks[k] = a
		c.s.servers++
		if a.IsValid() {
			c.last = a
		}
	}
	c.s.mu.Unlock()
	switch {
	case ended:
		hangUp(k)
		return &refusal{reason: "The connection was closed: " + gone + "."}
	case full:
		hangUp(k)
		return fmt.Errorf("the guest has %d connections to servers already", maxServers)
	}
	return nil
}

// drop closes a socket before the connection ends.
func (c *conn) drop(k net.Conn) {
	c.s.mu.Lock()
	if _, is := c.socks[k]; is {
		delete(c.socks, k)
		c.s.servers--
	}
	c.s.mu.Unlock()
	k.Close()
}

// close ends the connection at once: when it returns, no byte goes either way.
// The first reason counts, and says so.
func (c *conn) close(why string) (first bool) {
	c.s.mu.Lock()
	if !c.ended {
		c.ended, c.gone, first = true, why, true
	}
	socks := c.socks
	c.socks = nil
	for k := range socks {
		if k != c.client {
			c.s.servers--
		}
	}
	c.s.mu.Unlock()
	c.cancel()
	for k := range socks {
		hangUp(k)
	}
	return first
}

// hangUp closes a socket without waiting for anybody. TLS would first say
// goodbye, for 5 s if the other end does not listen. And who handed a socket over
// can make it one that blocks (O_NONBLOCK is not a descriptor's own), so that Close
// would wait for a call that does not return.
func hangUp(k net.Conn) {
	switch k := k.(type) {
	case *prefixed:
		hangUp(k.Conn)
	case *tls.Conn:
		hangUp(k.NetConn())
	case *net.UnixConn:
		k.CloseRead()
		k.CloseWrite()
		k.Close()
	default:
		k.Close()
	}
}

// end records the end of a connection that was let out.
func (c *conn) end() {
	c.close("")
	c.s.mu.Lock()
	said, why, last := c.said, c.gone, c.last
	c.s.mu.Unlock()
	if !said {
		return
	}
	ev := ended(c.event(api.EgressEventKind_EGRESS_EVENT_KIND_END), c.started, c.up.Load(), c.down.Load())
	ev.Verdict = c.verdict(api.EgressAction_EGRESS_ACTION_ALLOW, nil, c.inspected, why, "")
	if last.IsValid() {
		ev.Address = last.String()
	}
	c.s.events.add(ev)
}

// inspect hands a TLS connection to the inspector.
func (c *conn) inspect(ctx context.Context, h clientHello) {
	c.inspecting()
	raw := h.raw
	c.s.inspect(ctx, c.counted(raw), h, c.leg(false))
}

// inspectClear hands a connection without TLS to the inspector. spoken is what
// was read of it.
func (c *conn) inspectClear(ctx context.Context, spoken []byte) {
	c.inspecting()
	c.s.inspectClear(ctx, c.counted(spoken), c.leg(true))
}

func (c *conn) inspecting() {
	f := c.s.current()
	c.s.mu.Lock()
	c.inspected = true
	c.s.mu.Unlock()
	c.sayAllowed(f.connect(c.dest, c.answered), netip.Addr{})
}

// dialFirst serves a connection on a port where either side may speak first.
func (c *conn) dialFirst(ctx context.Context) {
	server, no := c.connect(ctx)
	if no != nil {
		c.refuse(ctx, no, nil)
		return
	}
	c.pass(ctx, server, nil)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
