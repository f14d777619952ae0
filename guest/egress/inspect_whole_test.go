package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/secret"
)

// The whole way of an inspected connection, with the real core: a stream of the
// guest, rules, a name that is resolved, TLS on both sides, events.
func TestInspectWholeWay(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		outside, err := newAuthority("the world")
		if err != nil {
			t.Fatal(err)
		}
		w := newWorld(t, func(o *Options) { o.Roots = outside.pem() })
		leaf, err := outside.leaf(mustHost(t, origin))
		if err != nil {
			t.Fatal(err)
		}
		o := &recorder{}
		w.serve(origin, somewhere, 443, func(c net.Conn) {
			one := &oneConn{conn: make(chan net.Conn, 1), over: make(chan struct{}), addr: c.LocalAddr()}
			one.conn <- tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*leaf}, NextProtos: []string{"h2", "http/1.1"}})
			(&http.Server{Handler: o, ConnState: one.watch, ErrorLog: quiet}).Serve(one)
		})
		d, err := secret.Complete("key", &api.SecretDefinition{
			Hosts: []string{origin}, Kind: api.SecretKind_SECRET_KIND_BEARER, Methods: []string{"POST"}, Paths: []string{"/v1/messages"}, Env: "KEY", Placeholder: placeholder,
		})
		if err != nil {
			t.Fatal(err)
		}
		conf := &api.ConfigureEdgeRequest{Rules: secret.Rules("key", d), Secrets: []*api.EdgeSecret{{Name: "key", Definition: d, Value: []byte(value)}}}
		if _, err := w.Configure(conf); err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(w.Trust())
		tr := &http.Transport{
			DialContext:     func(context.Context, string, string) (net.Conn, error) { return w.open(origin, 443), nil },
			TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: h2,
		}
		defer tr.CloseIdleConnections()
		c := &http.Client{Transport: tr}

		q := request(t, "POST", "https://"+origin+"/v1/messages", strings.NewReader("{}"))
		q.Header.Set("Authorization", "Bearer attacker")
		if res, body := get(t, c, q); res.StatusCode != 200 || body != "origin" || o.last(t).Header.Get("Authorization") != "Bearer "+value {
			t.Fatalf("%s %s", res.Status, body)
		}
		// The Files API attack.
		q = request(t, "POST", "https://"+origin+"/v1/files", strings.NewReader("stolen"))
		q.Header.Set("X-Api-Key", "attacker")
		o.take()
		res, body := get(t, c, q)
		if res.StatusCode != 403 || len(o.take()) > 0 || !strings.Contains(body, "/v1/files") {
			t.Errorf("%s %s", res.Status, body)
		}
		ev := w.seen("the secret is used", func(ev *api.EgressEvent) bool {
			return ev.Kind == api.EgressEventKind_EGRESS_EVENT_KIND_REQUEST && ev.Secret == "key"
		})
		if ev.Path != "/v1/messages" || ev.Method != "POST" || !ev.Verdict.Inspected {
			t.Errorf("%v", ev)
		}
		w.seen("the request ends", func(ev *api.EgressEvent) bool {
			return ev.Kind == api.EgressEventKind_EGRESS_EVENT_KIND_END && ev.Path == "/v1/messages" && ev.BytesUp == 2 && ev.BytesDown == 6
		})
		w.seen("the refusal", func(ev *api.EgressEvent) bool {
			return ev.Path == "/v1/files" && ev.Verdict.Action == api.EgressAction_EGRESS_ACTION_DENY && ev.Method == "POST"
		})
		// Without the secret the next request gets none.
		conf.Secrets = nil
		if _, err := w.Configure(conf); err == nil {
			if res, _ := get(t, c, request(t, "POST", "https://"+origin+"/v1/messages", nil)); res.StatusCode != 403 || len(o.take()) > 0 {
				t.Error(res.Status)
			}
		}
		// Nor does another name get a certificate.
		conn := tls.Client(w.open(origin, 443), &tls.Config{RootCAs: roots, ServerName: "www.example.org"})
		if _, err := io.WriteString(conn, "x"); err == nil {
			t.Error("TLS for another name")
		}
		conn.Close()
	})
}
