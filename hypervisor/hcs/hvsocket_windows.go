package hcs

import (
	"context"
	"errors"
	"net"

	"github.com/Microsoft/go-winio"
	"github.com/Microsoft/go-winio/pkg/guid"
	"golang.org/x/sys/windows"
)

// hyperV carries bytes by Hyper-V's sockets: a vsock port of the guest is a
// service there, and an address names one guest alone. Who may connect or listen
// says the guest's description.
var hyperV = Carrier{
	Dial: func(ctx context.Context, vm guid.GUID, port uint32) (net.Conn, error) {
		type result struct {
			conn *winio.HvsockConn
			err  error
		}
		got := make(chan result, 1)
		go func() { // Dial looks at ctx only before and after; Hyper-V gives up after two seconds
			c, err := winio.Dial(ctx, &winio.HvsockAddr{VMID: vm, ServiceID: winio.VsockServiceID(port)})
			if err == nil && ctx.Err() != nil {
				err = errors.Join(ctx.Err(), c.Close())
			}
			got <- result{c, err}
		}()
		select {
		case r := <-got:
			if r.err != nil {
				return nil, r.err
			}
			return r.conn, nil
		case <-ctx.Done():
			go func() {
				if r := <-got; r.err == nil {
					r.conn.Close()
				}
			}()
			return nil, context.Cause(ctx)
		}
	},
	Listen: func(vm guid.GUID, port uint32) (net.Listener, error) {
		return winio.ListenHvsock(&winio.HvsockAddr{VMID: vm, ServiceID: winio.VsockServiceID(port)})
	},
	Pipe: func(name, descriptor string) (net.Listener, error) {
		return winio.ListenPipe(name, &winio.PipeConfig{SecurityDescriptor: descriptor, InputBufferSize: 64 << 10, OutputBufferSize: 4 << 10})
	},
}

// notYet says whether a dial failed because the guest's vsock driver is not up:
// Hyper-V then has no such address. A port on which nobody listens is refused.
func notYet(err error) bool {
	return errors.Is(err, windows.WSAENETUNREACH) || errors.Is(err, windows.WSAEHOSTUNREACH) ||
		errors.Is(err, windows.WSAEADDRNOTAVAIL) || errors.Is(err, windows.WSAETIMEDOUT)
}

// stream is one that the guest's end closes, if nobody did before.
type stream struct {
	net.Conn
	v *VM
}

// Read fills p. go-winio's panics where p is empty.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return s.Conn.Read(p)
}

// CloseWrite ends the direction to the guest.
func (s *stream) CloseWrite() error {
	h, ok := s.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return h.CloseWrite()
}

// Close ends both directions.
func (s *stream) Close() error {
	s.v.forget(s)
	return s.Conn.Close()
}

// listener is a port of the host for one guest, which the guest's end closes.
type listener struct {
	net.Listener
	v *VM
}

// Accept returns the next stream that the guest opens.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.v.keep(c)
}

// Close stops listening.
func (l *listener) Close() error {
	l.v.forget(l)
	return l.Listener.Close()
}
