package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/egress/egresstest"
	"github.com/carrel-vm/carrel/guest/wire"
)

// The control of all refusals: what is allowed passes, both ways, with
// half-close, and its bytes are counted.
func TestPass(t *testing.T) {
	w := newWorld(t, nil, allow("db.example", 5432))
	w.serve("db.example", somewhere, 5432, func(c net.Conn) {
		io.WriteString(c, "server first\n")
		sum := sha256.New()
		io.Copy(sum, c)
		c.Write(sum.Sum(nil)) // only after the guest has ended its side
		c.(*net.TCPConn).CloseWrite()
	})
	c := w.open("DB.example.", 5432)
	in := bufio.NewReader(c)
	if line, err := in.ReadString('\n'); err != nil || line != "server first\n" {
		t.Fatalf("%q, %v", line, err)
	}
	const size = 24 << 20 // enough for the kernel to carry it on by itself
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(c, sum), io.LimitReader(rand.New(rand.NewSource(1)), size)); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if got, err := io.ReadAll(in); err != nil || !bytes.Equal(got, sum.Sum(nil)) {
		t.Fatalf("the sum of what arrived is %x, %v", got, err)
	}
	ev := w.seen("end", isEnd)
	if ev.BytesUp != size || ev.BytesDown != int64(len("server first\n"))+sha256.Size || ev.Address != somewhere.String() || ev.Host != "db.example" || ev.Port != 5432 {
		t.Errorf("%v", ev)
	}
	on := w.seen("connect", isAllowed)
	if on.Connection != ev.Connection || on.Task == "" || on.Verdict.Rule.GetHost() != "db.example" || on.Address != somewhere.String() || on.Sequence >= ev.Sequence {
		t.Errorf("%v", on)
	}
	lookups, dials := w.outside()
	if len(lookups) != 1 || len(dials) != 1 {
		t.Errorf("resolved %q, dialled %v", lookups, dials)
	}
}

// A large answer goes down whole.
func TestPassDown(t *testing.T) {
	w := newWorld(t, nil, allow("files.example", 9000))
	const size = 24 << 20
	w.serve("files.example", somewhere, 9000, func(c net.Conn) {
		io.Copy(c, io.LimitReader(rand.New(rand.NewSource(2)), size))
	})
	want, got := sha256.New(), sha256.New()
	io.Copy(want, io.LimitReader(rand.New(rand.NewSource(2)), size))
	c := w.open("files.example", 9000)
	if n, err := io.Copy(got, c); n != size || err != nil || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	c.Close()
	if ev := w.seen("end", isEnd); ev.BytesDown != size {
		t.Errorf("%d bytes are said", ev.BytesDown)
	}
}

// certs is a certificate for every name that the tests use.
func certs(t *testing.T, ca *egresstest.Authority) []tls.Certificate {
	c, err := ca.Leaf(time.Now().Add(time.Hour), "www.example", "good.example", "evil.example")
	if err != nil {
		t.Error(err)
		return nil
	}
	return []tls.Certificate{*c}
}

// echList is a list of one ECH configuration (RFC 9849, 4) whose outer name is
// name. Nobody has its key.
func echList(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(extECH)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint8(1)       // the configuration's number
			b.AddUint16(0x0020) // DHKEM(X25519, HKDF-SHA256)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(key.PublicKey().Bytes()) })
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
				b.AddUint16(1) // HKDF-SHA256
				b.AddUint16(1) // AES-128-GCM
			})
			b.AddUint8(0) // the longest name
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(name)) })
			b.AddUint16(0) // extensions
		})
	})
	return b.BytesOrPanic()
}

// TLS passes through when its name is the one that was asked for, and the server
// that is verified is the real one.
func TestPassTLS(t *testing.T) {
	ca := egresstest.NewAuthority(t)
	w := newWorld(t, nil, allow("www.example", 443, 8443))
	for _, curves := range [][]tls.CurveID{nil, {tls.CurveP384}} { // the second: the server asks for another hello
		for _, port := range []uint16{443, 8443} {
			w.mu.Lock()
			w.names = map[string][]netip.Addr{}
			w.mu.Unlock()
			w.serve("www.example", somewhere, port, func(c net.Conn) {
				s := tls.Server(c, &tls.Config{Certificates: certs(t, ca), CurvePreferences: curves})
				io.Copy(s, s)
				s.CloseWrite()
			})
			for range 2 {
				conn := w.open("www.example", uint32(port))
				c := tls.Client(conn, &tls.Config{ServerName: "WWW.example", RootCAs: ca.Pool()})
				if err := says(c); err != nil {
					t.Fatalf("port %d, curves %v: %v", port, curves, err)
				}
				if curves != nil && !c.ConnectionState().HelloRetryRequest {
					t.Error("the server did not ask for another hello: nothing was tested")
				}
				c.CloseWrite()
				if _, err := io.ReadAll(c); err != nil {
					t.Errorf("port %d: %v", port, err)
				}
				c.Close()
			}
		}
	}
}

// E10: the name that was asked for and the name in TLS: only two equal ones that
// are allowed pass. The third place, Host, is the inspector's.
func TestNames(t *testing.T) {
	ca := egresstest.NewAuthority(t)
	w := newWorld(t, nil, allow("good.example", 443, 8443))
	handle := func(c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: certs(t, ca)})
		io.Copy(s, s)
	}
	for i, host := range []string{"good.example", "evil.example"} {
		a := netip.AddrFrom4([4]byte{93, 184, 215, byte(20 + i)})
		w.serve(host, a, 443, handle)
		w.serve(host, a, 8443, handle)
	}
	for _, port := range []uint32{443, 8443} {
		for _, host := range []string{"good.example", "evil.example"} {
			for _, name := range []string{"good.example", "evil.example", ""} {
				conn := w.open(host, port)
				c := tls.Client(conn, &tls.Config{ServerName: name, RootCAs: ca.Pool(), InsecureSkipVerify: name == ""})
				err := says(c)
				// Elsewhere than on 443 a server may be asked for its default name.
				want := host == "good.example" && (name == host || name == "" && port != 443)
				if (err == nil) != want {
					t.Errorf("%s:%d with SNI %q: %v", host, port, name, err)
				}
				if !want && (err == nil || !strings.Contains(err.Error(), "access denied")) {
					t.Errorf("%s:%d with SNI %q: %v, want the alert access denied", host, port, name, err)
				}
				conn.Close()
			}
		}
	}
	if lookups, _ := w.outside(); strings.Contains(strings.Join(lookups, " "), "evil") {
		t.Errorf("a name that no rule allows was resolved: %q", lookups)
	}
}

// E02, E14, E16, E20: odd names, other ports, magic addresses and names that no
// rule allows: nothing is resolved and nothing dialled.
func TestNothingLeaves(t *testing.T) {
	w := newWorld(t, nil, allow("good.example"), allow("*.good.example"))
	w.serve("good.example", somewhere, 443, echo)
	type to struct {
		host string
		port uint32
	}
	all := []to{
		{"good.example", 0}, {"good.example", 22}, {"good.example", 25}, {"good.example", 80}, {"good.example", 2375}, {"good.example", 6379}, {"good.example", 65536}, {"good.example", 443 + 65536}, {"good.example", 1<<32 - 1},
		{"notgood.example", 443}, {"good.example.evil.example", 443}, {strings.Repeat("a", 60) + ".tunnel.evil.example", 443}, {"", 443},
		{"host.carrel.internal", 443}, {"host.docker.internal", 443}, {"localhost", 443}, {"metadata.google.internal", 443},
	}
	for _, odd := range []string{"\x00", "\r\n", "\t", " ", "%00", "@", "#", "?", "/", "\\", ":443", ".."} {
		all = append(all, to{"evil.example" + odd + ".good.example", 443}, to{"x.good.example" + odd, 443}, to{odd + "good.example", 443})
	}
	for _, a := range []string{"192.168.127.1", "192.168.127.254", "169.254.169.254", "127.0.0.1", "0.0.0.0", "10.0.2.2", "224.0.0.1", "255.255.255.255", "::1", "fe80::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "81.2.69.160", "93.184.215.14", "2130706433", "0x7f.1", "127.1"} {
		for _, port := range []uint32{53, 80, 443, 2375} {
			all = append(all, to{a, port})
		}
	}
	for _, x := range all {
		c := w.open(x.host, x.port)
		c.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || len(got) != 0 && x.port != 22 {
			t.Errorf("%q:%d: %q, %v", x.host, x.port, got, err)
		}
		c.Close()
	}
	if lookups, dials := w.outside(); len(lookups)+len(dials) > 0 {
		t.Errorf("resolved %q, dialled %v", lookups, dials)
	}
	w.mu.Lock()
	for _, ev := range w.events {
		if !isDenied(ev) || ev.Verdict.Reason == "" || strings.ContainsAny(ev.Host, "\x00\r\n\t") {
			t.Errorf("%v", ev)
		}
	}
	if len(w.events) != len(all) {
		t.Errorf("%d events of %d connections", len(w.events), len(all))
	}
	w.mu.Unlock()
	c := tls.Client(w.open("good.example", 443), &tls.Config{ServerName: "good.example"})
	if err := c.Handshake(); err == nil {
		t.Error("an echo speaks TLS")
	}
	if lookups, dials := w.outside(); len(lookups) != 1 || len(dials) != 1 {
		t.Errorf("the control resolved %q and dialled %v", lookups, dials)
	}
}

// E15: a name may lead to no address that the rules refuse, and what is dialled
// is one of the addresses that were checked.
func TestRebinding(t *testing.T) {
	bad := []string{"127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "0.0.0.0", "192.0.0.192", "224.0.0.1",
		"::1", "::", "fd00:ec2::254", "fe80::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "81.2.69.160"}
	w := newWorld(t, nil, allow("name.example", 7))
	for _, a := range bad {
		w.mu.Lock()
		w.names["name.example"] = []netip.Addr{netip.MustParseAddr(a)}
		w.lookups, w.dials = nil, nil
		w.mu.Unlock()
		c := w.open("name.example", 7)
		if err := says(c); err == nil {
			t.Errorf("%s was reached", a)
		}
		if lookups, dials := w.outside(); len(lookups) != 1 || len(dials) != 0 {
			t.Errorf("%s: resolved %d times, dialled %v", a, len(lookups), dials)
		}
	}
	ev := w.last()
	if !isDenied(ev) || !strings.Contains(ev.Verdict.Reason, "81.2.69.160") {
		t.Errorf("%v", ev)
	}
	// Mixed: only the good one is dialled.
	w.mu.Lock()
	w.names["name.example"] = nil
	w.mu.Unlock()
	w.serve("name.example", somewhere, 7, echo)
	w.mu.Lock()
	for _, a := range bad {
		w.names["name.example"] = append([]netip.Addr{netip.MustParseAddr(a)}, w.names["name.example"]...)
	}
	w.mu.Unlock()
	c := w.open("name.example", 7)
	if err := says(c); err != nil {
		t.Fatal(err)
	}
	if _, dials := w.outside(); len(dials) != 1 || dials[0].Addr() != somewhere {
		t.Errorf("dialled %v", dials)
	}
	// It leads to a private address: the cure says how that would be allowed.
	w.mu.Lock()
	w.names["name.example"] = []netip.Addr{netip.MustParseAddr("10.1.2.3")}
	w.mu.Unlock()
	if err := says(w.open("name.example", 7)); err == nil {
		t.Error("10.1.2.3 was reached")
	}
	if ev := w.last(); ev.Verdict.Cure != "carrel allow box name.example:7 --private" {
		t.Errorf("cure %q", ev.Verdict.Cure)
	}
}

// The real dialer reaches a canary on the loopback only where a rule names it,
// and an answer of the resolver that changes is never asked for again.
func TestLoopbackCanary(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	hits := make(chan struct{}, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			hits <- struct{}{}
			go echo(c)
		}
	}()
	port := uint32(ln.Addr().(*net.TCPAddr).Port)
	w := newWorld(t, func(o *Options) { o.Dial, o.Own = nil, nil }, allow("name.example", port))
	w.names["name.example"] = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	for _, host := range []string{"name.example", "127.0.0.1", "host.carrel.internal", "::ffff:127.0.0.1"} {
		if err := says(w.open(host, port)); err == nil {
			t.Errorf("%s reached the loopback", host)
		}
	}
	if len(hits) > 0 {
		t.Fatalf("the canary was hit %d times", len(hits))
	}
	w.configure(allow("127.0.0.1", port), allow("host.carrel.internal", port))
	for _, host := range []string{"127.0.0.1", "host.carrel.internal"} {
		c := w.open(host, port)
		if err := says(c); err != nil {
			t.Errorf("%s, which a rule names: %v", host, err)
		}
		c.Close()
	}
	if len(hits) != 2 {
		t.Errorf("the canary was hit %d times", len(hits))
	}
	ln.Close()
	<-done
}

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
				c.SetDeadline(time.Now().Add(20 * time.Second))
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

// Refusals say why in the connection's own protocol.
func TestRefusalsExplain(t *testing.T) {
	w := newWorld(t, nil)
	const why = "carrel: egress to evil.example:80 is not allowed (carrel allow box evil.example:80)"
	c := w.open("evil.example", 80)
	req, _ := http.NewRequest("POST", "http://evil.example/x", strings.NewReader(strings.Repeat("x", 64<<10)))
	go req.Write(c)
	res, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 403 || !strings.HasPrefix(res.Status, "403 "+why) || !strings.HasPrefix(string(body), why) || strings.Count(string(body), "\n") != 1 {
		t.Errorf("%q, %q, %v", res.Status, body, err)
	}
	c.Close()

	for _, speak := range []string{"", "SSH-2.0-OpenSSH_9.2\r\n"} {
		port := uint32(22)
		if speak != "" {
			port = 2222
		}
		c = w.open("evil.example", port)
		io.WriteString(c, speak)
		b, err := io.ReadAll(c)
		text, perr := sshDisconnect(b)
		if err != nil || perr != nil || !strings.HasPrefix(text, fmt.Sprintf("carrel: egress to evil.example:%d is not allowed (carrel allow box evil.example:%[1]d)", port)) {
			t.Errorf("%q, %v, %v", b, err, perr)
		}
		c.Close()
	}

	tc := tls.Client(w.open("evil.example", 443), &tls.Config{ServerName: "evil.example"})
	if err := tc.Handshake(); err == nil || !strings.Contains(err.Error(), "access denied") {
		t.Errorf("TLS: %v", err)
	}
	tc.Close()
	if ev := w.last(); ev.Verdict.Cure != "carrel allow box evil.example" {
		t.Errorf("cure %q", ev.Verdict.Cure)
	}
	// A deny rule is not cured by another allow rule.
	w.configure(anyRule(api.EgressAction_EGRESS_ACTION_DENY, "evil.example"))
	w.open("evil.example", 443).CloseWrite()
	w.seen("a denial by a rule", func(ev *api.EgressEvent) bool { return isDenied(ev) && ev.Verdict.Rule != nil && ev.Verdict.Cure == "" })

	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.lines) < 4 || !strings.HasPrefix(w.lines[0], why) {
		t.Errorf("%q", w.lines)
	}
	for _, l := range w.lines {
		if l != wire.Text(l, wire.MaxText) {
			t.Errorf("%q is not one plain line", l)
		}
	}
}

// sshDisconnect reads a banner and one unencrypted packet: RFC 4253.
func sshDisconnect(b []byte) (string, error) {
	rest, ok := bytes.CutPrefix(b, []byte("SSH-2.0-carrel\r\n"))
	if !ok || len(rest) < 5 {
		return "", errors.New("no banner")
	}
	n, pad := int(binary.BigEndian.Uint32(rest)), int(rest[4])
	if n+4 != len(rest) || len(rest)%8 != 0 || pad < 4 || pad+1 > n {
		return "", fmt.Errorf("a packet of %d bytes with %d of padding in %d", n, pad, len(rest))
	}
	p := rest[5 : 4+n-pad]
	if p[0] != 1 || binary.BigEndian.Uint32(p[1:]) != 1 {
		return "", errors.New("not a disconnect message")
	}
	l := int(binary.BigEndian.Uint32(p[5:]))
	if 9+l+4 != len(p) {
		return "", errors.New("its text has another length")
	}
	return string(p[9 : 9+l]), nil
}

// Rules that come while a connection lives are held against it.
func TestConfigureCloses(t *testing.T) {
	w := newWorld(t, nil, allow("a.example", 7), allow("b.example", 7), allow("c.example", 7))
	other := netip.MustParseAddr("93.184.215.15")
	w.serve("a.example", somewhere, 7, echo)
	w.serve("b.example", other, 7, echo)
	w.names["c.example"] = []netip.Addr{somewhere}
	open := map[string]net.Conn{}
	for _, h := range []string{"a.example", "b.example", "c.example"} {
		open[h] = w.open(h, 7)
		if err := says(open[h]); err != nil {
			t.Fatal(err)
		}
	}
	// a stays; b is denied; c would have to be inspected.
	if n := w.configure(allow("a.example", 7), allow("b.example", 7), anyRule(api.EgressAction_EGRESS_ACTION_DENY, "b.example"),
		&api.EgressRule{Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: "c.example", Ports: []uint32{7}, Methods: []string{"GET"}}); n != 2 {
		t.Errorf("%d connections were closed", n)
	}
	if err := says(open["a.example"]); err != nil {
		t.Errorf("what is still allowed was closed: %v", err)
	}
	for _, h := range []string{"b.example", "c.example"} {
		if err := says(open[h]); err == nil {
			t.Errorf("%s still passes", h)
		}
		ev := w.seen("end of "+h, func(ev *api.EgressEvent) bool { return isEnd(ev) && ev.Host == h })
		if !strings.HasPrefix(ev.Verdict.Reason, "the rules have changed: ") {
			t.Errorf("%v", ev)
		}
	}
	if n := w.configure(); n != 1 {
		t.Errorf("%d connections were closed", n)
	}
	// Rules that cannot be read change nothing.
	w.configure(allow("a.example", 7))
	c := w.open("a.example", 7)
	if err := says(c); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Configure(&api.ConfigureEdgeRequest{Rules: []*api.EgressRule{allow("not a host")}}); err == nil {
		t.Error("a rule without sense was taken")
	}
	if err := says(c); err != nil {
		t.Errorf("after rules that were refused: %v", err)
	}
}

// Without configuration, and without any rule, nothing is reachable.
func TestZeroDenies(t *testing.T) {
	w := newWorld(t, nil)
	s, err := New(Options{Guest: "box", Lookup: w.lookup, Dial: w.dial})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w.serve("a.example", somewhere, 7, echo)
	a, b := socketPair(t)
	defer a.Close()
	go s.Serve(context.Background(), b)
	wire.Write(a, &wire.Open{Host: "a.example", Port: 7})
	if err := says(a); err == nil {
		t.Error("a Server that was not configured lets through")
	}
	if lookups, dials := w.outside(); len(lookups)+len(dials) > 0 {
		t.Errorf("resolved %q, dialled %v", lookups, dials)
	}
}

// The host's own resolver is asked for the complete name, without a search list.
func TestLookupHost(t *testing.T) {
	got, err := lookupHost(t.Context(), "localhost")
	if err != nil || len(got) == 0 || !got[0].Unmap().IsLoopback() {
		t.Errorf("%v, %v", got, err)
	}
	own, err := interfaceAddrs()
	if err != nil || len(own) == 0 {
		t.Errorf("%v, %v", own, err)
	}
	for _, a := range own {
		if a.Zone() != "" || a.Is4In6() {
			t.Errorf("%v is not in its plain form", a)
		}
	}
}

// A name of one label that the hosts file lacks is not sent anywhere.
func TestLookupOneLabel(t *testing.T) {
	got, err := lookupHost(t.Context(), "intranet-without-dots")
	if err == nil || len(got) > 0 || !strings.Contains(err.Error(), errNoDNS.Error()) {
		t.Errorf("%v, %v", got, err)
	}
}
