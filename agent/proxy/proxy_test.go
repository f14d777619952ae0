package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/carrel-vm/carrel/guest/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for. One that passes does not take longer for
// it, and a busy machine may be slower than any guess.
const patience = 5 * time.Minute

// world is a proxy and the host's end of its streams.
type world struct {
	t     *testing.T
	proxy *Proxy
	addr  string
	opens chan *wire.Open

	mu   sync.Mutex
	fail error // what dial says
}

// newWorld serves each stream with host, which owns it.
func newWorld(t *testing.T, host func(o *wire.Open, c *net.TCPConn)) *world {
	t.Helper()
	w := &world{t: t, opens: make(chan *wire.Open, 1024)}
	streams, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			c, err := streams.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				o := new(wire.Open)
				b := make([]byte, 1)
				var frame []byte
				for len(frame) == 0 || frame[len(frame)-1] >= 0x80 { // the length, without reading more
					if _, err := io.ReadFull(c, b); err != nil {
						return
					}
					frame = append(frame, b[0])
				}
				if err := wire.NewReader(io.MultiReader(bytes.NewReader(frame), io.LimitReader(c, size(frame)))).Read(o); err != nil {
					t.Errorf("the first frame of a stream: %v", err)
					return
				}
				w.opens <- o
				host(o, c.(*net.TCPConn))
			})
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	w.proxy, err = New(l, func(ctx context.Context) (net.Conn, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.fail != nil {
			return nil, w.fail
		}
		return new(net.Dialer).DialContext(ctx, "tcp", streams.Addr().String())
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.proxy.Serve(context.Background()) }()
	t.Cleanup(func() {
		w.proxy.Close()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		streams.Close()
		group.Wait()
	})
	return w
}

func size(varint []byte) (n int64) {
	for i, b := range varint {
		n |= int64(b&0x7f) << (7 * i)
	}
	return n
}

// echo says what it hears, to the end, and then "bye".
func echo(_ *wire.Open, c *net.TCPConn) {
	if _, err := io.Copy(c, c); err == nil {
		_, _ = c.Write([]byte("bye"))
	}
}

func (w *world) dial() *net.TCPConn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// say sends s and returns all that comes back to the end.
func (w *world) say(s string) string {
	w.t.Helper()
	c := w.dial()
	if _, err := c.Write([]byte(s)); err != nil {
		w.t.Fatal(err)
	}
	_ = c.CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil {
		w.t.Fatalf("after %q: %v", b, err)
	}
	return string(b)
}

// env is the value of a variable of a task.
func (w *world) env(task, name string) *url.URL {
	w.t.Helper()
	for _, v := range w.proxy.Env(task) {
		if s, ok := strings.CutPrefix(v, name+"="); ok {
			u, err := url.Parse(s)
			if err != nil {
				w.t.Fatal(err)
			}
			return u
		}
	}
	w.t.Fatalf("no %s", name)
	return nil
}

func (w *world) authorization(task string) string {
	r := http.Request{Header: http.Header{}}
	password, _ := w.env(task, "HTTP_PROXY").User.Password()
	r.SetBasicAuth(w.env(task, "HTTP_PROXY").User.Username(), password)
	return "Proxy-Authorization: " + r.Header.Get("Authorization") + "\r\n"
}

func (w *world) wantOpen(host string, port uint32, task string) {
	w.t.Helper()
	select {
	case o := <-w.opens:
		if o.Host != host || o.Port != port || o.Task != task {
			w.t.Errorf("the host was asked for %v, want %s %d of %q", o, host, port, task)
		}
	case <-time.After(patience):
		w.t.Fatal("the host was asked for nothing")
	}
}

func (w *world) wantNoOpen() {
	w.t.Helper()
	select {
	case o := <-w.opens:
		w.t.Errorf("the host was asked for %v", o)
	default:
	}
}

const task = "01JD0000000000000000000000"

func TestTunnel(t *testing.T) {
	w := newWorld(t, echo)
	got := w.say("CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n" + w.authorization(task) + "\r\nhello")
	if want := "HTTP/1.1 200 Connection established\r\n\r\nhellobye"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	w.wantOpen("api.example.com", 443, task)
	if got := w.say("CONNECT [2001:db8::1]:22 HTTP/1.1\r\n" + w.authorization("") + "\r\n"); !strings.HasSuffix(got, "\r\n\r\nbye") {
		t.Errorf("%q", got)
	}
	w.wantOpen("2001:db8::1", 22, "")
}

// TestLarge: many bytes both ways at once.
func TestLarge(t *testing.T) {
	w := newWorld(t, echo)
	c := w.dial()
	fmt.Fprintf(c, "CONNECT big.example:443 HTTP/1.1\r\n%s\r\n", w.authorization(task))
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	})
	r := bufio.NewReader(c)
	if _, err := http.ReadResponse(r, &http.Request{Method: "CONNECT"}); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	up.Wait()
	if err != nil || !bytes.Equal(got, append(sent, "bye"...)) {
		t.Errorf("%d bytes of %d came back, %v", len(got), len(sent)+3, err)
	}
}

// TestHostEnds: the end of the host's side alone is an end, a break is a reset.
func TestHostEnds(t *testing.T) {
	heard := make(chan string, 1)
	w := newWorld(t, func(o *wire.Open, c *net.TCPConn) {
		if o.Host == "breaks.example" {
			_ = c.SetLinger(0)
			return
		}
		_, _ = c.Write([]byte("first"))
		_ = c.CloseWrite()
		b, _ := io.ReadAll(c)
		heard <- string(b)
	})
	c := w.dial()
	fmt.Fprintf(c, "CONNECT half.example:443 HTTP/1.1\r\n%s\r\n", w.authorization(task))
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(b), "\r\n\r\nfirst") {
		t.Fatalf("%q, %v", b, err)
	}
	fmt.Fprint(c, "later")
	_ = c.CloseWrite()
	if got := <-heard; got != "later" {
		t.Errorf("after its own end the host heard %q", got)
	}
	c = w.dial()
	fmt.Fprintf(c, "CONNECT breaks.example:443 HTTP/1.1\r\n%s\r\n", w.authorization(task))
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a stream that was broken off ended in order")
	}
}

// TestForward: what a server gets of a request for an http URL.
func TestForward(t *testing.T) {
	requests := make(chan string, 8)
	w := newWorld(t, func(_ *wire.Open, c *net.TCPConn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			t.Errorf("the server: %v", err)
			return
		}
		body, _ := io.ReadAll(req.Body)
		var b strings.Builder
		fmt.Fprintf(&b, "%s %s host=%s close=%t ", req.Method, req.RequestURI, req.Host, req.Close)
		for _, f := range []string{"Proxy-Authorization", "Proxy-Connection", "Upgrade", "X-Hop", "X-Kept", "User-Agent"} {
			if v, ok := req.Header[f]; ok {
				fmt.Fprintf(&b, "%s=%s ", f, v)
			}
		}
		fmt.Fprintf(&b, "body=%s", body)
		requests <- b.String()
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nanswer")
	})
	got := w.say("POST http://example.com:8080/a%2fb?q=1 HTTP/1.1\r\nHost: other.example\r\n" + w.authorization(task) +
		"Proxy-Connection: keep-alive\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nX-Kept: 2\r\nUpgrade: websocket\r\nContent-Length: 4\r\n\r\nbody" +
		"GET http://second.example/ HTTP/1.1\r\nHost: second.example\r\n\r\n")
	if !strings.HasSuffix(got, "answer") || strings.Count(got, "HTTP/1.1") != 1 {
		t.Errorf("the client got %q", got)
	}
	w.wantOpen("example.com", 8080, task)
	w.wantNoOpen() // the second request
	if got, want := <-requests, "POST /a%2fb?q=1 host=example.com:8080 close=true X-Kept=[2] body=body"; got != want {
		t.Errorf("the server got\n%s, want\n%s", got, want)
	}
	w.say("GET http://example.com HTTP/1.1\r\nHost: example.com\r\nUser-Agent: x\r\n" + w.authorization(task) + "\r\n")
	w.wantOpen("example.com", 80, task)
	if got, want := <-requests, "GET / host=example.com close=true User-Agent=[x] body="; got != want {
		t.Errorf("the server got\n%s, want\n%s", got, want)
	}
	w.say("PUT http://example.com/ HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n" + w.authorization(task) + "\r\n3\r\nabc\r\n0\r\n\r\n")
	w.wantOpen("example.com", 80, task)
	if got, want := <-requests, "PUT / host=example.com close=true body=abc"; got != want {
		t.Errorf("the server got\n%s, want\n%s", got, want)
	}
}

// TestEarlyAnswer: a refusal reaches a client that is still sending.
func TestEarlyAnswer(t *testing.T) {
	w := newWorld(t, func(_ *wire.Open, c *net.TCPConn) {
		fmt.Fprint(c, "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno\n")
	})
	c := w.dial()
	fmt.Fprintf(c, "POST http://example.com/ HTTP/1.1\r\nHost: example.com\r\nContent-Length: 1000000\r\n%s\r\n", w.authorization(task))
	var up sync.WaitGroup
	up.Go(func() {
		for range 1000 {
			if _, err := c.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	})
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != http.StatusForbidden {
		t.Errorf("%v, %v", res, err)
	} else {
		res.Body.Close()
	}
	c.Close()
	up.Wait()
}

func TestRefused(t *testing.T) {
	w := newWorld(t, echo)
	auth := w.authorization(task)
	for name, tc := range map[string]struct{ say, want string }{
		"no password":        {"CONNECT a.example:443 HTTP/1.1\r\n\r\n", "407"},
		"no password, http":  {"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "407"},
		"wrong password":     {"CONNECT a.example:443 HTTP/1.1\r\nProxy-Authorization: Basic dGFzazp3cm9uZw==\r\n\r\n", "407"},
		"other scheme":       {"CONNECT a.example:443 HTTP/1.1\r\n" + strings.Replace(auth, "Basic", "Bearer", 1) + "\r\n", "407"},
		"no base64":          {"CONNECT a.example:443 HTTP/1.1\r\nProxy-Authorization: Basic %%%\r\n\r\n", "407"},
		"no port":            {"CONNECT a.example HTTP/1.1\r\n" + auth + "\r\n", "400"},
		"port 0":             {"CONNECT a.example:0 HTTP/1.1\r\n" + auth + "\r\n", "400"},
		"port 65536":         {"CONNECT a.example:65536 HTTP/1.1\r\n" + auth + "\r\n", "400"},
		"no host":            {"CONNECT :443 HTTP/1.1\r\n" + auth + "\r\n", "400"},
		"long host":          {"CONNECT " + strings.Repeat("a", maxHost+1) + ":443 HTTP/1.1\r\n" + auth + "\r\n", "400"},
		"https":              {"GET https://a.example/ HTTP/1.1\r\nHost: a.example\r\n" + auth + "\r\n", "400"},
		"origin form":        {"GET / HTTP/1.1\r\nHost: a.example\r\n" + auth + "\r\n", "400"},
		"noise":              {"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "400"},
		"endless head":       {"GET http://a.example/ HTTP/1.1\r\nX: " + strings.Repeat("a", maxHead+1000), "400"},
		"two lengths":        {"POST http://a.example/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n" + auth + "\r\n", "400"},
		"space before colon": {"POST http://a.example/ HTTP/1.1\r\nHost: a\r\nContent-Length : 1\r\n" + auth + "\r\n", "400"},
	} {
		if got := w.say(tc.say); !strings.HasPrefix(got, "HTTP/1.1 "+tc.want+" ") {
			t.Errorf("%s: %.100q, want %s", name, got, tc.want)
		}
	}
	w.wantNoOpen()
	if got := w.say("CONNECT a.example:443 HTTP/1.1\r\n" + auth + "\r\n"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("control: %q", got)
	}
	w.mu.Lock()
	w.fail = errors.New("no")
	w.mu.Unlock()
	if got := w.say("CONNECT a.example:443 HTTP/1.1\r\n" + auth + "\r\n"); !strings.HasPrefix(got, "HTTP/1.1 502 ") {
		t.Errorf("without a host: %q", got)
	}
}

// TestAnotherProxysPassword: each has its own.
func TestAnotherProxysPassword(t *testing.T) {
	w, other := newWorld(t, echo), newWorld(t, echo)
	if got := w.say("CONNECT a.example:443 HTTP/1.1\r\n" + other.authorization(task) + "\r\n"); !strings.HasPrefix(got, "HTTP/1.1 407 ") {
		t.Errorf("%q", got)
	}
}

// TestNotLoopback: a listener that others can reach is refused.
func TestNotLoopback(t *testing.T) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := New(l, nil); err == nil {
		t.Error("a proxy for everybody")
	}
}

// TestCloseEndsAll: Close ends connections under way, and Serve waits for them.
func TestCloseEndsAll(t *testing.T) {
	w := newWorld(t, echo)
	c := w.dial()
	fmt.Fprintf(c, "CONNECT a.example:443 HTTP/1.1\r\n%s\r\n", w.authorization(task))
	w.wantOpen("a.example", 443, task)
	silent := w.dial()
	w.proxy.Close()
	if err := w.proxy.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
	for _, c := range []net.Conn{c, silent} {
		var ne net.Error
		if _, err := io.Copy(io.Discard, c); errors.As(err, &ne) && ne.Timeout() {
			t.Error("a connection goes on after Close")
		}
	}
}

// TestMany: more clients than places are closed, and the places come back.
func TestMany(t *testing.T) {
	// The first shall be there when the last comes, however slow the machine.
	usual := askTime
	askTime = patience
	t.Cleanup(func() { askTime = usual })
	w := newWorld(t, echo)
	var all []net.Conn
	for range maxConns {
		all = append(all, w.dial())
	}
	for deadline := time.Now().Add(patience); len(w.proxy.places) < maxConns && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	extra := w.dial()
	if n, err := extra.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("one client too many: %d bytes, %v", n, err)
	}
	for _, c := range all {
		c.Close()
	}
	for deadline := time.Now().Add(patience); len(w.proxy.places) > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if got := w.say("CONNECT a.example:443 HTTP/1.1\r\n" + w.authorization(task) + "\r\n"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("afterwards: %q", got)
	}
}

// TestPrograms: real clients, told by their environment only.
func TestPrograms(t *testing.T) {
	w := newWorld(t, func(_ *wire.Open, c *net.TCPConn) {
		if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello from %s", req.Host)
		}
	})
	t.Run("Go", func(t *testing.T) {
		for _, name := range []string{"HTTP_PROXY", "ALL_PROXY"} {
			tr := &http.Transport{Proxy: http.ProxyURL(w.env(task, name))}
			defer tr.CloseIdleConnections()
			res, err := (&http.Client{Transport: tr, Timeout: patience}).Get("http://example.com/")
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if string(b) != "hello from example.com" {
				t.Errorf("%s: %q", name, b)
			}
			w.wantOpen("example.com", 80, task)
		}
	})
	t.Run("curl", func(t *testing.T) {
		curl, err := exec.LookPath("curl")
		if err != nil {
			t.Skip("curl is not installed")
		}
		for _, only := range []string{"http_proxy", "ALL_PROXY"} {
			cmd := exec.CommandContext(t.Context(), curl, "-sS", "--max-time", "300", "http://example.com/")
			cmd.Env = []string{only + "=" + w.env(task, only).String()}
			b, err := cmd.CombinedOutput()
			if err != nil || string(b) != "hello from example.com" {
				t.Errorf("%s: %q, %v", only, b, err)
			}
			w.wantOpen("example.com", 80, task)
		}
	})
}
