package egress

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// E30: requests that two readers could read in two ways. None reaches the
// origin, whatever follows it does not either, and the connection ends.
func TestInspectRefusesSmuggling(t *testing.T) {
	const host = "Host: " + origin + "\r\n"
	const after = "GET /smuggled HTTP/1.1\r\n" + host + "\r\n"
	for _, clear := range []bool{false, true} {
		r := newRig(t)
		if clear {
			r = newClearRig(t)
		}
		o := &recorder{}
		r.serve(o)
		// The control: each part of what follows is good by itself.
		for _, good := range []string{
			"POST / HTTP/1.1\r\n" + host + "Content-Length: 4\r\n\r\nbody",
			"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n02\r\ndy\r\n0\r\n\r\n",
			"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: CHUNKED\r\n\r\n4\r\nbody\r\n0\r\nX-Trailer: v\r\n\r\n",
			"POST / HTTP/1.1\r\nHost:" + origin + "\r\nContent-Length:\t4 \r\nX-Empty:\r\n\r\nbody",
			"POST / HTTP/1.0\r\n" + host + "Connection: keep-alive\r\nContent-Length: 4\r\n\r\nbody",
		} {
			status, _, rest := r.ask(good+after, "200 OK")
			if seen := o.take(); !strings.HasPrefix(status, "200") || fmt.Sprint(seen) != "[POST / body GET /smuggled ]" || !strings.Contains(rest, "200 OK") {
				t.Errorf("control %q: %s, %q, %q", good, status, seen, rest)
			}
			if q := o.last(t); len(q.Trailer) > 0 || q.Header.Get("Trailer") != "" {
				t.Errorf("a trailer reached the origin: %v", q.Trailer)
			}
		}
		long := strings.Repeat("x", maxHead)
		for name, request := range map[string]string{
			"CL and TE":               "POST / HTTP/1.1\r\n" + host + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			"TE and CL":               "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
			"two CL":                  "POST / HTTP/1.1\r\n" + host + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
			"the same CL twice":       "POST / HTTP/1.1\r\n" + host + "Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
			"a list of CL":            "POST / HTTP/1.1\r\n" + host + "Content-Length: 4, 4\r\n\r\nbody",
			"CL with a sign":          "POST / HTTP/1.1\r\n" + host + "Content-Length: +4\r\n\r\nbody",
			"negative CL":             "POST / HTTP/1.1\r\n" + host + "Content-Length: -4\r\n\r\nbody",
			"CL in hex":               "POST / HTTP/1.1\r\n" + host + "Content-Length: 0x4\r\n\r\nbody",
			"empty CL":                "POST / HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\n",
			"CL beyond 64 bits":       "POST / HTTP/1.1\r\n" + host + "Content-Length: 18446744073709551620\r\n\r\nbody",
			"CL with an underscore":   "POST / HTTP/1.1\r\n" + host + "Content-Length: 1_0\r\n\r\nbodybodybo",
			"space before the colon":  "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
			"tab before the colon":    "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
			"CL with such a space":    "POST / HTTP/1.1\r\n" + host + "Content-Length : 4\r\n\r\nbody",
			"xchunked":                "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
			"quoted chunked":          "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
			"identity":                "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\n\r\n",
			"chunked, identity":       "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
			"two TE":                  "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
			"TE with a vertical tab":  "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
			"TE in HTTP/1.0":          "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			"folded TE":               "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
			"folded field":            "GET / HTTP/1.1\r\n" + host + "X-A: b\r\n c\r\n\r\n",
			"folded first field":      "GET / HTTP/1.1\r\n X-A: b\r\n" + host + "\r\n",
			"bare LF in the head":     "GET / HTTP/1.1\n" + host + "\r\n",
			"bare LF between":         "GET / HTTP/1.1\r\n" + host + "X-A: b\nX-B: c\r\n\r\n",
			"bare LF at the end":      "GET / HTTP/1.1\r\n" + host + "\n",
			"bare CR":                 "GET / HTTP/1.1\r\n" + host + "X-A: b\rX-B: c\r\n\r\n",
			"NUL in a value":          "GET / HTTP/1.1\r\n" + host + "X-A: b\x00c\r\n\r\n",
			"NUL in a name":           "GET / HTTP/1.1\r\n" + host + "X-A\x00: b\r\n\r\n",
			"field without colon":     "GET / HTTP/1.1\r\n" + host + "X-A\r\n\r\n",
			"field without name":      "GET / HTTP/1.1\r\n" + host + ": x\r\n\r\n",
			"two hosts":               "GET / HTTP/1.1\r\n" + host + "Host: evil.example.net\r\n\r\n",
			"the same host twice":     "GET / HTTP/1.1\r\n" + host + host + "\r\n",
			"no host":                 "GET / HTTP/1.1\r\n\r\n",
			"no host in HTTP/1.0":     "GET / HTTP/1.0\r\n\r\n",
			"empty line first":        "\r\nGET / HTTP/1.1\r\n" + host + "\r\n",
			"two spaces":              "GET  / HTTP/1.1\r\n" + host + "\r\n",
			"space at the end":        "GET / HTTP/1.1 \r\n" + host + "\r\n",
			"tab in the line":         "GET\t/\tHTTP/1.1\r\n" + host + "\r\n",
			"no version":              "GET /\r\n" + host + "\r\n",
			"HTTP/1.2":                "GET / HTTP/1.2\r\n" + host + "\r\n",
			"HTTP/2.0":                "GET / HTTP/2.0\r\n" + host + "\r\n",
			"http/1.1":                "GET / http/1.1\r\n" + host + "\r\n",
			"the stand-in itself":     malformedMethod + " / HTTP/1.1\r\n" + host + "\r\n",
			"chunk size with a sign":  "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n+4\r\nbody\r\n0\r\n\r\n",
			"chunk size with 0x":      "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0x4\r\nbody\r\n0\r\n\r\n",
			"chunk size with a space": "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n4 \r\nbody\r\n0\r\n\r\n",
			"chunk size beyond":       "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n10000000000000004\r\nbody\r\n0\r\n\r\n",
			"chunk extension":         "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n4;a=b\r\nbody\r\n0\r\n\r\n",
			"long chunk extension":    "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n4;" + long + "\r\nbody\r\n0\r\n\r\n",
			"bare LF after the size":  "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n4\nbody\r\n0\r\n\r\n",
			"bare LF in an extension": "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n4;\nx\r\nbody\r\n0\r\n\r\n",
			"chunk longer than said":  "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nbody\r\n0\r\n\r\n",
			"no CR LF after a chunk":  "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n4\r\nbody0\r\n\r\n",
			"trailer folded":          "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-A: b\r\n c\r\n\r\n",
			"trailer too long":        "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-A: " + long[:maxTrailer] + "\r\n\r\n",
			"field too long":          "GET / HTTP/1.1\r\n" + host + "X-A: " + long + "\r\n\r\n",
			"target too long":         "GET /" + long + " HTTP/1.1\r\n" + host + "\r\n",
			"too many fields":         "GET / HTTP/1.1\r\n" + host + strings.Repeat("X-A: b\r\n", maxFields) + "\r\n",
			"WebSocket with a body":   "GET / HTTP/1.1\r\n" + host + "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 4\r\n\r\nbody",
			"host within a target":    "GET http://evil.example.net/ HTTP/1.1\r\n" + host + "\r\n",
		} {
			status, body, rest := r.ask(request + after)
			if seen := o.take(); !strings.HasPrefix(status, "400") || rest != "" || len(seen) > 0 {
				t.Errorf("clear=%v %s: %s %q, then %q; %q reached the origin", clear, name, status, body, rest, seen)
			}
		}
		if len(r.notes) == 0 {
			t.Error("nobody heard of it")
		}
	}
}

// A body that turns out to be malformed after its beginning was sent on is no
// request: the origin does not take it for whole.
func TestInspectCutsMalformedBody(t *testing.T) {
	r := newClearRig(t)
	end := make(chan error, 1)
	r.serve(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, err := io.ReadAll(q.Body)
		end <- err
	}))
	for body, good := range map[string]bool{"4\r\nbody\r\n0\r\n\r\n": true, "4\r\nbody\r\nz\r\n\r\n": false, "4\r\nbody\r\n": false} {
		c := r.raw()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: "+origin+"\r\nTransfer-Encoding: chunked\r\n\r\n"+body)
		if strings.HasSuffix(body, "body\r\n") {
			c.(*net.TCPConn).CloseWrite()
		}
		if err := <-end; (err == nil) != good {
			t.Errorf("%q: the origin read to %v", body, err)
		}
	}
}

// The gate is transparent for what is good, at whatever pace it comes, and does
// not answer out of turn.
func TestInspectPipelined(t *testing.T) {
	r := newClearRig(t)
	o := &recorder{}
	r.serve(o)
	const host = "Host: " + origin + "\r\n"
	all := "POST /1 HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabc" +
		"POST /2 HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\ndef\r\n1\r\ng\r\n0\r\n\r\n" +
		"GET /3 HTTP/1.1\r\n" + host + "\r\n" + "GET /4 HTTP/1.1\n\n" + "GET /5 HTTP/1.1\r\n" + host + "\r\n"
	for _, pace := range []int{len(all), 1, 7} {
		c := r.raw()
		go func() {
			for b := []byte(all); len(b) > 0; b = b[min(pace, len(b)):] {
				if _, err := c.Write(b[:min(pace, len(b))]); err != nil {
					return // refused meanwhile
				}
			}
		}()
		in := bufio.NewReader(c)
		for i, want := range []int{200, 200, 200, 400} {
			res, err := http.ReadResponse(in, nil)
			if err != nil || res.StatusCode != want {
				t.Fatalf("pace %d, answer %d: %v %v", pace, i, res, err)
			}
			io.Copy(io.Discard, res.Body)
		}
		if _, err := in.ReadByte(); err != io.EOF {
			t.Errorf("after the refusal: %v", err)
		}
		if seen := fmt.Sprint(o.take()); seen != "[POST /1 abc POST /2 defg GET /3 ]" {
			t.Errorf("pace %d: %s", pace, seen)
		}
	}
}

// A deadline in the middle of a head loses nothing of it.
func TestGateSurvivesDeadlines(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	g := newGate(b)
	const head = "GET / HTTP/1.1\r\nHost: " + origin + "\r\n\r\n"
	var got bytes.Buffer
	buf := make([]byte, 64)
	for i := range len(head) {
		go a.Write([]byte{head[i]})
		g.SetReadDeadline(time.Now().Add(2 * time.Millisecond))
		for {
			n, err := g.Read(buf)
			got.Write(buf[:n])
			if err != nil {
				break
			}
		}
	}
	for end := time.Now().Add(patience); got.Len() < len(head) && time.Now().Before(end); {
		g.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, _ := g.Read(buf)
		got.Write(buf[:n])
	}
	if got.String() != head {
		t.Errorf("%q", got.String())
	}
}
