package proxy

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
)

// Bounds of the proxy.
const (
	// maxConns is how many connections are served at once; more are closed.
	maxConns = 512
	// dialWait bounds how long the host may take to accept a stream. It does
	// so before it looks at what the stream is for.
	dialWait = 10 * time.Second
	// maxHead is the longest head of an HTTP request, in bytes.
	maxHead = 64 << 10
	// maxHost is the longest host of a wire.Open, in bytes.
	maxHost = 255
	// maxTask is the longest name of a task, in bytes.
	maxTask = 64
	// retryAccept is how long to wait when the system is short of something.
	retryAccept = 10 * time.Millisecond
)

// askTime is how long a client may take to say what it wants. Only a test sets it.
var askTime = 10 * time.Second

// nobody stands for the task where there is none. No task can be called so.
const nobody = "-"

// Proxy serves one guest.
type Proxy struct {
	listener net.Listener
	dial     func(ctx context.Context) (net.Conn, error)
	password string

	places chan struct{}
	group  sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool // of clients, and streams to the host
	closed bool
}

// New returns a proxy that will take connections from l, which has to be on the
// loopback, and owns it. dial opens a stream to the host's wire.PortEgress.
func New(l net.Listener, dial func(ctx context.Context) (net.Conn, error)) (*Proxy, error) {
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok || !a.IP.IsLoopback() {
		return nil, fmt.Errorf("the proxy would listen on %s, which is not the loopback", l.Addr())
	}
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("make the proxy's password: %w", err)
	}
	return &Proxy{
		listener: l, dial: dial, password: hex.EncodeToString(b[:]),
		places: make(chan struct{}, maxConns), conns: map[net.Conn]bool{},
	}, nil
}

// Env is NAME=value for the programs of one task, so that they use the proxy.
// task is "" where there is none.
func (p *Proxy) Env(task string) []string {
	if !validTask(task) {
		task = nobody
	}
	at := func(scheme string) string {
		return (&url.URL{Scheme: scheme, User: url.UserPassword(task, p.password), Host: p.listener.Addr().String()}).String()
	}
	// socks5h: the host looks names up, since the guest cannot.
	web, all, none := at("http"), at("socks5h"), "localhost,127.0.0.1,::1"
	return []string{
		"HTTP_PROXY=" + web, "HTTPS_PROXY=" + web, "ALL_PROXY=" + all, "NO_PROXY=" + none,
		"http_proxy=" + web, "https_proxy=" + web, "all_proxy=" + all, "no_proxy=" + none,
		"NODE_USE_ENV_PROXY=1", // Node.js 22.21 and 24 look at the others only then
	}
}

// Serve takes connections until Close, or until ctx or the listener ends, and
// returns when all of them have ended. Its error is nil after Close and ctx.
func (p *Proxy) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		_ = p.Close()
		p.group.Wait()
	}()
	stop := context.AfterFunc(ctx, func() { _ = p.Close() })
	defer stop()
	for {
		c, err := p.listener.Accept()
		if err != nil {
			if p.isClosed() {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("the proxy's listener has ended: %w", err)
			}
			// About one connection, or a shortage: accept(2).
			select {
			case <-time.After(retryAccept):
			case <-ctx.Done():
			}
			continue
		}
		client, ok := c.(*net.TCPConn)
		if !ok || !p.hold(client) {
			_ = c.Close()
			continue
		}
		select {
		case p.places <- struct{}{}:
		default:
			p.let(client)
			continue
		}
		p.group.Go(func() {
			defer func() { <-p.places }()
			defer p.let(client)
			p.serve(ctx, client)
		})
	}
}

// Close ends the listener and every connection. It may be called twice.
func (p *Proxy) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	for c := range p.conns {
		_ = c.Close()
	}
	return p.listener.Close()
}

func (p *Proxy) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// hold keeps c for Close, and says whether there has been none yet.
func (p *Proxy) hold(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.conns[c] = true
	}
	return !p.closed
}

// let closes what hold keeps.
func (p *Proxy) let(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// serve asks a client what it wants, by the first byte that it sends.
func (p *Proxy) serve(ctx context.Context, c *net.TCPConn) {
	_ = c.SetDeadline(time.Now().Add(askTime))
	head := &bounded{from: c, left: maxHead}
	r := bufio.NewReader(head)
	b, err := r.Peek(1)
	if err != nil {
		return
	}
	client := &client{conn: c, head: head, r: r}
	if b[0] == socksVersion {
		p.socks(ctx, client)
	} else {
		p.http(ctx, client)
	}
}

// client is a connection and what was read of it too early.
type client struct {
	conn *net.TCPConn
	head *bounded
	r    *bufio.Reader
}

// asked ends the bounds that hold while a client says what it wants.
func (c *client) asked() {
	c.head.left = -1
	_ = c.conn.SetDeadline(time.Time{})
}

// bounded reads at most left bytes; less than 0: any number.
type bounded struct {
	from io.Reader
	left int
}

var errHead = fmt.Errorf("more than %d bytes before it was clear what was asked for", maxHead)

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return b.from.Read(p)
	}
	if b.left == 0 {
		return 0, errHead
	}
	n, err := b.from.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// open opens a stream to the host for one destination. The caller lets it go.
func (p *Proxy) open(ctx context.Context, host string, port uint16, task string) (stream, error) {
	late, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	c, err := p.dial(late)
	if err != nil {
		return nil, err
	}
	s, ok := c.(stream)
	if !ok {
		_ = c.Close()
		return nil, errors.New("the stream to the host has no two ends")
	}
	if !p.hold(s) {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	if err := wire.Write(s, &wire.Open{Host: host, Port: uint32(port), Task: task}); err != nil {
		p.let(s)
		return nil, err
	}
	return s, nil
}

// allowed says whether a client knows the password, and which task it says it is.
func (p *Proxy) allowed(name, password string) (task string, ok bool) {
	if subtle.ConstantTimeCompare([]byte(password), []byte(p.password)) != 1 {
		return "", false
	}
	if !validTask(name) {
		name = ""
	}
	return name, true
}

func validTask(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= maxTask
}

// checkHost refuses what can be no host. What it means the host decides.
func checkHost(s string) error {
	if s == "" || len(s) > maxHost {
		return fmt.Errorf("a host of %d bytes; 1 to %d are possible", len(s), maxHost)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\ufffd' }) {
		return errors.New("a host with characters that no host has")
	}
	return nil
}

// hostPort splits and checks host:port. "" stands for no port where there may
// be none.
func hostPort(s, port string) (string, uint16, error) {
	host := s
	if h, p, err := net.SplitHostPort(s); err == nil {
		host, port = h, p
	} else if port == "" {
		return "", 0, errors.New("no port was named")
	} else if inner, ok := strings.CutPrefix(s, "["); ok {
		host, ok = strings.CutSuffix(inner, "]")
		if !ok {
			return "", 0, errors.New("an address that is not closed")
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", 0, errors.New("a port that is none")
	}
	return host, uint16(n), checkHost(host)
}
