package egress

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// fakeProxy answers CONNECT with whatever a test wants, and then stands for the
// server behind it.
type fakeProxy struct {
	addr   string
	answer string
	then   func(net.Conn)

	mu   sync.Mutex
	asks []string
}

func newFakeProxy(t *testing.T, cert *tls.Certificate) *fakeProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if cert != nil {
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{*cert}})
	}
	p := &fakeProxy{addr: ln.Addr().String()}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				var head strings.Builder
				for in := bufio.NewReader(c); !strings.HasSuffix(head.String(), "\r\n\r\n"); {
					line, err := in.ReadString('\n')
					if err != nil {
						return
					}
					head.WriteString(line)
				}
				p.mu.Lock()
				p.asks = append(p.asks, head.String())
				answer, then := p.answer, p.then
				p.mu.Unlock()
				io.WriteString(c, answer)
				if then != nil {
					then(c)
				}
			})
		}
	})
	return p
}

func (p *fakeProxy) set(answer string, then func(net.Conn)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer, p.then, p.asks = answer, then, nil
}

func (p *fakeProxy) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.asks...)
}

func (w *world) upstream(u *api.EdgeUpstream, rules ...*api.EgressRule) {
	w.t.Helper()
	if _, err := w.Configure(&api.ConfigureEdgeRequest{Rules: rules, Upstream: u}); err != nil {
		w.t.Fatal(err)
	}
}

// echoConn is echo for any connection.
func echoConn(c net.Conn) {
	io.Copy(c, c)
	closeWrite(c)
}

// Through the host's proxy names are reached, and only those that the rules
// allow; the proxy resolves them, so nothing is resolved here.
func TestProxy(t *testing.T) {
	ca := egresstest.NewAuthority(t)
	cert, err := ca.Leaf(time.Now().Add(time.Hour), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	secure := newFakeProxy(t, cert)
	clear := newFakeProxy(t, nil)
	w := newWorld(t, func(o *Options) { o.Roots = ca.PEM })
	rules := []*api.EgressRule{allow("a.example", 7), allow("direct.example", 7), allow("93.184.215.14", 7), allow("host.carrel.internal", 7)}
	w.serve("direct.example", somewhere, 7, echo)
	for _, x := range []struct {
		p   *fakeProxy
		url string
	}{{clear, "http://user:p%40ss@" + clear.addr}, {secure, "https://user:p%40ss@" + secure.addr}} {
		w.upstream(&api.EdgeUpstream{HttpsProxy: x.url, NoProxy: "direct.example"}, rules...)
		x.p.set("HTTP/1.1 200 Connection established\r\nX-Note: x\r\n\r\nthe server spoke first\n", echoConn)
		c := w.open("a.example", 7)
		in := bufio.NewReader(c)
		if line, err := in.ReadString('\n'); err != nil || line != "the server spoke first\n" {
			t.Fatalf("%s: %q, %v", x.url, line, err)
		}
		io.WriteString(c, "hello\n")
		if line, err := in.ReadString('\n'); err != nil || line != "hello\n" {
			t.Errorf("%s: %q, %v", x.url, line, err)
		}
		c.Close()
		if got := x.p.asked(); len(got) != 1 || got[0] != "CONNECT a.example:7 HTTP/1.1\r\nHost: a.example:7\r\nProxy-Authorization: Basic dXNlcjpwQHNz\r\n\r\n" {
			t.Errorf("%s was asked %q", x.url, got)
		}
		// Not allowed: the proxy hears nothing of it.
		x.p.set("HTTP/1.1 200 OK\r\n\r\n", echoConn)
		for _, host := range []string{"evil.example", "93.184.215.14", "host.carrel.internal"} {
			if err := says(w.open(host, 7)); err == nil {
				t.Errorf("%s was reached", host)
			}
		}
		if got := x.p.asked(); len(got) != 0 {
			t.Errorf("%s was asked %q", x.url, got)
		}
		if lookups, _ := w.outside(); len(lookups) != 0 {
			t.Errorf("resolved %q", lookups)
		}
		for what, answer := range map[string]string{
			"a no":                "HTTP/1.1 403 Forb\x1bidden\r\nContent-Length: 0\r\n\r\n",
			"authentication":      "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
			"a redirect":          "HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\n\r\n",
			"no HTTP":             "SSH-2.0-x\r\n",
			"nothing":             "",
			"headers without end": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxProxyAnswer),
		} {
			x.p.set(answer, nil)
			var before uint64
			if ev := w.last(); ev != nil {
				before = ev.Sequence
			}
			if err := says(w.open("a.example", 7)); err == nil {
				t.Errorf("%s passes", what)
			}
			ev := w.seen(what, func(ev *api.EgressEvent) bool {
				return ev.Sequence > before && (isDenied(ev) || isEnd(ev) && ev.Verdict.Reason != "")
			})
			if strings.Contains(ev.Verdict.Reason, "\x1b") || strings.Contains(ev.Verdict.Reason, "p@ss") || strings.Contains(ev.Verdict.Reason, "p%40ss") {
				t.Errorf("%s: %q", what, ev.Verdict.Reason)
			}
		}
		// NO_PROXY goes directly, with the address checked.
		if err := says(w.open("direct.example", 7)); err != nil {
			t.Errorf("direct: %v", err)
		}
		w.mu.Lock()
		w.names["direct.example"], w.lookups = []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil
		w.mu.Unlock()
		if err := says(w.open("direct.example", 7)); err == nil {
			t.Error("a private address was reached directly")
		}
		w.mu.Lock()
		w.names["direct.example"], w.lookups = []netip.Addr{somewhere}, nil
		w.mu.Unlock()
	}
	// A proxy whose certificate is not good is no way out.
	w2 := newWorld(t, nil)
	w2.upstream(&api.EdgeUpstream{HttpsProxy: "https://" + secure.addr}, rules...)
	if err := says(w2.open("a.example", 7)); err == nil {
		t.Error("a proxy that nobody vouches for was used")
	}
	// A change of the way out ends what went the old one.
	clear.set("HTTP/1.1 200 OK\r\n\r\n", echoConn)
	w.upstream(&api.EdgeUpstream{HttpsProxy: "http://" + clear.addr}, rules...)
	c := w.open("a.example", 7)
	if err := says(c); err != nil {
		t.Fatal(err)
	}
	w.configure(rules...)
	if err := says(c); err == nil {
		t.Error("the old way out still carries")
	}
}

func TestProxySettings(t *testing.T) {
	for _, bad := range []string{"socks5://127.0.0.1:1080", "http://", "http://user:secret@:80", "http://user:secret@bad host", "ftp://x", "://"} {
		_, err := compile(&api.ConfigureEdgeRequest{Upstream: &api.EdgeUpstream{HttpsProxy: bad}})
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, good := range []string{"http://proxy:3128", "proxy:3128", "https://u:p@proxy.example", "http://[::1]:3128"} {
		if _, err := compile(&api.ConfigureEdgeRequest{Upstream: &api.EdgeUpstream{HttpsProxy: good, HttpProxy: good}}); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

// plainOrigin serves HTTP on every address of the loopback and says who asked.
func plainOrigin(t *testing.T) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s via %q", r.Host, r.URL, r.Header.Get("Via"))
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return uint16(ln.Addr().(*net.TCPAddr).Port)
}
