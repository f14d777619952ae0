package egress

import (
	"bufio"
	"compress/gzip"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/secret"
)

const (
	value       = "sk-THE-REAL-VALUE-0123456789"
	placeholder = "carrel-placeholder-for-tests"
)

// bind gives the origin's POST /v1/** a secret, in the header X-Api-Key.
func (r *rig) bind(v string) {
	r.t.Helper()
	d, err := secret.Complete("key", &api.SecretDefinition{
		Hosts: []string{origin}, Kind: api.SecretKind_SECRET_KIND_HEADER, Header: "X-Api-Key",
		Methods: []string{"POST", "GET"}, Paths: []string{"/v1/**"}, Env: "KEY", Placeholder: placeholder,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.secrets(&api.EdgeSecret{Name: "key", Definition: d, Value: []byte(v)})
	r.allow(secret.Rules("key", d)...)
}

// C03: of what a request to a secret's host carries, only the secret is a
// credential. The control is a host without one, where the guest's own go.
func TestInspectOnlyOurCredential(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		r := newRig(t)
		o := &recorder{}
		r.serve(o)
		ask := func() *http.Request {
			q := request(t, "POST", r.url("/v1/files"), strings.NewReader("stolen"))
			for _, h := range []string{"Authorization", "X-Api-Key", "x_api_key", "Cookie", "Api-Key", "X-Goog-Api-Key", "X-Custom"} {
				q.Header[h] = []string{"attacker"}
			}
			q.Trailer = http.Header{"X-Late-Key": {"attacker"}}
			return q
		}
		if res, _ := get(t, r.client(h2), ask()); res.StatusCode != 200 || o.last(t).Header.Get("Authorization") != "attacker" {
			t.Fatalf("control: %s %v", res.Status, o.last(t).Header)
		}
		r.bind(value)
		if res, _ := get(t, r.client(h2), ask()); res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
		q := o.last(t)
		if all := fmt.Sprint(q.Header, q.Trailer); strings.Contains(all, "attacker") || q.Header.Get("X-Api-Key") != value {
			t.Errorf("the origin got %s", all)
		}
		o.take()
		// In the query.
		for _, query := range []string{"key=attacker", "api_key=attacker", "a=1&access_token=x", "%61pi_key=x"} {
			if res, body := get(t, r.client(h2), request(t, "POST", r.url("/v1/files?"+query), nil)); res.StatusCode != 403 || len(o.take()) > 0 {
				t.Errorf("%s: %s %s", query, res.Status, body)
			}
		}
		// Beside the secret's own rules nothing of this host is reachable, and where
		// the user opens more of it, the guest's credentials do not go there either.
		if res, _ := get(t, r.client(h2), request(t, "POST", r.url("/v2/files"), nil)); res.StatusCode != 403 || len(o.take()) > 0 {
			t.Error(res.Status)
		}
		r.allow(&api.EgressRule{Host: origin, Paths: []string{"/v1/**"}, Methods: []string{"POST"}, Secret: "key"}, &api.EgressRule{Host: origin})
		other := ask()
		other.URL.Path = "/v2/files"
		if res, _ := get(t, r.client(h2), other); res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
		q = o.last(t)
		if all := fmt.Sprint(q.Header["Authorization"], q.Header["X-Api-Key"], q.Header["X_api_key"], q.Header["Cookie"], q.Header["Api-Key"], q.Header["X-Goog-Api-Key"], q.Trailer); strings.Contains(all, "attacker") || strings.Contains(all, value) {
			t.Errorf("beside the secret's path the origin got %v", q.Header)
		}
		if res, _ := get(t, r.client(h2), request(t, "GET", r.url("/v2/x?token=attacker"), nil)); res.StatusCode != 403 {
			t.Error(res.Status)
		}
	})
}

// E09, C05: a server that does not prove to be the host gets no byte of a
// request, secret or not.
func TestInspectVerifiesTheServer(t *testing.T) {
	old, err := newAuthorityAt("the world of last year", func() time.Time { return time.Now().Add(-365 * 24 * time.Hour) })
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		host  string
		ca    func(r *rig) *authority
		trust bool // put ca among the roots
		want  int
	}{
		"control":       {origin, func(r *rig) *authority { return r.world }, false, 200},
		"another name":  {"evil.example.net", func(r *rig) *authority { return r.world }, false, 502},
		"unknown":       {origin, func(r *rig) *authority { return r.s.ca }, false, 502},
		"expired":       {origin, func(*rig) *authority { return old }, true, 502},
		"expired, else": {origin, func(*rig) *authority { return old }, false, 502},
	} {
		r := newRig(t)
		ca := c.ca(r)
		leaf, err := ca.leaf(mustHost(t, c.host))
		if err != nil {
			t.Fatal(err)
		}
		if c.trust {
			r.world = ca
		}
		o := &recorder{}
		r.serveWith(o, &tls.Config{Certificates: []tls.Certificate{*leaf}, NextProtos: []string{"h2", "http/1.1"}})
		r.bind(value)
		res, body := get(t, r.client(false), request(t, "POST", r.url("/v1/x"), nil))
		if res.StatusCode != c.want || (len(o.take()) > 0) != (c.want == 200) {
			t.Errorf("%s: %s %s", name, res.Status, body)
		}
		if c.want == 502 && (!r.noted("does not prove to be") || !strings.Contains(body, "does not prove to be "+origin) || strings.Contains(body, value)) {
			t.Errorf("%s: %q %q", name, body, r.notes)
		}
	}
	// One that does not speak TLS at all.
	r := newRig(t)
	r.clear = true
	r.serve(&recorder{})
	r.clear = false
	r.bind(value)
	if res, body := get(t, r.client(false), request(t, "POST", r.url("/v1/x"), nil)); res.StatusCode != 502 {
		t.Errorf("no TLS: %s %s", res.Status, body)
	}
}

// C07: a placeholder that goes anywhere is refused, and the user hears of it.
func TestInspectPlaceholders(t *testing.T) {
	for _, clear := range []bool{false, true} {
		both(t, func(t *testing.T, h2 bool) {
			if clear && h2 {
				return
			}
			r := newRig(t)
			if clear {
				r = newClearRig(t)
			}
			o := &recorder{}
			r.serve(o)
			elsewhere, err := secret.Complete("key", &api.SecretDefinition{
				Hosts: []string{"other.example.org"}, Kind: api.SecretKind_SECRET_KIND_BEARER, Methods: []string{"POST"}, Paths: []string{"/**"}, Env: "KEY", Placeholder: placeholder,
			})
			if err != nil {
				t.Fatal(err)
			}
			r.secrets(&api.EdgeSecret{Name: "key", Definition: elsewhere, Value: []byte(value)})
			body := func(s string) func(*http.Request) {
				return func(q *http.Request) {
					q.Method, q.ContentLength = "POST", -1
					rest := s
					// In pieces of two bytes.
					q.Body = io.NopCloser(readFunc(func(p []byte) (int, error) {
						if rest == "" {
							return 0, io.EOF
						}
						n := copy(p[:min(2, len(p))], rest)
						rest = rest[n:]
						return n, nil
					}))
				}
			}
			for name, set := range map[string]func(q *http.Request){
				"":               func(q *http.Request) { q.Header.Set("X-A", "something else") },
				"header":         func(q *http.Request) { q.Header.Set("X-A", "v="+placeholder) },
				"bearer":         func(q *http.Request) { q.Header.Set("Authorization", "Bearer "+placeholder) },
				"basic":          func(q *http.Request) { q.SetBasicAuth("user", placeholder) },
				"query":          func(q *http.Request) { q.URL.RawQuery = "a=" + placeholder },
				"escaped query":  func(q *http.Request) { q.URL.RawQuery = "a=" + strings.ReplaceAll(placeholder, "-", "%2D") },
				"path":           func(q *http.Request) { q.URL.Path = "/" + placeholder },
				"body":           body("{\"a\": \"" + placeholder + "\"}"),
				"body in base64": body(base64.StdEncoding.EncodeToString([]byte(placeholder))),
			} {
				q := request(t, "GET", r.url("/"), nil)
				set(q)
				before := len(r.notes)
				res, text := get(t, r.client(h2), q)
				if good := name == ""; (res.StatusCode == 200) != good || (len(o.take()) > 0) != good || len(r.notes) != before+map[bool]int{true: 0, false: 1}[good] {
					t.Errorf("clear=%v %s: %s %s %q", clear, name, res.Status, text, r.notes)
				}
				if name != "" && res.StatusCode != 403 {
					t.Errorf("clear=%v %s: %s", clear, name, res.Status)
				}
			}
			if len(r.notes) != 8 {
				t.Errorf("%d of 8 were told of: %q", len(r.notes), r.notes)
			}
		})
	}
}

// C10: in clear text no secret is added, whatever a rule says.
func TestInspectNoSecretInClear(t *testing.T) {
	r := newClearRig(t)
	o := &recorder{}
	r.serve(o)
	r.bind(value)
	r.allow(&api.EgressRule{Host: origin, Ports: []uint32{80}, Paths: []string{"/v1/**"}, Secret: "key"}, &api.EgressRule{Host: origin, Ports: []uint32{80}, Paths: []string{"/plain"}})
	if res, _ := get(t, r.client(false), request(t, "GET", r.url("/v1/x"), nil)); res.StatusCode != 403 || len(o.take()) > 0 {
		t.Error(res.Status)
	}
	if res, _ := get(t, r.client(false), request(t, "GET", r.url("/plain"), nil)); res.StatusCode != 200 || strings.Contains(fmt.Sprint(o.last(t).Header), value) {
		t.Errorf("control: %s", res.Status)
	}
}

// C13: a new value, or none, counts from the next request on, on a connection
// that stays open.
func TestInspectRotation(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		most := int64(1)
		if !h2 {
			most = 2 // a refusal ends a connection of HTTP/1, but no other
		}
		kept(t, most, func() int64 {
			r := newRig(t)
			o := &recorder{}
			r.serve(o)
			r.bind(value)
			c := r.client(h2)
			for _, v := range []string{value, "sk-THE-NEXT-VALUE-9876543210"} {
				r.bind(v)
				if res, _ := get(t, c, request(t, "POST", r.url("/v1/x"), nil)); res.StatusCode != 200 || o.last(t).Header.Get("X-Api-Key") != v {
					t.Errorf("%s %v", res.Status, o.last(t).Header)
				}
			}
			o.take()
			r.secrets()
			if res, _ := get(t, c, request(t, "POST", r.url("/v1/x"), nil)); res.StatusCode != 403 || len(o.take()) > 0 {
				t.Errorf("the secret is gone: %s", res.Status)
			}
			r.allow(&api.EgressRule{Host: origin, Inspect: true})
			if res, _ := get(t, c, request(t, "POST", r.url("/v1/x"), nil)); res.StatusCode != 200 || o.last(t).Header.Get("X-Api-Key") != "" {
				t.Errorf("the rule is gone too: %s", res.Status)
			}
			return r.dials.Load()
		})
	})
}

// C09: an answer that leads to another host leads the client there, without the
// secret: that host has a connection and a judgement of its own.
func TestInspectRedirectKeepsNoSecret(t *testing.T) {
	r := newRig(t)
	r.serve(http.RedirectHandler("https://evil.example.net/v1/x", http.StatusTemporaryRedirect))
	r.bind(value)
	res, body := get(t, r.client(true), request(t, "POST", r.url("/v1/x"), strings.NewReader("b")))
	if res.StatusCode != 307 || strings.Contains(fmt.Sprint(res.Header, body), value) || r.dials.Load() != 1 {
		t.Errorf("%s %v", res.Status, res.Header)
	}
}

// C06: a server that repeats what it was sent does not give the value to the
// guest, in a header, a body, a packed body or a trailer. No error does either.
func TestInspectKeepsValueFromAnswers(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		r := newRig(t)
		r.serve(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			v := q.Header.Get("X-Api-Key")
			w.Header().Set("Trailer", "X-Late")
			w.Header().Set("X-Echo", "got "+v)
			var to io.Writer = w
			if q.Header.Get("Accept-Encoding") == "gzip" {
				w.Header().Set("Content-Encoding", "gzip")
				z := gzip.NewWriter(w)
				defer z.Close()
				to = z
			}
			io.WriteString(to, "value: "+v[:5])
			http.NewResponseController(w).Flush()
			io.WriteString(to, v[5:]+" end")
			w.Header().Set("X-Late", v)
		}))
		r.bind(value)
		for _, enc := range []string{"", "gzip"} {
			q := request(t, "GET", r.url("/v1/echo"), nil)
			if enc != "" {
				q.Header.Set("Accept-Encoding", enc)
			}
			res, body := get(t, r.client(h2), q)
			if all := fmt.Sprint(res.Header, res.Trailer, body); res.StatusCode != 200 || strings.Contains(all, value) || !strings.HasSuffix(body, " end") || res.Header.Get("X-Echo") == "" {
				t.Errorf("%q: %s %s", enc, res.Status, all)
			}
		}
	})
	r := newRig(t)
	r.serveRaw(func(head string, c net.Conn, _ *bufio.Reader) {
		_, after, _ := strings.Cut(head, "X-Api-Key: ")
		v, _, _ := strings.Cut(after, "\r\n")
		io.WriteString(c, "HTTP/1.1 "+v+"\r\n\r\n")
	})
	r.bind(value)
	res, body := get(t, r.client(false), request(t, "GET", r.url("/v1/echo"), nil))
	if res.StatusCode != 502 || strings.Contains(res.Status+body, value) {
		t.Errorf("%s %s", res.Status, body)
	}
}

// With a secret there is no WebSocket: what goes through one cannot be held to
// the secret's rules.
func TestInspectNoSocketWithSecret(t *testing.T) {
	r := newRig(t)
	r.serve(http.HandlerFunc(echoSocket))
	if status, _, _ := r.ask(strings.Replace(handshake(""), "/socket", "/v1/socket", 1)); !strings.HasPrefix(status, "101") {
		t.Fatalf("control: %s", status)
	}
	r.bind(value)
	if status, _, _ := r.ask(strings.Replace(handshake(""), "/socket", "/v1/socket", 1)); !strings.HasPrefix(status, "403") {
		t.Error(status)
	}
}
