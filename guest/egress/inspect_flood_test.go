package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames opens a connection on which frames of HTTP/2 are written by hand.
func (r *rig) frames() (*http2.Framer, net.Conn) {
	r.t.Helper()
	c := tls.Client(r.dial(), r.trust("h2"))
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		r.t.Fatal(err)
	}
	f := http2.NewFramer(c, bufio.NewReader(c))
	if err := f.WriteSettings(); err != nil {
		r.t.Fatal(err)
	}
	return f, c
}

// headers packs fields for HTTP/2.
func headers(path string, more ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", origin}, {":path", path}} {
		e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	for i := 0; i+1 < len(more); i += 2 {
		e.WriteField(hpack.HeaderField{Name: more[i], Value: more[i+1]})
	}
	return b.Bytes()
}

// heap is what is in use, after a collection, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// E31: floods of headers end the connection, or the request, with little memory.
func TestInspectHeaderFloods(t *testing.T) {
	r := newRig(t)
	o := &recorder{}
	r.serve(o)
	// The control: by hand, in several frames, a request passes.
	f, _ := r.frames()
	block := headers("/good", "x-a", strings.Repeat("v", 4<<10))
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:100], EndStream: true})
	f.WriteContinuation(1, true, block[100:])
	if status := answerTo(t, f, 1); status != "200" || len(o.take()) != 1 {
		t.Fatalf("control: %s", status)
	}
	before := heap()
	for name, flood := range map[string]func(f *http2.Framer) error{
		"CONTINUATION": func(f *http2.Framer) error {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers("/"), EndStream: true})
			part := make([]byte, 16<<10)
			for i := range part {
				part[i] = 0x20 // a change of the table's size, which adds nothing
			}
			for range 8 << 10 {
				if err := f.WriteContinuation(1, false, part); err != nil {
					return err
				}
			}
			return nil
		},
		"empty CONTINUATION": func(f *http2.Framer) error {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers("/"), EndStream: true})
			for range 1 << 16 {
				if err := f.WriteContinuation(1, false, nil); err != nil {
					return err
				}
			}
			return nil
		},
		"pings": func(f *http2.Framer) error {
			for range 1 << 16 {
				if err := f.WritePing(false, [8]byte{}); err != nil {
					return err
				}
			}
			return nil
		},
		"empty DATA": func(f *http2.Framer) error {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers("/"), EndHeaders: true})
			for range 1 << 16 {
				if err := f.WriteData(1, false, nil); err != nil {
					return err
				}
			}
			return nil
		},
		"HPACK bomb": func(f *http2.Framer) error {
			var b bytes.Buffer
			e := hpack.NewEncoder(&b)
			e.WriteField(hpack.HeaderField{Name: "x-bomb", Value: strings.Repeat("v", 4000)})
			b.Write(bytes.Repeat([]byte{0x80 | 62}, 16000)) // the newest entry of the table, again
			for i := range uint32(1 << 8) {
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1 + 2*i, BlockFragment: append(headers("/"), b.Bytes()...), EndStream: true, EndHeaders: true})
				if err := f.WriteData(1+2*i, true, nil); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		f, c := r.frames()
		go io.Copy(io.Discard, c) // what is answered does not hold up the flood
		start := time.Now()
		if err := flood(f); err == nil && name != "HPACK bomb" { // refused stream by stream
			t.Errorf("%s: the connection took it all", name)
		}
		t.Logf("%s: over after %v", name, time.Since(start))
		if grown := heap() - before; grown > 64<<20 {
			t.Errorf("%s: %d MiB more in use", name, grown>>20)
		}
		if len(o.take()) > 0 {
			t.Errorf("%s reached the origin", name)
		}
	}
	// HTTP/1: 100 MB of one header, a million small ones.
	for name, line := range map[string]string{"long": strings.Repeat("v", 1<<20), "many": strings.Repeat("v\r\nX: v\r\n", 1<<17)} {
		c := r.raw()
		go io.Copy(io.Discard, c)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+origin+"\r\nX: ")
		var err error
		for n := 0; n < 100 && err == nil; n++ {
			_, err = io.WriteString(c, line)
		}
		if err == nil {
			t.Errorf("HTTP/1, %s: the connection took it all", name)
		}
	}
	if grown := heap() - before; grown > 64<<20 || len(o.take()) > 0 {
		t.Errorf("HTTP/1: %d MiB more in use", grown>>20)
	}
}

// answerTo returns the status of the answer on a stream, or why there is none.
func answerTo(t *testing.T, f *http2.Framer, stream uint32) (status string) {
	t.Helper()
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return err.Error()
		}
		switch fr := fr.(type) {
		case *http2.HeadersFrame:
			if fr.StreamID == stream {
				d := hpack.NewDecoder(4096, func(h hpack.HeaderField) {
					if h.Name == ":status" {
						status = h.Value
					}
				})
				d.Write(fr.HeaderBlockFragment())
				return status
			}
		case *http2.RSTStreamFrame:
			if fr.StreamID == stream {
				return "reset " + fr.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			return "gone " + fr.ErrCode.String()
		}
	}
}

// E31: streams that are opened and reset at once end the connection, and never
// keep more of the origin busy than streams may be open.
func TestInspectRapidReset(t *testing.T) {
	r := newRig(t)
	var busy, most atomic.Int64
	r.serve(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		n := busy.Add(1)
		defer busy.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-q.Context().Done()
	}))
	f, c := r.frames()
	go io.Copy(io.Discard, c)
	block := headers("/") // the same bytes each time: nothing of it enters the table twice
	var err error
	sent := 0
	for i := uint32(0); err == nil && i < 1<<17; i++ {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1 + 2*i, BlockFragment: block, EndStream: true, EndHeaders: true})
		err = f.WriteRSTStream(1+2*i, http2.ErrCodeCancel)
		sent++
	}
	t.Logf("%d streams", sent)
	if err == nil {
		t.Errorf("%d streams were taken", sent)
	}
	if most.Load() > maxStreams {
		t.Errorf("%d requests at once at the origin", most.Load())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.judged) > sent {
		t.Errorf("%d judged of %d", len(r.judged), sent)
	}
}

// Fields that HTTP/2 does not have, or has once.
func TestInspectFormsOfHTTP2(t *testing.T) {
	r := newRig(t)
	o := &recorder{}
	r.serve(o)
	for name, c := range map[string]struct {
		block []byte
		good  bool
	}{
		"control":           {headers("/", "x-a", "b"), true},
		"host agrees":       {headers("/", "host", origin), true},
		"host differs":      {headers("/", "host", "evil.example.net"), false},
		"connection":        {headers("/", "connection", "close"), false},
		"transfer-encoding": {headers("/", "transfer-encoding", "chunked"), false},
		"upgrade":           {headers("/", "upgrade", "websocket"), false},
		"two lengths":       {headers("/", "content-length", "0", "content-length", "5"), false},
		"odd length":        {headers("/", "content-length", "+0"), false},
		"upper case":        {headers("/", "X-A", "b"), false},
		"CR LF in a value":  {headers("/", "x-a", "b\r\nx-b: c"), false},
		"LF in a path":      {headers("/\nx"), false},
		"space in a path":   {headers("/ HTTP/1.1\r\nX: y"), false},
		"URL for a path":    {headers("https://evil.example.net/"), false},
		"no slash":          {headers("x"), false},
		"star":              {headers("*"), false},
		"second authority":  {headers("/", ":authority", "evil.example.net"), false},
		"second path":       {headers("/", ":path", "/other"), false},
		"pseudo at the end": {headers("/", "x-a", "b", ":path", "/other"), false},
		// What the guest says there is not looked at: the scheme is the connection's.
		"scheme": {bytes.Replace(headers("/"), []byte{0x87}, []byte{0x86}, 1), true},
	} {
		f, conn := r.frames()
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block, EndStream: true, EndHeaders: true})
		status := answerTo(t, f, 1)
		if seen := o.take(); (status == "200") != c.good || (len(seen) > 0) != c.good {
			t.Errorf("%s: %s, %q", name, status, seen)
		}
		conn.Close()
	}
}

// E32: who is slow is given up, at the times that are stated, and a slow body is
// not. The clock is the test's own.
func TestInspectSlowClients(t *testing.T) {
	for name, c := range map[string]struct {
		say   []string // a piece each ten seconds
		after time.Duration
		want  string
	}{
		"silent":            {nil, headTimeout, ""},
		"a slow head":       {strings.SplitAfter("GET / HTTP/1.1\r\nHost: "+origin+"\r\n\r\n", "1"), headTimeout, ""},
		"silent afterwards": {[]string{"GET / HTTP/1.1\r\nHost: " + origin + "\r\n\r\n"}, keepAlive, "200"},
		"a slow next head":  {append([]string{"GET / HTTP/1.1\r\nHost: " + origin + "\r\n\r\n"}, strings.SplitAfter("GET / HTTP/1.1\r\nHost: "+origin+"\r\nX: "+strings.Repeat("1", 100), "1")...), keepAlive, "200"},
		"a slow body":       {append([]string{"POST / HTTP/1.1\r\nHost: " + origin + "\r\nContent-Length: 50\r\n\r\n"}, strings.Split(strings.Repeat("b", 50), "")...), 500*time.Second + keepAlive, "200"},
		"a stopped body":    {[]string{"POST / HTTP/1.1\r\nHost: " + origin + "\r\nContent-Length: 50\r\n\r\nb"}, idleLimit, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newClearRig(t)
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				r.pipe = func(c net.Conn) {
					srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { io.Copy(io.Discard, q.Body) })}
					one := &oneConn{conn: make(chan net.Conn, 1), over: make(chan struct{}), addr: c.LocalAddr()}
					srv.ConnState = one.watch
					one.conn <- c
					go srv.Serve(one)
				}
				guest, server := net.Pipe()
				l := r.leg()
				start := time.Now()
				go func() {
					r.s.inspectClear(ctx, &meter{Conn: server, l: l}, l)
					server.Close()
				}()
				go func() {
					for _, s := range c.say {
						if _, err := io.WriteString(guest, s); err != nil {
							return
						}
						select {
						case <-time.After(10 * time.Second):
						case <-ctx.Done():
						}
					}
				}()
				got, _ := io.ReadAll(guest)
				took := time.Since(start)
				guest.Close()
				if took < c.after-10*time.Second || took > c.after+c.after/8+20*time.Second {
					t.Errorf("it took %v, not %v", took, c.after)
				}
				if !strings.HasPrefix(strings.TrimPrefix(string(got), "HTTP/1.1 "), c.want) || c.want == "" && len(got) > 0 {
					t.Errorf("%q", got)
				}
				cancel()
				synctest.Wait()
			})
		})
	}
}

// meter counts as the core does.
type meter struct {
	net.Conn
	l *leg
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.l.up.Add(int64(n))
	return n, err
}

func (m *meter) Write(p []byte) (int, error) {
	n, err := m.Conn.Write(p)
	m.l.down.Add(int64(n))
	return n, err
}

// E32: a handshake that does not go on is given up.
func TestInspectSlowHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		guest, server := net.Pipe()
		start := time.Now()
		go func() {
			r.s.inspect(context.Background(), server, clientHello{}, r.leg())
			server.Close()
		}()
		io.ReadAll(guest)
		if took := time.Since(start); took < helloTimeout || took > helloTimeout+drainTimeout+time.Second {
			t.Errorf("it took %v", took)
		}
		guest.Close()
	})
}

// An origin that is hostile: floods of heads and of answers that come before the
// answer, answers that two readers could read in two ways, more than was said.
func TestInspectHostileOrigin(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(c net.Conn)
		want   string
	}{
		"control": {func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") }, "200"},
		"more than it said": {func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
		}, "200"},
		"two lengths": {func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 4\r\n\r\nokok")
		}, "502"},
		"no HTTP":       {func(c net.Conn) { io.WriteString(c, "SSH-2.0-x\r\n\x1b[2J\r\n\r\n") }, "502"},
		"LF in a field": {func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok") }, "502"},
		"a long head": {func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for range 1 << 10 {
				if _, err := io.WriteString(c, "X: "+strings.Repeat("v", 1<<10)+"\r\n"); err != nil {
					return
				}
			}
		}, "502"},
		"endless 103": {func(c net.Conn) {
			for range 1 << 16 {
				if _, err := io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </"+strings.Repeat("v", 1<<10)+">\r\n\r\n"); err != nil {
					return
				}
			}
		}, "502"},
		"nothing": {func(net.Conn) {}, "502"},
	} {
		r := newRig(t)
		r.serveRaw(func(_ string, conn net.Conn, _ *bufio.Reader) { c.answer(conn) })
		res, err := r.client(false).Get(r.url("/"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if !strings.HasPrefix(res.Status, c.want) || strings.Contains(string(body)+res.Status, "evil") || strings.Contains(string(body)+res.Status, "\x1b") {
			t.Errorf("%s: %s %q", name, res.Status, body)
		}
	}
}
