package egress

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
)

// E22, on the wire: first messages that cannot be checked are refused with an
// alert, and nothing is dialled.
func TestHelloRefused(t *testing.T) {
	w := newWorld(t, nil, allow("www.example"))
	w.serve("www.example", somewhere, 443, echo)
	name := sni("www.example")
	for what, in := range map[string][]byte{
		"two names":       records(helloMessage(sni("www.example", "evil.example")), maxRecord),
		"no name":         records(helloMessage(), maxRecord),
		"another name":    records(helloMessage(sni("evil.example")), maxRecord),
		"an address":      records(helloMessage(sni("93.184.215.14")), maxRecord),
		"early data":      records(helloMessage(name, ext{extEarlyData, nil}), maxRecord),
		"256 records":     records(helloMessage(name, ext{21, make([]byte, 200)}), 1),
		"another message": records([]byte{2, 0, 0, 1, 0}, maxRecord),
	} {
		c := w.open("www.example", 443)
		c.Write(in)
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, accessDenied) {
			t.Errorf("%s: %x, %v", what, got, err)
		}
		c.Close()
		ev := w.seen(what, func(ev *api.EgressEvent) bool { return isDenied(ev) })
		if ev.Verdict.Reason == "" {
			t.Errorf("%s: %v", what, ev)
		}
	}
	for what, in := range map[string]string{"SSL 2": "\x80\x2e\x01\x00\x02" + strings.Repeat("x", 43), "another protocol": "\x00\x01\x02\x03"} {
		c := w.open("www.example", 443)
		io.WriteString(c, in)
		if got, err := io.ReadAll(c); err != nil || len(got) > 0 {
			t.Errorf("%s: %x, %v", what, got, err)
		}
		c.Close()
	}
	if lookups, dials := w.outside(); len(lookups)+len(dials) > 0 {
		t.Errorf("resolved %q, dialled %v", lookups, dials)
	}
	c := w.open("www.example", 443)
	in := records(helloMessage(name), 10)
	c.Write(in)
	got := make([]byte, 1)
	if _, err := io.ReadFull(c, got); err == nil || got[0] != 0 { // an echo is no ServerHello
		t.Errorf("the control: %x, %v", got, err)
	}
	w.seen("the control", isAllowed)
}

// E21: where the name of the server is encrypted, or seems to be, the guest's
// own authority answers, and so the name is known.
func TestECH(t *testing.T) {
	w := newWorld(t, nil, allow("www.example", 443, 8443))
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(w.Trust()) {
		t.Fatal("no certificate")
	}
	for _, port := range []uint32{443, 8443} {
		w.mu.Lock()
		w.names = map[string][]netip.Addr{}
		w.mu.Unlock()
		w.serve("www.example", somewhere, uint16(port), func(c net.Conn) { io.Copy(io.Discard, c) })
		c := tls.Client(w.open("www.example", port), &tls.Config{RootCAs: roots, ServerName: "hidden.example", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echList(t, "www.example")})
		err := c.Handshake()
		// This error means: the certificate was good for the outer name.
		var rejected *tls.ECHRejectionError
		if !errors.As(err, &rejected) {
			t.Errorf("port %d: %v", port, err)
		}
		c.Close()
		// The outer name is another: refused as without ECH.
		c = tls.Client(w.open("www.example", port), &tls.Config{RootCAs: roots, ServerName: "www.example", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echList(t, "evil.example")})
		if err := c.Handshake(); err == nil || !strings.Contains(err.Error(), "access denied") {
			t.Errorf("port %d, outer name evil.example: %v", port, err)
		}
		c.Close()
	}
}

// A second ClientHello passes only when the server asked for one, and only with
// the same name.
func TestSecondHello(t *testing.T) {
	serverHello := func(random []byte) []byte {
		b := append([]byte{typeServerHello, 0, 0, 2 + 32 + 1 + 2 + 1 + 2, 3, 3}, random...)
		return records(append(b, 0, 0x13, 0x01, 0, 0, 0), maxRecord)
	}
	first := records(helloMessage(sni("www.example")), maxRecord)
	ccs := []byte{recordChangeCipherSpec, 3, 3, 0, 1, 1}
	for _, port := range []uint32{443, 8443} {
		for _, x := range []struct {
			what   string
			answer []byte
			second []byte
			passes bool
		}{
			{"asked, same name", serverHello(helloRetry), first, true},
			{"asked, same name after a ChangeCipherSpec", serverHello(helloRetry), append(bytes.Clone(ccs), first...), true},
			{"asked, another name", serverHello(helloRetry), records(helloMessage(sni("evil.example")), maxRecord), false},
			{"asked, no name", serverHello(helloRetry), records(helloMessage(), maxRecord), false},
			{"asked, encrypted name", serverHello(helloRetry), records(helloMessage(sni("www.example"), ext{extECH, []byte{0}}), maxRecord), false},
			{"not asked", serverHello(make([]byte, 32)), first, false},
			{"not asked, after a ChangeCipherSpec", serverHello(make([]byte, 32)), append(bytes.Clone(ccs), first...), false},
			{"not asked, other bytes", serverHello(make([]byte, 32)), []byte{23, 3, 3, 0, 1, 0}, true},
		} {
			w := newWorld(t, nil, allow("www.example", port))
			got := make(chan []byte, 1)
			w.serve("www.example", somewhere, uint16(port), func(c net.Conn) {
				c.SetDeadline(time.Now().Add(patience))
				b := make([]byte, len(first))
				if _, err := io.ReadFull(c, b); err != nil || !bytes.Equal(b, first) {
					t.Errorf("%s: the first message is %x, %v", x.what, b, err)
				}
				// In pieces, since nothing says where a segment ends.
				for i := range x.answer {
					c.Write(x.answer[i : i+1])
				}
				rest, _ := io.ReadAll(c)
				got <- rest
			})
			c := w.open("www.example", port)
			c.Write(append(bytes.Clone(first), x.second...)) // at once: it has to wait for the server
			if x.passes {
				c.CloseWrite()
			}
			io.ReadAll(c)
			c.Close()
			rest := <-got
			if x.passes != bytes.Equal(rest, x.second) || !x.passes && bytes.Contains(rest, []byte("evil")) {
				t.Errorf("port %d, %s: %x arrived", port, x.what, rest)
			}
			w.Close()
		}
	}
}
