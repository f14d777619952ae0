package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

// port is one way from the host into the guest.
type port struct {
	s    *Server
	spec *api.Port
	key  string    // of the request that opened it, or empty
	said *api.Port // what it asked for
	ln   net.Listener
	open func(guestPort uint32) (net.Conn, error)

	mu     sync.Mutex
	conns  map[io.Closer]struct{}
	closed bool
}

// Publish listens on a port of the host's loopback (or of an address that was
// given) and carries each connection to a port of the guest, which open opens.
// Host port 0 lets the host choose. It returns the port as it is, and is undone
// by Unpublish or Close. While a port is open that was asked for with the same key,
// unless that is empty, it is the answer; ErrReused: it was asked for otherwise.
func (s *Server) Publish(ctx context.Context, p *api.Port, key string, open func(guestPort uint32) (net.Conn, error)) (*api.Port, error) {
	spec := proto.Clone(p).(*api.Port)
	if spec.HostAddress == "" {
		spec.HostAddress = "127.0.0.1"
	}
	a, err := netip.ParseAddr(spec.HostAddress)
	if err != nil {
		return nil, fmt.Errorf("port %s: the address is not one of IP (leave it out for the loopback)", text(strconv.QuoteToASCII(spec.HostAddress), 80))
	}
	if spec.HostPort > 65535 || spec.GuestPort == 0 || spec.GuestPort > 65535 {
		return nil, fmt.Errorf("port %d:%d: ports are 1 to 65535", spec.HostPort, spec.GuestPort)
	}
	if was, err := s.openedBy(key, p); was != nil || err != nil {
		return was, err
	}
	s.mu.Lock()
	full, closed := len(s.ports) >= maxPorts, s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case full:
		return nil, fmt.Errorf("port %d: the guest has %d already (take one away)", spec.HostPort, maxPorts)
	}
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(a, uint16(spec.HostPort)).String())
	if err != nil {
		return nil, fmt.Errorf("listen on port %d of the host: %w (choose another)", spec.HostPort, err)
	}
	real, err := netip.ParseAddrPort(ln.Addr().String())
	if err != nil {
		ln.Close()
		return nil, err
	}
	spec.HostAddress, spec.HostPort = real.Addr().String(), uint32(real.Port())
	in := &port{s: s, spec: spec, key: key, said: proto.Clone(p).(*api.Port), ln: ln, open: open, conns: map[io.Closer]struct{}{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.ports[spec.HostPort] != nil || len(s.ports) >= maxPorts {
		ln.Close()
		return nil, fmt.Errorf("port %d: it was taken meanwhile", spec.HostPort)
	}
	s.ports[spec.HostPort] = in
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		in.accept()
	}()
	return proto.Clone(spec).(*api.Port), nil
}

// ErrReused says that a key came with another request before.
var ErrReused = errors.New("the idempotency key came with another request before")

// openedBy is the port that a request with the key has opened.
func (s *Server) openedBy(key string, p *api.Port) (*api.Port, error) {
	if key == "" {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, in := range s.ports {
		switch {
		case in.key != key:
		case !proto.Equal(in.said, p):
			return nil, ErrReused
		default:
			return proto.Clone(in.spec).(*api.Port), nil
		}
	}
	return nil, nil
}

// Unpublish closes a port and its connections.
func (s *Server) Unpublish(hostPort uint32) error {
	s.mu.Lock()
	p := s.ports[hostPort]
	delete(s.ports, hostPort)
	s.mu.Unlock()
	if p == nil {
		return fmt.Errorf("port %d of the host does not lead into the guest", hostPort)
	}
	p.close()
	return nil
}

// Ports lists the ports that lead into the guest, in no order.
func (s *Server) Ports() []*api.Port {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*api.Port
	for _, p := range s.ports {
		all = append(all, proto.Clone(p.spec).(*api.Port))
	}
	return all
}

func (p *port) accept() {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		in, err := p.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// There may be no free descriptor, on the whole machine: that passes.
			p.s.log.Error("a port into the guest takes no connection", "port", p.spec.HostPort, "error", err)
			time.Sleep(acceptPause)
			continue
		}
		select {
		case p.s.inward <- struct{}{}:
		default:
			in.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-p.s.inward }()
			p.serve(in)
		})
	}
}

// serve carries one connection both ways, with half-close.
func (p *port) serve(in net.Conn) {
	defer in.Close()
	if !p.keep(in) {
		return
	}
	defer p.drop(in)
	to, err := p.open(p.spec.GuestPort)
	if err != nil {
		p.s.log.Warn("a connection from the host did not reach the guest", "port", p.spec.HostPort, "error", text(p.s.hide(err.Error()), 256))
		return
	}
	defer to.Close()
	if !p.keep(to) {
		return
	}
	defer p.drop(to)
	done := make(chan struct{})
	go func() {
		defer close(done)
		carry(in, to)
	}()
	carry(to, in)
	<-done
}

// carry copies until src ends, and ends both where dst takes no more.
func carry(dst, src net.Conn) {
	if _, err := io.Copy(dst, src); err != nil || closeWrite(dst) != nil {
		dst.Close()
		src.Close()
	}
}

func (p *port) keep(c io.Closer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.conns[c] = struct{}{}
	}
	return !p.closed
}

func (p *port) drop(c io.Closer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *port) close() {
	p.ln.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for c := range p.conns {
		c.Close()
	}
}
