package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
)

// connect dials the destination for a connection whose bytes pass, and records
// that it is let out.
func (c *conn) connect(ctx context.Context) (net.Conn, *refusal) {
	server, a, err := c.dial(ctx, false)
	var no *refusal
	switch {
	case errors.As(err, &no):
		return nil, no
	case err != nil:
		return nil, &refusal{failed: true, reason: text(err.Error(), 200)}
	}
	c.sayAllowed(c.s.current().connect(c.dest, c.answered), a)
	return server, nil
}

// dial opens one connection to the destination, directly or through the host's
// own proxy. The connection ends with c.
func (c *conn) dial(ctx context.Context, clear bool) (net.Conn, netip.Addr, error) {
	ctx, stop := context.WithTimeout(ctx, dialTimeout)
	defer stop()
	via, err := c.via(clear)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	var server net.Conn
	var a netip.Addr
	if via != nil {
		server, err = c.dialProxy(ctx, via, clear)
	} else {
		server, a, err = c.dialDirect(ctx)
	}
	if err != nil {
		return nil, netip.Addr{}, err
	}
	if err := c.keep(server, a); err != nil {
		return nil, netip.Addr{}, err
	}
	if a.IsValid() {
		// Rules that came between the check and now have not seen the address.
		if err := c.checkAddr(a); err != nil {
			c.drop(server)
			return nil, netip.Addr{}, err
		}
	}
	return server, a, nil
}

// via says which proxy leads to the destination; nil: none.
func (c *conn) via(clear bool) (*url.URL, error) {
	f := c.s.current()
	if f.proxy == nil || c.dest.Host.IsHost() {
		return nil, nil
	}
	u := &url.URL{Scheme: "https", Host: c.dest.String()}
	if clear {
		u.Scheme = "http"
	}
	via, err := f.proxy(u)
	if err != nil || via == nil {
		return nil, err
	}
	if _, literal := c.dest.Host.Addr(); literal {
		return nil, &refusal{reason: "Through the host's own proxy only names are reached, since it is the proxy that resolves them."}
	}
	return via, nil
}

// dialDirect resolves the destination once, checks each address and dials one of
// those that are allowed.
func (c *conn) dialDirect(ctx context.Context) (net.Conn, netip.Addr, error) {
	found, err := c.lookup(ctx)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	var to []netip.Addr
	var first error
	for _, a := range found {
		if err := c.checkAddr(a); err == nil {
			to = append(to, a)
		} else if first == nil {
			first = err
		}
	}
	if len(to) == 0 {
		return nil, netip.Addr{}, first
	}
	return c.race(ctx, to)
}

// lookup returns the destination's addresses.
func (c *conn) lookup(ctx context.Context) ([]netip.Addr, error) {
	if a, literal := c.dest.Host.Addr(); literal {
		return []netip.Addr{a}, nil
	}
	if c.dest.Host.IsHost() {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	ctx, stop := context.WithTimeout(ctx, lookupTimeout)
	defer stop()
	select {
	case c.s.lookups <- struct{}{}:
		defer func() { <-c.s.lookups }()
	case <-ctx.Done():
		return nil, fmt.Errorf("resolve %s: too many names are resolved at once", c.dest.Host)
	}
	find := c.s.opts.Lookup
	if find == nil {
		find = lookupHost
	}
	found, err := find(ctx, c.dest.Host.String())
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", c.dest.Host, unplaced(err))
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("resolve %s: it has no address", c.dest.Host)
	}
	if len(found) > maxAddresses {
		found = found[:maxAddresses]
	}
	for i, a := range found {
		found[i] = a.Unmap()
	}
	return found, nil
}

// lookupHost asks the host's resolver. On Linux Go reads its configuration by
// itself: the C library would load modules that a confined process cannot. The
// dot keeps the search list away: the name is complete. A name of one label has
// no place in the DNS, and is looked up in the host's hosts file alone.
func lookupHost(ctx context.Context, name string) ([]netip.Addr, error) {
	if !strings.Contains(name, ".") {
		files := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errNoDNS }}
		return files.LookupNetIP(ctx, "ip", name)
	}
	r := net.Resolver{PreferGo: runtime.GOOS == "linux"}
	return r.LookupNetIP(ctx, "ip", name+".")
}

// unplaced takes out of an error which of the host's own servers it is about,
// and from which address it was asked: the guest is told.
func unplaced(err error) error {
	if d := (*net.DNSError)(nil); errors.As(err, &d) {
		return errors.New(d.Err) // whoever wraps it says which name
	}
	if o := (*net.OpError)(nil); errors.As(err, &o) {
		return o.Err
	}
	return err
}

var errNoDNS = errors.New("a name of one label is not asked for in the DNS")

// checkAddr holds an address against the rules of this moment.
func (c *conn) checkAddr(a netip.Addr) error {
	own, err := c.s.own.get()
	if err != nil {
		return err
	}
	f := c.s.current()
	err = f.rules.Address(c.dest, a, own)
	if err == nil {
		return nil
	}
	no := &refusal{reason: text(err.Error(), maxReason)}
	if rule, bad := policy.NewEgress([]*api.EgressRule{{Action: api.EgressAction_EGRESS_ACTION_ALLOW,
		Host: c.dest.Host.String(), Ports: []uint32{c.port}, Private: true}}); bad == nil && rule.Address(c.dest, a, own) == nil {
		no.cure = c.allow(" --private")
	}
	return no
}

// race dials checked addresses, each a little after the one before, and returns
// the first that answers.
func (c *conn) race(ctx context.Context, to []netip.Addr) (net.Conn, netip.Addr, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	type result struct {
		conn net.Conn
		addr netip.Addr
		err  error
	}
	results := make(chan result)
	next := time.NewTimer(0)
	defer next.Stop()
	var first error
	started, under := 0, 0
	for {
		if started == len(to) && under == 0 {
			return nil, netip.Addr{}, first
		}
		var tick <-chan time.Time
		if started < len(to) {
			tick = next.C
		}
		select {
		case <-tick:
			a := to[started]
			started++
			under++
			go func() {
				r := result{addr: a}
				defer func() { results <- r }()
				defer c.rescue()
				r.err = fmt.Errorf("dial %s failed", netip.AddrPortFrom(a, c.dest.Port))
				r.conn, r.err = c.dialAddr(ctx, a)
			}()
			next.Reset(dialStagger)
		case r := <-results:
			under--
			if r.err == nil {
				// Those still under way end with ctx; who comes too late is closed.
				go func() {
					for ; under > 0; under-- {
						if late := <-results; late.conn != nil {
							late.conn.Close()
						}
					}
				}()
				return r.conn, r.addr, nil
			}
			if first == nil {
				first = r.err
			}
			next.Reset(0)
		}
	}
}

// dialAddr dials one address. What the socket is really about to connect to is
// checked once more, whoever chose it.
func (c *conn) dialAddr(ctx context.Context, a netip.Addr) (net.Conn, error) {
	to := netip.AddrPortFrom(a, c.dest.Port)
	done, err := c.dialling(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if c.s.opts.Dial != nil {
		if err := c.checkAddr(a); err != nil {
			return nil, err
		}
		return c.s.opts.Dial(ctx, to)
	}
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 20 * time.Second, Count: 6},
		Control: func(_, address string, _ syscall.RawConn) error {
			real, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			if real.Port() != c.dest.Port {
				return fmt.Errorf("%s is not the port that was decided on", real)
			}
			return c.checkAddr(real.Addr().Unmap())
		},
	}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", to.String())
}

// dialling waits until there is room for one more socket that is being connected.
func (c *conn) dialling(ctx context.Context) (done func(), err error) {
	select {
	case c.s.dials <- struct{}{}:
		return func() { <-c.s.dials }, nil
	case <-ctx.Done():
		return nil, errors.New("too many connections are being made at once")
	}
}

// ownAddrs are the host's own addresses, asked for at most every few seconds.
type ownAddrs struct {
	list func() ([]netip.Addr, error)

	mu    sync.Mutex
	known []netip.Addr
	at    time.Time
}

func (o *ownAddrs) get() ([]netip.Addr, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.at.IsZero() && time.Since(o.at) < 5*time.Second {
		return o.known, nil
	}
	list := o.list
	if list == nil {
		list = interfaceAddrs
	}
	known, err := list()
	if err != nil {
		return nil, fmt.Errorf("list the host's own addresses: %w", err)
	}
	o.known, o.at = known, time.Now()
	return known, nil
}

func interfaceAddrs() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap().WithZone(""))
		}
	}
	return out, nil
}
