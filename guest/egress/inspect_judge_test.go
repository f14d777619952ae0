package egress

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
)

// onPath allows a path of the origin, by some methods.
func onPath(path string, methods ...string) *api.EgressRule {
	return &api.EgressRule{Host: origin, Ports: []uint32{80, 443}, Paths: []string{path}, Methods: methods}
}

// recorder is an origin that keeps the whole requests that reached it.
type recorder struct {
	mu   sync.Mutex
	seen []string
	full []*http.Request
}

func (o *recorder) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	b, err := io.ReadAll(q.Body)
	if err != nil {
		return // the origin knows that it is not whole
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = append(o.seen, q.Method+" "+q.RequestURI+" "+string(b))
	o.full = append(o.full, q)
	io.WriteString(w, "origin")
}

func (o *recorder) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.seen
	o.seen = nil
	return s
}

func (o *recorder) last(t *testing.T) *http.Request {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.full) == 0 {
		t.Fatal("nothing reached the origin")
	}
	return o.full[len(o.full)-1]
}

// Each request of a connection is judged, and a refusal says why: in the status
// phrase and the body of HTTP/1, in the body of HTTP/2.
func TestInspectJudgesEachRequest(t *testing.T) {
	for _, clear := range []bool{false, true} {
		both(t, func(t *testing.T, h2 bool) {
			if clear && h2 {
				return // HTTP/2 is not offered in clear text: TestInspectClearIsHTTP1
			}
			r := newRig(t)
			if clear {
				r = newClearRig(t)
			}
			o := &recorder{}
			r.serve(o)
			r.allow(onPath("/good", "GET"), onPath("/v1/*", "POST"))
			c := r.client(h2)
			for _, q := range [][2]string{{"GET", "/good"}, {"POST", "/good"}, {"GET", "/bad"}, {"POST", "/v1/a"}, {"POST", "/v1/a/b"}, {"GET", "/v1/%2e%2e/good"}, {"GET", "/good"}} {
				allowed := q == [2]string{"GET", "/good"} || q == [2]string{"POST", "/v1/a"}
				res, body := get(t, c, request(t, q[0], r.url(q[1]), nil))
				switch seen := o.take(); {
				case allowed && (res.StatusCode != 200 || len(seen) != 1):
					t.Errorf("%v: %s, %q", q, res.Status, seen)
				case !allowed && (res.StatusCode != 403 || len(seen) != 0 || !strings.Contains(body, "carrel: egress to api.example.org")):
					t.Errorf("%v: %s %q, %q", q, res.Status, body, seen)
				case !allowed && !h2 && res.Status != "403 "+strings.TrimSpace(body):
					t.Errorf("%v: the phrase is %q", q, res.Status)
				}
			}
		})
	}
}

// E03, E10, E13: the request is for the connection's host and no other, wherever
// it says so.
func TestInspectHostAgrees(t *testing.T) {
	for _, clear := range []bool{false, true} {
		r, scheme := newRig(t), "https"
		if clear {
			r, scheme = newClearRig(t), "http"
		}
		o := &recorder{}
		r.serve(o)
		port := fmt.Sprint(r.dest.Port)
		for _, c := range []struct{ target, host, want string }{
			{"/", origin, "200"},
			{"/", "API.example.org", "200"},
			{"/", origin + ":" + port, "200"},
			{"/", origin + ".", "200"},
			{scheme + "://" + origin + "/", origin, "200"},
			{scheme + "://" + origin + ":" + port + "/x?y", origin + ":" + port, "200"},
			{"/", "evil.example.net", "421"},
			{"/", "xapi.example.org", "421"},
			{"/", "api.example.org.evil.example.net", "421"},
			{"/", origin + ":8443", "421"},
			{"/", origin + ":0" + port, "421"},
			{"/", origin + ":", "421"},
			{"/", "127.0.0.1", "421"},
			{"/", "user@" + origin, "400"},
			{"/", "", "421"},
			{scheme + "://evil.example.net/", origin, "400"},
			{scheme + "://evil.example.net/", "evil.example.net", "421"},
			{scheme + "://user@" + origin + "/", "user@" + origin, "400"},
			{scheme + "://" + origin, origin, "400"},
			{"ftp://" + origin + "/", origin, "400"},
			{"HTTP://" + origin + "/", origin, "400"},
			{"//" + origin + "/", origin, "200"}, // a path
			{"///" + origin + "/", origin, "200"},
			{"*", origin, "400"},
			{origin + ":443", origin, "400"},
			{"/a#b", origin, "400"},
			{"/a b", origin, "400"},
			{`/a"b`, origin, "400"},
			{"/a|b", origin, "400"},
			{"/\x80", origin, "400"},
			{"/%80?%", origin, "200"},
			{"/%zz", origin, "400"},
			{"?x", origin, "400"},
		} {
			if clear != (scheme == "http") {
				t.Fatal("control")
			}
			status, _, _ := r.ask("GET " + c.target + " HTTP/1.1\r\nHost: " + c.host + "\r\nConnection: close\r\n\r\n")
			if seen := o.take(); !strings.HasPrefix(status, c.want) || (len(seen) > 0) != (c.want == "200") {
				t.Errorf("clear=%v GET %q Host %q: %s, %q reached the origin", clear, c.target, c.host, status, seen)
			}
		}
		other := map[string]string{"http": "https", "https": "http"}[scheme]
		if status, _, _ := r.ask("GET " + other + "://" + origin + "/ HTTP/1.1\r\nHost: " + origin + "\r\n\r\n"); !strings.HasPrefix(status, "400") {
			t.Errorf("the other scheme: %s", status)
		}
	}
}

// The same over HTTP/2, where the host has a field of its own.
func TestInspectAuthorityAgrees(t *testing.T) {
	r := newRig(t)
	o := &recorder{}
	r.serve(o)
	for host, want := range map[string]int{origin: 200, "api.example.org:443": 200, "evil.example.net": 421, "api.example.org:8443": 421} {
		q := request(t, "GET", r.url("/"), nil)
		q.Host = host
		res, _ := get(t, r.client(true), q)
		if seen := o.take(); res.StatusCode != want || res.ProtoMajor != 2 || (len(seen) > 0) != (want == 200) {
			t.Errorf("%s: %s %s, %q", host, res.Proto, res.Status, seen)
		}
	}
}

// E10: TLS is for one name; a client that asks for another gets no certificate.
func TestInspectServesOneName(t *testing.T) {
	r := newRig(t)
	r.serve(&recorder{})
	for name, good := range map[string]bool{origin: true, "www.example.org": false, "evil.example.net": false} {
		conf := r.trust()
		conf.ServerName = name
		c := tls.Client(r.dial(), conf)
		err := c.Handshake()
		c.Close()
		if (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
	}
	conf := r.trust()
	conf.MaxVersion, conf.MinVersion = tls.VersionTLS11, tls.VersionTLS10
	if err := tls.Client(r.dial(), conf).Handshake(); err == nil {
		t.Error("TLS 1.1 is taken")
	}
	if r.dials.Load() != 0 {
		t.Error("the origin was dialled")
	}
	// A client that does not trust the guest's authority: the user hears of it.
	conf = r.trust()
	conf.RootCAs = nil
	c := tls.Client(r.dial(), conf)
	if err := c.Handshake(); err == nil {
		t.Error("the certificate is good without trust in the authority")
	}
	c.Close()
	eventually(t, func() bool { return r.noted("does not accept the certificate") })
}

// eventually waits for what another goroutine is about to do.
func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen")
		}
	}
}

// Methods that make a tunnel or an echo, headers that make another request of
// it, methods that only look like another.
func TestInspectRefusesForms(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		r := newRig(t)
		o := &recorder{}
		r.serve(o)
		for _, c := range []struct {
			method, header string
			want           int
		}{
			{"GET", "", 200}, {"M-SEARCH", "", 200}, {"GET", "X-Other", 200},
			{"TRACE", "", 405}, {"TRACK", "", 405}, {"trace", "", 400},
			{"get", "", 400}, {"Get", "", 400}, {"G!T", "", 400}, {strings.Repeat("A", 33), "", 400},
			{"POST", "X-HTTP-Method-Override", 400}, {"POST", "X_Http_Method_Override", 400}, {"POST", "x-http-method", 400}, {"GET", "X-Original-URL", 400}, {"GET", "X-Rewrite-Url", 400},
		} {
			q := request(t, c.method, r.url("/"), nil)
			if c.header != "" {
				q.Header[c.header] = []string{"DELETE"}
			}
			res, _ := get(t, r.client(h2), q)
			if seen := o.take(); res.StatusCode != c.want || (len(seen) > 0) != (c.want == 200) {
				t.Errorf("%s %s: %s, %q", c.method, c.header, res.Status, seen)
			}
		}
		// Many fields.
		for n, want := range map[int]int{150: 200, 250: 0} {
			q := request(t, "GET", r.url("/"), nil)
			for i := range n {
				q.Header.Add("X-Many", fmt.Sprint(i))
			}
			res, _ := get(t, r.client(h2), q)
			if want == 0 {
				want = map[bool]int{true: 431, false: 400}[h2]
			}
			if res.StatusCode != want {
				t.Errorf("%d fields: %s", n, res.Status)
			}
		}
	})
	// E04: CONNECT in all its forms.
	r := newRig(t)
	o := &recorder{}
	r.serve(o)
	for _, q := range []string{"CONNECT api.example.org:443 HTTP/1.1\r\nHost: api.example.org:443\r\n\r\n", "CONNECT / HTTP/1.1\r\nHost: api.example.org\r\n\r\n",
		"CONNECT evil.example.net:443 HTTP/1.1\r\nHost: evil.example.net:443\r\n\r\nCONNECT api.example.org:443 HTTP/1.1\r\nHost: api.example.org\r\n\r\n"} {
		if status, _, rest := r.ask(q); !strings.HasPrefix(status, "405") || rest != "" || len(o.take()) > 0 {
			t.Errorf("%q: %s %q", q, status, rest)
		}
	}
	if r.dials.Load() != 0 {
		t.Error("the origin was dialled")
	}
}

// In clear text there is HTTP/1 and nothing else.
func TestInspectClearIsHTTP1(t *testing.T) {
	r := newClearRig(t)
	o := &recorder{}
	r.serve(o)
	if status, _, _ := r.ask("GET / HTTP/1.1\r\nHost: " + origin + "\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(status, "200") || len(o.take()) != 1 {
		t.Fatalf("control: %s", status)
	}
	for _, q := range []string{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET /\r\n", "GET / HTTP/0.9\r\nHost: " + origin + "\r\n\r\n", "HELO there\r\n\r\n", "\x00\x00\x00\r\n\r\n"} {
		if status, _, _ := r.ask(q); !strings.HasPrefix(status, "400") || len(o.take()) > 0 {
			t.Errorf("%q: %s", q, status)
		}
	}
}
