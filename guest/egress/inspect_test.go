package egress

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestInspectCarriesRequests(t *testing.T) {
	for _, up := range []string{"h2", "http/1.1"} {
		both(t, func(t *testing.T, h2 bool) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			t.Run(up, func(t *testing.T) {
				kept(t, 1, func() int64 {
					r := newRig(t)
					r.serveTLS(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
						b, _ := io.ReadAll(q.Body)
						w.Header().Set("X-Seen", fmt.Sprintf("%s %s %s %d %s", q.Method, q.Host, q.RequestURI, q.ProtoMajor, b))
						w.Header().Set("X-Header", q.Header.Get("X-Header"))
						w.Header().Add("Set-Cookie", "a=1")
						w.Header().Add("Set-Cookie", "b=2")
						w.Header().Set("Alt-Svc", `h3=":443"`)
						w.WriteHeader(http.StatusAccepted)
						io.WriteString(w, "hello")
					}), up)
					c := r.client(h2)
					for _, method := range []string{"GET", "POST", "HEAD", "DELETE", "PROPFIND"} {
						body := ""
						if method == "POST" {
							body = "body"
						}
						q := request(t, method, r.url("/a/%2F/b?x=1;y&z=%zz"), strings.NewReader(body))
						q.Header.Set("X-Header", "v")
						res, got := get(t, c, q)
						major := 1
						if up == "h2" {
							major = 2
						}
						want := fmt.Sprintf("%s api.example.org /a/%%2F/b?x=1;y&z=%%zz %d %s", method, major, body)
						if res.StatusCode != 202 || strings.TrimSpace(res.Header.Get("X-Seen")) != strings.TrimSpace(want) || res.Header.Get("X-Header") != "v" {
							t.Errorf("%s: %d %v", method, res.StatusCode, res.Header)
						}
						if method != "HEAD" && got != "hello" || (res.ProtoMajor == 2) != h2 {
							t.Errorf("%s: %q over %s", method, got, res.Proto)
						}
						if len(res.Header["Set-Cookie"]) != 2 || res.Header.Get("Alt-Svc") != "" {
							t.Errorf("%s: %v", method, res.Header)
						}
					}
					eventually(t, func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.ends) == 5 })
					n := r.dials.Load()
					if len(r.judged) != 5 || n == 1 && r.ends[1] != [2]int64{4, 5} {
						t.Errorf("judged %v, ends %v", r.judged, r.ends)
					}
					return n
				})
			})
		})
	}
}

func TestInspectLargeBodies(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		r := newRig(t)
		r.serve(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			// What comes goes back, and its hash is the trailer.
			w.Header().Set("Trailer", "X-Sum")
			sum := sha256.New()
			http.NewResponseController(w).EnableFullDuplex()
			io.Copy(w, io.TeeReader(q.Body, sum))
			w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
		}))
		const size = 8 << 20
		sent, came := sha256.New(), sha256.New()
		q := request(t, "POST", r.url("/echo"), io.TeeReader(io.LimitReader(rand.Reader, size), sent))
		res, err := r.client(h2).Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		n, err := io.Copy(came, res.Body)
		if err != nil || n != size || !bytes.Equal(sent.Sum(nil), came.Sum(nil)) || res.Trailer.Get("X-Sum") != fmt.Sprintf("%x", sent.Sum(nil)) {
			t.Errorf("%d bytes, trailer %v, %v", n, res.Trailer, err)
		}
	})
}

// Events, long polls: each piece arrives before the next one is sent.
func TestInspectStreams(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		r := newRig(t)
		next, gone := make(chan int), make(chan struct{})
		r.serve(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(200)
			http.NewResponseController(w).Flush()
			for i := range next {
				fmt.Fprintf(w, "data: %d\n\n", i)
				http.NewResponseController(w).Flush()
			}
			<-q.Context().Done()
			close(gone)
		}))
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		res, err := r.client(h2).Do(request(t, "GET", r.url("/events"), nil).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(res.Body)
		for i := range 5 {
			next <- i
			line, err := in.ReadString('\n')
			if err != nil || line != fmt.Sprintf("data: %d\n", i) {
				t.Fatalf("%q %v", line, err)
			}
			in.ReadString('\n')
		}
		close(next)
		// A client that goes away is known at the origin.
		cancel()
		select {
		case <-gone:
		case <-time.After(patience):
			t.Error("the origin does not hear that the client went away")
		}
	})
}

// gRPC: messages both ways on one HTTP/2 stream, the status in a trailer that
// was announced, or in one that was not.
func TestInspectGRPC(t *testing.T) {
	for _, announced := range []bool{true, false} {
		r := newRig(t)
		r.serveTLS(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.Header.Get("Te") != "trailers" || q.ProtoMajor != 2 {
				w.WriteHeader(500)
			}
			w.Header().Set("Content-Type", "application/grpc")
			status := "Grpc-Status"
			if announced {
				w.Header().Set("Trailer", status)
			} else {
				status = http.TrailerPrefix + status
			}
			b := make([]byte, 4)
			for {
				if _, err := io.ReadFull(q.Body, b); err != nil {
					break
				}
				w.Write(b)
				http.NewResponseController(w).Flush()
			}
			w.Header().Set(status, "7")
		}), "h2")
		pr, pw := io.Pipe()
		q := request(t, "POST", r.url("/pkg.Service/Method"), pr)
		q.Header.Set("Te", "trailers")
		q.Header.Set("Content-Type", "application/grpc")
		go pw.Write([]byte("ping"))
		res, err := r.client(true).Do(q)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4)
		for i := range 3 {
			if i > 0 {
				pw.Write([]byte("ping"))
			}
			if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "ping" {
				t.Fatalf("%q %v", b, err)
			}
		}
		pw.Close()
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != 200 || res.Trailer.Get("Grpc-Status") != "7" || res.Header.Get("Content-Type") != "application/grpc" {
			t.Errorf("announced %v: %s %v %v", announced, res.Status, res.Header, res.Trailer)
		}
	}
}

// Expect: 100-continue is judged before the body is sent, and in HTTP/1 the origin
// is asked too (over HTTP/2 net/http asks for the body itself once the request is
// on its way).
func TestInspectContinue(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		r := newRig(t)
		r.serve(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.URL.Path == "/early" {
				w.WriteHeader(http.StatusConflict)
				return
			}
			b, _ := io.ReadAll(q.Body)
			w.Write(b)
		}))
		r.allow(onPath("/in", "POST"), onPath("/early", "POST"))
		for path, want := range map[string]int{"/in": 200, "/out": 403, "/early": 409} {
			var read atomic.Bool
			q := request(t, "POST", r.url(path), readFunc(func(p []byte) (int, error) { read.Store(true); return 0, io.EOF }))
			q.ContentLength = -1
			q.Header.Set("Expect", "100-continue")
			res, _ := get(t, r.client(h2), q)
			if res.StatusCode != want || read.Load() != (want == 200) && !(h2 && path == "/early") {
				t.Errorf("%s: %d, body was sent: %v", path, res.StatusCode, read.Load())
			}
		}
	})
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// E23: an answer that leads elsewhere is the client's to follow.
func TestInspectFollowsNoRedirect(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		r := newRig(t)
		seen := 0
		r.serve(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			seen++
			w.Header().Set("Location", "https://evil.example.net/")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}))
		res, _ := get(t, r.client(h2), request(t, "POST", r.url("/"), strings.NewReader("x")))
		if res.StatusCode != 307 || res.Header.Get("Location") != "https://evil.example.net/" || seen != 1 || r.dials.Load() != 1 {
			t.Errorf("%s, the origin saw %d", res.Status, seen)
		}
	})
}

// E33: nothing is unpacked on the way: a small packed answer stays small.
func TestInspectUnpacksNothing(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	io.Copy(z, io.LimitReader(zeros{}, 8<<20))
	z.Close()
	r := newRig(t)
	r.serve(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Accept-Encoding") != "" {
			w.WriteHeader(500)
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.Write(packed.Bytes())
	}))
	res, body := get(t, r.client(true), request(t, "GET", r.url("/bomb"), nil))
	if res.StatusCode != 200 || body != packed.String() || res.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("%s %d bytes of %d", res.Status, len(body), packed.Len())
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A request that may have had an effect is not sent twice, even where the
// connection that was kept open turns out to be dead.
func TestInspectRepeatsNothing(t *testing.T) {
	kept(t, 1, func() int64 {
		r := newRig(t)
		seen := make(chan string, 16)
		r.serveRaw(func(head string, c net.Conn, in *bufio.Reader) {
			seen <- head
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			line, err := in.ReadString('\n') // the next request is read and dropped
			if err == nil {
				seen <- line
			}
		})
		c := r.client(false)
		if res, _ := get(t, c, request(t, "GET", r.url("/"), nil)); res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
		res, _ := get(t, c, request(t, "POST", r.url("/pay"), strings.NewReader("1")))
		n := r.dials.Load()
		if n == 1 && res.StatusCode != http.StatusBadGateway || len(seen) != 2 {
			t.Errorf("%s, %d requests seen on %d connections", res.Status, len(seen), n)
		}
		return n
	})
}

// The hop-by-hop fields, those that Connection names and those that say where a
// request came from end here.
func TestInspectHopByHop(t *testing.T) {
	r := newRig(t)
	var got http.Header
	r.serveTLS(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		got = q.Header
		w.Header().Set("Connection", "X-Mine")
		w.Header().Set("X-Mine", "1")
		w.Header().Set("Proxy-Authenticate", "Basic")
	}), "http/1.1")
	q := request(t, "GET", r.url("/"), nil)
	for _, h := range []string{"X-Named", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Te", "X-Forwarded-For", "Forwarded", "X-End"} {
		q.Header.Set(h, "v")
	}
	q.Header.Set("Connection", "X-Named")
	res, _ := get(t, r.client(false), q)
	for _, h := range []string{"X-Named", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Te", "X-Forwarded-For", "Forwarded", "Connection"} {
		if got.Get(h) != "" {
			t.Errorf("%s reached the origin", h)
		}
	}
	if got.Get("X-End") != "v" {
		t.Error("control: a field from end to end is gone")
	}
	if res.Header.Get("X-Mine") != "" || res.Header.Get("Proxy-Authenticate") != "" {
		t.Errorf("the origin's own reached the guest: %v", res.Header)
	}
}

// max_up_bytes holds for requests whose length is said and for those where it
// shows.
func TestInspectMaxUp(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		r := newRig(t)
		var mu sync.Mutex
		got := 0
		r.serve(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			b, _ := io.ReadAll(q.Body)
			mu.Lock()
			defer mu.Unlock()
			got = max(got, len(b))
		}))
		one := onPath("/**")
		one.MaxUpBytes = 64 << 10
		r.allow(one)
		for _, c := range []struct {
			size   int
			length bool
			path   string
			want   int
		}{{1 << 10, true, "/", 200}, {1 << 10, false, "/", 200}, {64 << 10, true, "/", 403}, {1 << 20, false, "/", 403}, {0, true, "/?" + strings.Repeat("x", 4<<10), 200}, {60 << 10, true, "/?" + strings.Repeat("x", 6<<10), 403}} {
			q := request(t, "POST", r.url(c.path), io.LimitReader(zeros{}, int64(c.size)))
			q.ContentLength = -1
			if c.length {
				q.ContentLength = int64(c.size)
			}
			res, _ := get(t, r.client(h2), q)
			if res.StatusCode != c.want {
				t.Errorf("%d bytes, length %v: %s", c.size, c.length, res.Status)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if got > 64<<10 || !r.noted("65536 bytes") {
			t.Errorf("%d bytes reached the origin; %q", got, r.notes)
		}
	})
}
