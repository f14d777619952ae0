package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/secret"
	"github.com/carrel-vm/carrel/guest/wire"
)

// lockedBuffer is written to by several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// C14: whatever a server, a guest that has learned a value, or an error of our
// own puts it into, it is in no log line, no event (of which the audit log is
// made), no line that a task or a person is told, and no panic's record; and what
// the server said does not reach the guest. Each sink has its control: the mark
// that stands for the value.
func TestSinks(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	for range 6 {
		b := make([]byte, 24+r.IntN(40))
		for i := range b {
			b[i] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+/=.~"[r.IntN(69)]
		}
		b[0], b[len(b)-1] = 'k', 'x'
		sinks(t, string(b))
	}
}

func sinks(t *testing.T, v string) {
	outside, err := newAuthority("the world")
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	var told lockedBuffer
	var dialPanics bool
	var w *world
	w = newWorld(t, func(o *Options) {
		o.Roots, o.Log = outside.pem(), slog.New(slog.NewJSONHandler(&log, nil))
		o.Refused = func(_, line string) { fmt.Fprintln(&told, line) }
		o.Lookup = func(ctx context.Context, name string) ([]netip.Addr, error) {
			switch name {
			case "panic.example":
				panic("look-up with " + v)
			case "error.example":
				return nil, errors.New("the resolver says " + v)
			}
			return w.lookup(ctx, name)
		}
		o.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			if dialPanics {
				panic(errors.New("dial with " + base64.StdEncoding.EncodeToString([]byte(v))))
			}
			return w.dial(ctx, to)
		}
	})
	leaf, err := outside.leaf(mustHost(t, origin))
	if err != nil {
		t.Fatal(err)
	}
	// What a server may say in place of a good answer.
	answers := []string{
		"HTTP/1.1 200 " + v + "\r\nContent-Length: 0\r\n\r\n",
		v + "\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: " + v + "\r\n\r\n",
		"HTTP/1.1 200 OK\r\n" + v + "\r\n\r\n",
		"HTTP/1.1 " + v + " OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + v + "\r\n\r\n",
		"HTTP/1.1 307 Go\r\nLocation: https://a.example/?k=" + url.QueryEscape(v) + "\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 103 Early\r\nLink: <https://a.example/>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: " + fmt.Sprint(len(v)) + "\r\n\r\n" + v,
		"HTTP/1.1 101 " + v + "\r\nUpgrade: " + v + "\r\nConnection: upgrade\r\n\r\n",
	}
	w.serve(origin, somewhere, 443, func(c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*leaf}})
		in, n := bufio.NewReader(s), 0
		for {
			q, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			fmt.Sscanf(q.URL.Path, "/v1/%d", &n)
			if io.WriteString(s, answers[n]); n > 0 {
				return
			}
		}
	})
	d, err := secret.Complete("key", &api.SecretDefinition{
		Hosts: []string{origin}, Kind: api.SecretKind_SECRET_KIND_BEARER, Methods: []string{"GET"}, Paths: []string{"/v1/*"}, Env: "KEY", Placeholder: placeholder,
	})
	if err != nil {
		t.Fatal(err)
	}
	rules := append(secret.Rules("key", d), allow("panic.example"), allow("error.example"), &api.EgressRule{Action: api.EgressAction_EGRESS_ACTION_DENY, Host: origin, Paths: []string{"/denied/**"}})
	if _, err := w.Configure(&api.ConfigureEdgeRequest{Rules: rules, Secrets: []*api.EdgeSecret{{Name: "key", Definition: d, Value: []byte(v)}}}); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.Trust())
	ask := func(text string) string {
		c := tls.Client(w.open(origin, 443), &tls.Config{RootCAs: roots, ServerName: origin})
		defer c.Close()
		io.WriteString(c, text)
		b, _ := io.ReadAll(c)
		return string(b)
	}
	var asked sync.WaitGroup
	soon := func(text string) { asked.Go(func() { ask(text) }) }
	const end = " HTTP/1.1\r\nHost: " + origin + "\r\nConnection: close\r\n\r\n"

	var heard strings.Builder
	for n := range answers {
		heard.WriteString(ask(fmt.Sprintf("GET /v1/%d%s", n, end)))
	}
	forms := []string{v, url.PathEscape(v), url.QueryEscape(v), hex.EncodeToString([]byte(v)), base64.RawURLEncoding.EncodeToString([]byte(v))}
	for _, f := range forms {
		p := f // all but the value itself can stand in a path as they are
		if f == v {
			p = url.PathEscape(f)
		}
		for _, target := range []string{"/no/" + p, "/denied/" + p, "/" + strings.Repeat("x", maxPath-20) + p, "/" + strings.Repeat("x", maxReason-60) + p, "/" + strings.Repeat("x", 180) + p, "/v1/0?key=" + p, "/v1/0/" + p} {
			soon("GET " + target + end)
		}
		soon(strings.ToUpper(f) + " /v1/0" + end)
		soon("GET /v1/0 HTTP/1.1\r\nHost: " + f + "\r\nConnection: close\r\n\r\n")
		soon("GET /v1/0 HTTP/1.1\r\nHost: " + origin + "\r\n" + f + "\r\n\r\n")
		soon(f + "\r\n\r\n")
		io.WriteString(w.open(origin, 80), "GET /"+p+" HTTP/1.1\r\nHost: "+origin+"\r\n\r\n")
		w.open(f, 443)
		c := w.stream()
		wire.Write(c, &wire.Open{Host: f + strings.Repeat("x", 2*maxOpen), Port: 443})
	}
	asked.Wait()
	// Errors and panics of our own.
	for _, host := range []string{"error.example", "panic.example"} {
		c := tls.Client(w.open(host, 443), &tls.Config{RootCAs: roots, ServerName: host})
		c.Handshake()
		c.Close()
	}
	dialPanics = true
	heard.WriteString(ask("GET /v1/0" + end))
	w.Close()

	var events strings.Builder
	w.mu.Lock()
	for _, ev := range w.events {
		events.WriteString(protojson.Format(ev) + "\n")
	}
	w.mu.Unlock()
	all := map[string]string{"log": log.String(), "events": events.String(), "lines": told.String(), "answers": heard.String()}
	for sink, text := range all {
		for _, f := range forms {
			for i := 0; i+12 <= len(f); i++ {
				if strings.Contains(text, f[i:i+12]) {
					at := strings.Index(text, f[i:i+12])
					t.Fatalf("%s: %q, a part of %q, is in ...%s", sink, f[i:i+12], v, text[max(0, at-300):min(len(text), at+100)])
				}
			}
		}
		if mark := "[secret key]"; sink != "answers" && !strings.Contains(text, mark) {
			t.Errorf("control: %s: there was no value to hide", sink)
		}
	}
	for _, want := range []string{"panicked", "look-up with [secret key]", "dial with [secret key]", "the resolver says [secret key]"} {
		if !strings.Contains(log.String()+told.String(), want) {
			t.Errorf("control: %q is not on record", want)
		}
	}
	if !strings.Contains(heard.String(), "****") {
		t.Errorf("control: the server's answers had no value to hide")
	}
}
