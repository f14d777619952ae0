//lint:file-ignore SA1019 net/http serves HTTP/2 on its own *tls.Conn or in clear
// only, and ours has to pass an observer of frames that bounds floods.

package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/carrel-vm/carrel/guest/policy"
)

// Bounds of one inspected connection.
const (
	// headTimeout is how long the head of a request may take to come.
	headTimeout = 15 * time.Second
	// keepAlive is how long a connection may wait for its next request.
	keepAlive = 3 * time.Minute
	// maxStreams is how many requests one HTTP/2 connection may have at once.
	maxStreams = 100
	// Flow control windows of HTTP/2, in bytes: what a guest may send before it is
	// read, in all and for one request.
	connWindow   = 1 << 20
	streamWindow = 512 << 10
)

// inspection serves one connection whose requests are judged one by one. It is a
// server to the guest and a client to the destination, with net/http between the
// two: what a guest sent is parsed, judged, and written anew.
//
//	guest ─ TLS ─ gate ─ net/http server ─ check ─ judge ─ exchange ─ transport ─ TLS ─ server
//	        (HTTP/2: frames)                └── refuse ──┘ (inspect_forward.go)
type inspection struct {
	s    *Server
	leg  *leg
	up   *http.Transport
	gate *gate // nil for HTTP/2
	// secure: the guest speaks TLS, and so does what leads to the destination.
	secure bool

	mu      sync.Mutex
	running int  // requests
	over    bool // the connection has ended: no more of them
	idle    chan struct{}
}

// inspect terminates TLS for exactly the destination's name and serves what
// comes. The caller has read the ClientHello; client begins with it again.
func (s *Server) inspect(ctx context.Context, client net.Conn, _ clientHello, l *leg) {
	t := tls.Server(client, &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if err := sameName(h.ServerName, l.dest.Host); err != nil {
				return nil, err
			}
			return s.ca.leaf(l.dest.Host)
		},
		// Each connection has keys of its own; a ticket would be of no use.
		SessionTicketsDisabled: true,
	})
	shake, stop := context.WithTimeout(ctx, helloTimeout)
	err := t.HandshakeContext(shake)
	stop()
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "remote error" {
			l.note(policy.Request{}, "The client does not accept the certificate that the guest's own authority made for "+l.dest.Host.String()+": "+text(op.Err.Error(), 100)+".")
		}
		s.log.Info("a TLS handshake with the guest failed", "to", l.dest.String(), "error", text(l.secrets().Redact(err.Error()), 256))
		closeWrite(client)
		drain(client)
		return
	}
	i := newInspection(s, l, true)
	if t.ConnectionState().NegotiatedProtocol == "h2" {
		i.serve2(ctx, client, newFrames(t))
		return
	}
	i.gate = newGate(t)
	i.serve(ctx, client, i.gate)
}

// inspectClear serves HTTP/1.1 without TLS. Nothing else is taken for HTTP, no
// secret is ever added, and HTTP/2 is not offered.
func (s *Server) inspectClear(ctx context.Context, client net.Conn, l *leg) {
	i := newInspection(s, l, false)
	i.gate = newGate(client)
	i.serve(ctx, client, i.gate)
}

func newInspection(s *Server, l *leg, secure bool) *inspection {
	i := &inspection{s: s, leg: l, secure: secure, idle: make(chan struct{})}
	i.up = i.transport()
	return i
}

// sameName holds the name in a ClientHello against the destination. An address
// has no name: RFC 6066, 3.
func sameName(name string, h policy.Host) error {
	if _, literal := h.Addr(); literal && name == "" {
		return nil
	}
	if got, err := policy.ParseHost(name); err != nil || got != h {
		return fmt.Errorf("the client asked for another server than %s", h)
	}
	return nil
}

// serve serves HTTP/1 on conn, which is what client carries, until it ends or ctx
// does, and waits for what it started.
func (i *inspection) serve(ctx context.Context, client, conn net.Conn) {
	i.during(ctx, client, func(ctx context.Context, cancel func()) {
		one := &oneConn{conn: make(chan net.Conn, 1), over: make(chan struct{}), addr: client.LocalAddr()}
		one.conn <- conn
		srv := i.server()
		srv.BaseContext = func(net.Listener) context.Context { return ctx }
		srv.ConnState = one.watch
		srv.Serve(one)
		if !one.taken.Load() {
			cancel()
		}
	})
}

// serve2 is serve for HTTP/2.
func (i *inspection) serve2(ctx context.Context, client, conn net.Conn) {
	i.during(ctx, client, func(ctx context.Context, cancel func()) {
		s := http2.Server{
			MaxConcurrentStreams: maxStreams, IdleTimeout: keepAlive, WriteByteTimeout: idleLimit,
			MaxUploadBufferPerConnection: connWindow, MaxUploadBufferPerStream: streamWindow,
			MaxDecoderHeaderTableSize: 4 << 10, MaxEncoderHeaderTableSize: 4 << 10,
		}
		s.ServeConn(conn, &http2.ServeConnOpts{Context: ctx, BaseConfig: i.server(), Handler: i})
		cancel()
	})
}

// during runs f, which serves the connection, and waits for what it started.
func (i *inspection) during(ctx context.Context, client net.Conn, f func(ctx context.Context, cancel func())) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Not what is on top of it: closing TLS would first try to say so.
	defer context.AfterFunc(ctx, func() { client.Close() })()
	watch := i.watch(ctx, client)
	f(ctx, cancel)
	i.end()
	cancel()
	<-watch
}

func (i *inspection) server() *http.Server {
	return &http.Server{
		Handler: i, ErrorLog: quiet,
		ReadHeaderTimeout: headTimeout, IdleTimeout: keepAlive, MaxHeaderBytes: maxHead,
	}
}

// quiet takes what net/http has to say about a guest or a server: their words,
// which tell nobody anything that an event does not.
var quiet = log.New(io.Discard, "", 0)

// watch closes the connection when no byte went either way for idleLimit.
func (i *inspection) watch(ctx context.Context, client net.Conn) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(idleLimit / 16)
		defer tick.Stop()
		last, still := int64(-1), 0
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if now := i.leg.up.Load() + i.leg.down.Load(); now != last {
				last, still = now, 0
			} else if still++; still >= 16 {
				client.Close()
				return
			}
		}
	}()
	return done
}

// begin counts a request, unless the connection has ended.
func (i *inspection) begin() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.over {
		return false
	}
	i.running++
	return true
}

func (i *inspection) finish() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.running--; i.over && i.running == 0 {
		close(i.idle)
	}
}

// end waits for the requests that are still being served (their contexts have
// ended, or theirs is the connection now), and closes what leads to the server.
func (i *inspection) end() {
	i.mu.Lock()
	i.over = true
	running := i.running
	i.mu.Unlock()
	if running > 0 {
		<-i.idle
	}
	i.up.CloseIdleConnections()
}

// oneConn is a listener of one connection. It ends when net/http has let go of
// that: closed it, or given it to a handler.
type oneConn struct {
	conn chan net.Conn
	addr net.Addr

	once  sync.Once
	over  chan struct{}
	taken atomic.Bool // by a handler, which closes it
}

func (o *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-o.conn:
		return c, nil
	default:
	}
	<-o.over
	return nil, net.ErrClosed
}

func (o *oneConn) Close() error   { return nil }
func (o *oneConn) Addr() net.Addr { return o.addr }

func (o *oneConn) watch(_ net.Conn, state http.ConnState) {
	if state == http.StateClosed || state == http.StateHijacked {
		o.once.Do(func() {
			o.taken.Store(state == http.StateHijacked)
			close(o.over)
		})
	}
}

// drain reads on after a last answer, so that what the guest still sends does
// not have the answer thrown away with a reset.
func drain(c net.Conn) {
	c.SetReadDeadline(time.Now().Add(drainTimeout))
	io.CopyN(io.Discard, c, maxDrain)
}
