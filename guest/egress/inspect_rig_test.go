package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/secret"
)

// origin is the name of the destination in these tests.
const origin = "api.example.org"

// rig is an inspector between a guest's client and an origin on loopback. What
// the core would do is done by the leg here: rules, addresses, events.
type rig struct {
	t     testing.TB
	s     *Server
	world *authority // the origin's
	dest  policy.Destination
	clear bool
	proxy *url.URL

	addr  string       // of the origin
	dials atomic.Int64 // to it

	mu     sync.Mutex
	rules  *policy.Egress
	edge   *secret.Edge
	judged []policy.Request
	notes  []string
	ends   [][2]int64
	pipe   func(server net.Conn) // instead of a socket
}

// newRig makes one for api.example.org:443, where everything is allowed.
func newRig(t testing.TB) *rig {
	t.Helper()
	ca, err := newAuthority("g")
	if err != nil {
		t.Fatal(err)
	}
	world, err := newAuthority("the world")
	if err != nil {
		t.Fatal(err)
	}
	nothing, err := compile(&api.ConfigureEdgeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, s: &Server{ca: ca, conf: nothing, log: slog.New(slog.DiscardHandler)}, world: world}
	r.dest = policy.Destination{Host: mustHost(t, origin), Port: 443}
	r.allow(&api.EgressRule{Host: origin, Inspect: true})
	return r
}

// newClearRig makes one for api.example.org:80.
func newClearRig(t testing.TB) *rig {
	r := newRig(t)
	r.clear, r.dest.Port = true, 80
	r.allow(&api.EgressRule{Host: origin, Ports: []uint32{80}, Inspect: true})
	return r
}

// allow replaces the rules by ones that allow, unless they say otherwise.
func (r *rig) allow(rules ...*api.EgressRule) {
	r.t.Helper()
	for _, rule := range rules {
		if rule.Action == api.EgressAction_EGRESS_ACTION_UNSPECIFIED {
			rule.Action = api.EgressAction_EGRESS_ACTION_ALLOW
		}
	}
	e, err := policy.NewEgress(rules)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rules = e
}

// secrets replaces the secrets.
func (r *rig) secrets(all ...*api.EdgeSecret) {
	r.t.Helper()
	e, err := secret.NewEdge(all)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.edge = e
}

// serve starts an origin.
func (r *rig) serve(h http.Handler) { r.serveTLS(h, "h2", "http/1.1") }

func (r *rig) serveTLS(h http.Handler, protos ...string) {
	r.t.Helper()
	leaf, err := r.world.leaf(r.dest.Host)
	if err != nil {
		r.t.Fatal(err)
	}
	r.serveWith(h, &tls.Config{Certificates: []tls.Certificate{*leaf}, NextProtos: protos})
}

func (r *rig) serveWith(h http.Handler, conf *tls.Config) {
	r.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	srv := &http.Server{Handler: h, ErrorLog: quiet}
	if !r.clear {
		ln = tls.NewListener(ln, conf)
	}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(ln) }()
	r.t.Cleanup(func() { srv.Close(); <-done })
}

// serveRaw starts an origin that reads one head of a request and then does what
// it likes.
func (r *rig) serveRaw(f func(head string, c net.Conn, in *bufio.Reader)) {
	r.t.Helper()
	leaf, err := r.world.leaf(r.dest.Host)
	if err != nil {
		r.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if !r.clear {
				c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*leaf}})
			}
			wg.Go(func() {
				defer c.Close()
				in := bufio.NewReader(c)
				head := ""
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						return
					}
					if head += line; line == "\r\n" {
						f(head, c, in)
						return
					}
				}
			})
		}
	})
	r.t.Cleanup(func() { ln.Close(); wg.Wait() })
}

func (r *rig) leg() *leg {
	return &leg{
		dest: r.dest, up: new(atomic.Int64), down: new(atomic.Int64), proxy: r.proxy,
		dial: func(ctx context.Context) (net.Conn, netip.Addr, error) {
			r.dials.Add(1)
			if r.pipe != nil {
				c, s := net.Pipe()
				r.pipe(s)
				return c, netip.Addr{}, nil
			}
			if r.addr == "" {
				return nil, netip.Addr{}, &refusal{reason: "there is no origin in this test"}
			}
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.addr)
			return c, netip.Addr{}, err
		},
		judge: func(_ context.Context, q policy.Request) judged {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.judged = append(r.judged, q)
			v := r.rules.Request(r.dest, q)
			j := judged{Verdict: v, Secret: v.Secret, MaxUp: v.MaxUp}
			if !j.allowed() {
				j.Line = "carrel: egress to " + r.dest.String() + " is not allowed: " + v.Reason
			}
			return j
		},
		secrets: func() *secret.Edge { r.mu.Lock(); defer r.mu.Unlock(); return r.edge },
		tls: func() *tls.Config {
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(r.world.pem())
			return &tls.Config{RootCAs: roots, ServerName: r.dest.Host.String()}
		},
		note: func(q policy.Request, reason string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.notes = append(r.notes, reason)
		},
		done: func(_ judged, up, down int64) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.ends = append(r.ends, [2]int64{up, down})
		},
	}
}

// noted says whether a note has these words in it.
func (r *rig) noted(words string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.notes, func(n string) bool { return strings.Contains(n, words) })
}

// dial opens a connection of the guest, which the inspector serves.
func (r *rig) dial() net.Conn {
	r.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	defer ln.Close()
	type accepted struct {
		c   net.Conn
		err error
	}
	got := make(chan accepted, 1)
	go func() { c, err := ln.Accept(); got <- accepted{c, err} }()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	a := <-got
	if a.err != nil {
		r.t.Fatal(a.err)
	}
	r.inspect(a.c)
	return client
}

// inspect serves the guest's side of a connection until the test ends.
func (r *rig) inspect(server net.Conn) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if r.clear {
			r.s.inspectClear(ctx, server, r.leg())
		} else {
			r.s.inspect(ctx, server, clientHello{}, r.leg())
		}
		server.Close()
	}()
	r.t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			r.t.Error("the inspector did not end with its connection")
		}
	})
}

// trust is the guest's TLS configuration.
func (r *rig) trust(protos ...string) *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.s.ca.pem())
	return &tls.Config{RootCAs: roots, ServerName: r.dest.Host.String(), NextProtos: protos}
}

// client is the guest's HTTP client.
func (r *rig) client(h2 bool) *http.Client {
	t := &http.Transport{
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return r.dial(), nil },
		TLSClientConfig: r.trust(), ForceAttemptHTTP2: h2, DisableCompression: true, ExpectContinueTimeout: patience,
	}
	r.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (r *rig) url(path string) string {
	if r.clear {
		return "http://" + origin + path
	}
	return "https://" + origin + path
}

// raw opens a connection of the guest on which bytes are written by hand.
func (r *rig) raw() net.Conn {
	r.t.Helper()
	c := r.dial()
	if !r.clear {
		c = tls.Client(c, r.trust())
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// ask writes bytes on a connection of its own and returns the answer's status
// line and body; what comes after a first answer is in rest. Nothing has to come, so
// that is waited for a moment only, unless more says what does.
func (r *rig) ask(bytes string, more ...string) (status, body, rest string) {
	r.t.Helper()
	c := r.raw()
	go io.WriteString(c, bytes)
	in := bufio.NewReader(c)
	method, _, _ := strings.Cut(bytes, " ")
	res, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		return "none: " + err.Error(), "", ""
	}
	b, _ := io.ReadAll(res.Body)
	var after []byte
	for len(more) > 0 && !strings.Contains(string(after), more[0]) {
		x, err := in.ReadByte()
		if err != nil {
			return res.Status, string(b), string(after)
		}
		after = append(after, x)
	}
	if !res.Close {
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	}
	last, _ := io.ReadAll(in)
	return res.Status, string(b), string(after) + string(last)
}

// get fetches and returns the status code and the body.
func get(t testing.TB, c *http.Client, req *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func request(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	q, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// both runs a test with HTTP/1.1 and with HTTP/2 on the guest's side.
func both(t *testing.T, f func(t *testing.T, h2 bool)) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%v", h2), func(t *testing.T) { f(t, h2) })
	}
}

// kept runs f again as long as it took more than most connections. net/http gives up
// one of HTTP/1 of which it does not hear within 50 ms after an answer that the request
// was written (maxWriteWaitBeforeConnReuse); on a busy machine that happens, and is
// no fault of the inspector's.
func kept(t *testing.T, most int64, f func() (connections int64)) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		n := f()
		if n <= most || t.Failed() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d connections, not %d", n, most)
		}
	}
}
