package egress

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

const socketKey = "dGhlIHNhbXBsZSBub25jZQ=="

// handshake asks for a WebSocket.
func handshake(extra string) string {
	return "GET /socket HTTP/1.1\r\nHost: " + origin + "\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + socketKey + "\r\n" + extra + "\r\n"
}

func accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// echoSocket says 101 and repeats what comes, until the other side ends.
func echoSocket(w http.ResponseWriter, q *http.Request) {
	c, in, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", accept(q.Header.Get("Sec-Websocket-Key")))
	io.Copy(c, in)
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	}
	io.Copy(io.Discard, in)
}

// E26: a WebSocket that was asked for passes both ways, also where the origin
// would speak HTTP/2, and is counted.
func TestInspectWebSocket(t *testing.T) {
	for _, clear := range []bool{false, true} {
		r := newRig(t)
		if clear {
			r = newClearRig(t)
		}
		r.serve(http.HandlerFunc(echoSocket))
		c := r.raw()
		io.WriteString(c, handshake(""))
		in := bufio.NewReader(c)
		res, err := http.ReadResponse(in, nil)
		if err != nil || res.StatusCode != 101 || res.Header.Get("Sec-Websocket-Accept") != accept(socketKey) || res.Header.Get("Upgrade") != "websocket" {
			t.Fatalf("%v %v", res, err)
		}
		sent := make([]byte, 1<<20)
		rand.Read(sent)
		// What looks like a request is not one any more.
		copy(sent, "GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n")
		go func() {
			c.Write(sent)
			c.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(in)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("clear=%v: %d bytes came back, %v", clear, len(got), err)
		}
		c.Close()
		eventually(t, func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return len(r.ends) == 1 && r.ends[0] == [2]int64{1 << 20, 1 << 20}
		})
	}
}

// max_up_bytes holds in a WebSocket.
func TestInspectWebSocketMaxUp(t *testing.T) {
	r := newRig(t)
	r.serve(http.HandlerFunc(echoSocket))
	one := onPath("/socket")
	one.MaxUpBytes = 4 << 10
	r.allow(one)
	c := r.raw()
	io.WriteString(c, handshake(""))
	in := bufio.NewReader(c)
	if res, err := http.ReadResponse(in, nil); err != nil || res.StatusCode != 101 {
		t.Fatalf("%v %v", res, err)
	}
	c.Write(make([]byte, 1<<10))
	if _, err := io.ReadFull(in, make([]byte, 1<<10)); err != nil {
		t.Fatalf("control: %v", err)
	}
	c.Write(make([]byte, 8<<10))
	if n, _ := io.Copy(io.Discard, in); n > 3<<10 {
		t.Errorf("%d more bytes went out", n)
	}
	eventually(t, func() bool { return r.noted("4096 bytes") })
}

// E26: nothing else is upgraded to, and a server cannot switch on its own.
func TestInspectRefusesUpgrades(t *testing.T) {
	r := newRig(t)
	o := &recorder{}
	r.serveTLS(o, "http/1.1")
	get := "GET /socket HTTP/1.1\r\nHost: " + origin + "\r\n"
	for name, c := range map[string]struct {
		request, want string
	}{
		"foo":               {get + "Connection: Upgrade\r\nUpgrade: foo/1\r\n\r\n", "400"},
		"websocket and foo": {get + "Connection: Upgrade\r\nUpgrade: websocket, foo\r\n\r\n", "400"},
		"websocket twice":   {get + "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n", "400"},
		"h2c":               {get + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "200"},
		"no connection":     {strings.Replace(handshake(""), "keep-alive, Upgrade", "keep-alive", 1), "400"},
		"POST":              {strings.Replace(handshake(""), "GET", "POST", 1), "400"},
		"HTTP/1.0":          {strings.Replace(handshake(""), "HTTP/1.1", "HTTP/1.0", 1), "400"},
		"version 12":        {strings.Replace(handshake(""), "13", "12", 1), "400"},
		"short key":         {strings.Replace(handshake(""), socketKey, "AAAA", 1), "400"},
		"two keys":          {handshake("Sec-WebSocket-Key: " + socketKey + "\r\n"), "400"},
		"denied":            {strings.Replace(handshake(""), "/socket", "/other", 1), "403"},
		// The server answers like to any request: no tunnel, and the connection ends.
		"not granted": {handshake("") + "GET /smuggled HTTP/1.1\nbare", "200"},
	} {
		r.allow(onPath("/socket"))
		status, _, rest := r.ask(c.request)
		seen := o.take()
		if !strings.HasPrefix(status, c.want) || rest != "" || (len(seen) == 1) != (c.want == "200") {
			t.Errorf("%s: %s, then %q; %q", name, status, rest, seen)
		}
		if name == "h2c" {
			for _, h := range []string{"Upgrade", "Connection", "Http2-Settings"} {
				if o.last(t).Header.Get(h) != "" {
					t.Errorf("%s reached the origin", h)
				}
			}
		}
	}
	// 101 to whom did not ask, to another protocol, and by who does not know the key.
	for answer, q := range map[string]string{
		"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " + accept(socketKey) + "\r\n\r\ntunnel": get + "\r\n",
		"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: foo\r\nSec-WebSocket-Accept: " + accept(socketKey) + "\r\n\r\ntunnel":       handshake(""),
		"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: bad\r\n\r\ntunnel":                       handshake(""),
		"HTTP/1.1 101 X\r\n\r\ntunnel": handshake(""),
	} {
		r := newRig(t)
		r.serveRaw(func(_ string, c net.Conn, _ *bufio.Reader) {
			io.WriteString(c, answer)
			time.Sleep(10 * time.Millisecond)
		})
		if status, body, rest := r.ask(q + "more"); !strings.HasPrefix(status, "502") || strings.Contains(body+rest, "tunnel") {
			t.Errorf("%q: %s %q %q", answer, status, body, rest)
		}
	}
	// HTTP/2 has CONNECT with a protocol for it, which is not offered.
	h2 := newRig(t)
	h2.serve(o)
	q := request(t, "CONNECT", h2.url("/socket"), nil)
	q.Header[":protocol"] = []string{"websocket"}
	if res, err := h2.client(true).Do(q); err == nil {
		t.Errorf("extended CONNECT: %s", res.Status)
	}
}
