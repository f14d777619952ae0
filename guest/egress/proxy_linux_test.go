package egress

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// A real proxy, squid, with a password, and a hosts file of its own: the name
// www.example is known to it alone.
func TestSquid(t *testing.T) {
	ca := egresstest.NewAuthority(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	tlsPort := uint32(ln.Addr().(*net.TCPAddr).Port)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				s := tls.Server(c, &tls.Config{Certificates: certs(t, ca)})
				io.Copy(s, s)
				s.CloseWrite()
			}()
		}
	}()
	defer func() {
		ln.Close()
		<-done
	}()
	webPort := uint32(plainOrigin(t))
	squid := egresstest.StartSquid(t, "127.0.0.1 www.example\n", "127.0.0.1", tlsPort)

	w := newWorld(t, nil)
	rules := []*api.EgressRule{allow("www.example", tlsPort), allow("other.example", tlsPort), {Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: "www.example", Ports: []uint32{webPort}, Inspect: true}}
	for _, login := range []string{"", egresstest.ProxyUser + ":wrong@", egresstest.ProxyUser + ":" + egresstest.ProxyPassword + "@"} {
		up := "http://" + login + squid.Addr
		w.upstream(&api.EdgeUpstream{HttpsProxy: up, HttpProxy: up}, rules...)
		good := strings.Contains(login, egresstest.ProxyPassword)

		conn := w.open("www.example", tlsPort)
		c := tls.Client(conn, &tls.Config{ServerName: "www.example", RootCAs: ca.Pool()})
		if err := says(c); (err == nil) != good {
			t.Errorf("TLS as %q: %v", login, err)
		}
		conn.Close()

		conn = w.open("www.example", webPort)
		fmt.Fprintf(conn, "GET /x?y HTTP/1.1\r\nHost: www.example:%d\r\nConnection: close\r\n\r\n", webPort)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("HTTP as %q: %v", login, err)
			continue
		}
		body, _ := io.ReadAll(res.Body)
		if want := fmt.Sprintf("www.example:%d /x?y via", webPort); (res.StatusCode == 200) != good || good && (!strings.HasPrefix(string(body), want) || strings.HasSuffix(string(body), `via ""`)) {
			t.Errorf("HTTP as %q: %s, %q", login, res.Status, body)
		}
		conn.Close()
	}
	// The proxy does not know this name.
	conn := w.open("other.example", tlsPort)
	if err := says(tls.Client(conn, &tls.Config{ServerName: "other.example", RootCAs: ca.Pool()})); err == nil {
		t.Error("other.example was reached")
	}
	conn.Close()
	if lookups, dials := w.outside(); len(lookups)+len(dials) > 0 {
		t.Errorf("resolved %q, dialled %v", lookups, dials)
	}
}
