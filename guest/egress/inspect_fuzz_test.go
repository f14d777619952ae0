package egress

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
)

// FuzzHTTPJudge sends bytes of a guest through the inspector to an origin that
// reads with net/http on its own. Whatever the origin takes for a request was
// judged and allowed, as the same request, and no more came than were judged.
func FuzzHTTPJudge(f *testing.F) {
	const host = "Host: " + origin + "\r\n"
	for _, s := range []string{
		"GET /ok/1 HTTP/1.1\r\n" + host + "\r\n",
		"GET /ok/1 HTTP/1.1\r\n" + host + "\r\nGET /no HTTP/1.1\r\n" + host + "\r\n",
		"POST /ok/1 HTTP/1.1\r\n" + host + "Content-Length: 4\r\n\r\nbodyGET /ok/2 HTTP/1.1\r\n" + host + "\r\n",
		"POST /ok/1 HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-T: v\r\n\r\nGET /no HTTP/1.1\r\n" + host + "\r\n",
		"POST /ok/1 HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET /no HTTP/1.1\r\n" + host + "\r\n",
		"GET http://api.example.org/ok/1?a=b&c HTTP/1.1\r\n" + host + "\r\n",
		"GET http://evil.example.net/ok/1 HTTP/1.1\r\n" + host + "\r\n",
		"GET /ok/%2e%2e/no HTTP/1.1\r\n" + host + "X-HTTP-Method-Override: DELETE\r\n\r\n",
		"HEAD /ok/;/no HTTP/1.0\r\n" + host + "Connection: keep-alive, X-A\r\nX-A: b\r\n c\r\n\r\n",
		"GET /ok/s HTTP/1.1\r\n" + host + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + socketKey + "\r\n\r\nGET /no HTTP/1.1\r\n" + host + "\r\n",
		"POST /ok/1 HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
		"DELETE /ok/1 HTTP/1.1\r\n" + host + "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		if len(sent) > 1<<20 {
			return
		}
		r := newClearRig(t)
		r.allow(&api.EgressRule{Host: origin, Ports: []uint32{80}, Paths: []string{"/ok/**"}, Methods: []string{"GET", "POST", "HEAD"}})
		var mu sync.Mutex
		var seen []string
		var bytesSeen bytes.Buffer
		r.pipe = func(c net.Conn) {
			go func() {
				defer c.Close()
				in := bufio.NewReader(io.TeeReader(c, lockedWriter{&mu, &bytesSeen}))
				for {
					q, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					mu.Lock()
					seen = append(seen, fmt.Sprintf("%s %s %s", q.Method, q.Host, q.URL.EscapedPath()))
					mu.Unlock()
					if q.Header.Get("Expect") != "" {
						io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
					}
					if _, err := io.Copy(io.Discard, q.Body); err != nil {
						return
					}
					if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); err != nil {
						return
					}
				}
			}()
		}
		guest, server := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.s.inspectClear(context.Background(), server, r.leg())
			server.Close()
		}()
		guest.SetDeadline(time.Now().Add(time.Second))
		go func() {
			guest.Write(sent)
			// A pipe has no half-close: a last request that is refused ends it.
			io.WriteString(guest, "\r\n\r\n\x00\n")
			guest.SetDeadline(time.Now().Add(50 * time.Millisecond))
		}()
		io.Copy(io.Discard, guest)
		guest.Close()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatal("the inspector does not end")
		}
		mu.Lock()
		defer mu.Unlock()
		r.mu.Lock()
		defer r.mu.Unlock()
		var good []string
		for _, q := range r.judged {
			if v := r.rules.Request(r.dest, q); allowed(v) {
				good = append(good, fmt.Sprintf("%s %s %s", q.Method, origin, q.Path))
			}
		}
		if len(seen) > len(good) {
			t.Fatalf("judged %q, and the origin saw %q", good, seen)
		}
		for i, s := range seen {
			if s != good[i] {
				t.Fatalf("judged %q, and the origin saw %q", good, seen)
			}
		}
		if strings.Contains(strings.ToLower(bytesSeen.String()), "upgrade: h2c") {
			t.Fatal("h2c was passed on")
		}
	})
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// FuzzGate holds what the gate lets through against net/http: of the same stream
// it has to see the same requests, and none that the gate did not.
func FuzzGate(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), uint8(3))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n"), uint8(1))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), uint8(255))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\nraw"), uint8(16))
	f.Fuzz(func(t *testing.T, sent []byte, piece uint8) {
		g := newGate(&scripted{r: bytes.NewReader(sent), piece: int(piece) + 1})
		var out bytes.Buffer
		_, err := io.Copy(&out, g)
		if err == nil && g.state != gateRaw && g.state != gateHead {
			t.Fatalf("the stream ends well in state %d", g.state)
		}
		if !bytes.Equal(bytes.TrimSuffix(out.Bytes(), []byte(malformedMethod+" / HTTP/1.1\r\nHost: malformed\r\n\r\n")), sent[:min(len(sent), passed(out.Bytes()))]) {
			t.Fatalf("the gate changed %q to %q", sent, out.Bytes())
		}
		// What it let through is what net/http reads, to the last byte.
		in := bufio.NewReader(&out)
		for {
			q, err := http.ReadRequest(in)
			if err != nil {
				break
			}
			if q.Method == malformedMethod {
				if in.Buffered() > 0 || out.Len() > 0 {
					t.Fatalf("something follows a malformed request")
				}
				return
			}
			if len(q.TransferEncoding) > 0 && q.Header.Get("Content-Length") != "" || len(q.Header["Host"]) > 0 {
				t.Fatalf("%q", sent)
			}
			if g.state == gateRaw && q.Header.Get("Upgrade") != "" {
				return
			}
			if _, err := io.Copy(io.Discard, q.Body); err != nil {
				break
			}
		}
	})
}

// passed is how much of the stream is in out, without the stand-in for a
// malformed request.
func passed(out []byte) int {
	return len(bytes.TrimSuffix(out, []byte(malformedMethod+" / HTTP/1.1\r\nHost: malformed\r\n\r\n")))
}

// scripted is a connection that says what it was given, in pieces.
type scripted struct {
	net.Conn
	r     io.Reader
	piece int
}

func (s *scripted) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), s.piece)]) }
