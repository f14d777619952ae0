package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"

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
