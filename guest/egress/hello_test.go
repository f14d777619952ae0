package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/crypto/cryptobyte"
)

// ext is an extension of a ClientHello.
type ext struct {
	typ  uint16
	data []byte
}

// sni is a server_name extension with these names.
func sni(names ...string) ext {
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, n := range names {
			b.AddUint8(0)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(n)) })
		}
	})
	return ext{extServerName, b.BytesOrPanic()}
}

// helloMessage is a ClientHello with its handshake header.
func helloMessage(exts ...ext) []byte {
	var b cryptobyte.Builder
	b.AddUint8(typeClientHello)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(tls.VersionTLS12)
		b.AddBytes(make([]byte, 32))
		b.AddUint8(0)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(tls.TLS_AES_128_GCM_SHA256) })
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint8(0) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, e := range exts {
				b.AddUint16(e.typ)
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.data) })
			}
		})
	})
	return b.BytesOrPanic()
}

// records spreads a handshake message over records of at most size bytes.
func records(msg []byte, size int) []byte {
	var out []byte
	for len(msg) > 0 {
		n := min(size, len(msg))
		out = append(out, recordHandshake, 3, 1)
		out = binary.BigEndian.AppendUint16(out, uint16(n))
		out = append(out, msg[:n]...)
		msg = msg[n:]
	}
	return out
}

func yes() bool { return true }

// A ClientHello as crypto/tls sends it reads back, however the bytes arrive.
func TestHello(t *testing.T) {
	a, b := net.Pipe()
	go func() {
		tls.Client(a, &tls.Config{ServerName: "www.example.org"}).HandshakeContext(context.Background())
		a.Close()
	}()
	var raw bytes.Buffer
	h, err := readHello(io.TeeReader(b, &raw), yes)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	if h.name != "www.example.org" || h.ech || h.early || !bytes.Equal(h.raw, raw.Bytes()) {
		t.Errorf("name %q, ech %v, early %v, %d bytes of %d", h.name, h.ech, h.early, len(h.raw), raw.Len())
	}
	in := append(bytes.Clone(raw.Bytes()), "what follows"...)
	for _, r := range []io.Reader{bytes.NewReader(in), iotest.OneByteReader(bytes.NewReader(in)), iotest.DataErrReader(bytes.NewReader(in))} {
		again, err := readHello(r, yes)
		if rest, _ := io.ReadAll(r); err != nil || again.name != h.name || string(rest) != "what follows" {
			t.Errorf("read again: %v, %q, and %q follows", err, again.name, rest)
		}
	}
}

// E22: what a ClientHello may not be, beside what it may.
func TestHelloGames(t *testing.T) {
	name := sni("www.example.org")
	long := ext{21, make([]byte, 40_000)}
	for _, c := range []struct {
		what string
		in   []byte
		want string // empty: it is read
	}{
		{"one record", records(helloMessage(name), maxRecord), ""},
		{"200 records", records(helloMessage(name, ext{21, make([]byte, 400)}), (len(helloMessage(name, ext{21, make([]byte, 400)}))+199)/200), ""},
		{"a byte a record", records(helloMessage(name), 1), ""},
		{"40 KiB", records(helloMessage(name, long), maxRecord), ""},
		{"no name", records(helloMessage(), maxRecord), ""},
		{"too many records", records(helloMessage(name, ext{21, make([]byte, 400)}), 1), "more than 200 records"},
		{"64 KiB", records(helloMessage(name, long, ext{22, make([]byte, 25_490)}), maxRecord), "longer than"},
		{"16 MiB", []byte{22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff}, "longer than"},
		{"two names", records(helloMessage(sni("www.example.org", "evil.example")), maxRecord), "more than one server"},
		{"the extension twice", records(helloMessage(name, sni("evil.example")), maxRecord), "extension twice"},
		{"an address", records(helloMessage(sni("192.0.2.1")), maxRecord), "an address"},
		{"an address of IPv6", records(helloMessage(sni("2001:db8::1")), maxRecord), "an address"},
		{"a NUL", records(helloMessage(sni("www.example.org\x00.evil.example")), maxRecord), "cannot be read"},
		{"an empty name", records(helloMessage(sni("")), maxRecord), "cannot be read"},
		{"no names", records(helloMessage(sni()), maxRecord), "cannot be read"},
		{"a name that lies about its length", records(helloMessage(ext{extServerName, []byte{0, 4, 0, 0, 9, 'x'}}), maxRecord), "cannot be read"},
		{"another message", records([]byte{2, 0, 0, 1, 0}, maxRecord), "another kind"},
		{"more in its record", records(append(helloMessage(name), 1, 0, 0, 0), maxRecord), "something follows"},
		{"another record within", append(records(helloMessage(name)[:20], 20), 20, 3, 3, 0, 1, 1), "another record"},
		{"an empty record", []byte{22, 3, 1, 0, 0}, "empty or too long"},
		{"a record too long", []byte{22, 3, 1, 0xff, 0xff}, "empty or too long"},
		{"SSL 2 in a record", records([]byte{1, 0, 0, 3, 0, 2, 0}, maxRecord), "cannot be read"},
		{"another protocol in a record", []byte{22, 9, 9, 0, 1, 0}, "does not speak TLS"},
		{"cut", records(helloMessage(name), maxRecord)[:60], "unexpected EOF"},
	} {
		h, err := readHello(bytes.NewReader(c.in), yes)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.what, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		case len(h.raw) > len(c.in):
			t.Errorf("%s: %d bytes kept of %d", c.what, len(h.raw), len(c.in))
		}
	}
	for _, in := range []string{"\x80\x2e\x01\x00\x02", "GET / HTTP/1.1\r\n", "SSH-2.0-x\r\n", "\x00"} { // the first: SSL 2
		if h, err := readHello(strings.NewReader(in), yes); !errors.Is(err, errNotTLS) || string(h.raw) != in[:1] {
			t.Errorf("%q: %v, kept %q", in, err, h.raw)
		}
	}
	if _, err := readHello(bytes.NewReader(records(helloMessage(name, long), maxRecord)), func() bool { return false }); err == nil {
		t.Error("a long message was read without room for it")
	}
	h, err := readHello(bytes.NewReader(records(helloMessage(name, ext{extECH, []byte{0}}, ext{extEarlyData, nil}), maxRecord)), yes)
	if err != nil || !h.ech || !h.early {
		t.Errorf("ECH and early data: %v, %v, %v", h.ech, h.early, err)
	}
}

func FuzzClientHello(f *testing.F) {
	f.Add(records(helloMessage(sni("www.example.org")), maxRecord))
	f.Add(records(helloMessage(sni("a", "b"), ext{extECH, []byte{1, 2}}), 7))
	f.Add(records(helloMessage(), 1))
	f.Add([]byte{22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		h, err := readHello(r, yes)
		if got := len(in) - r.Len(); got != len(h.raw) || !bytes.Equal(h.raw, in[:got]) {
			t.Fatalf("%d bytes were read, %d kept", got, len(h.raw))
		}
		if err != nil {
			return
		}
		if len(h.raw) > maxHello+5*maxHelloRecords {
			t.Fatalf("%d bytes are kept", len(h.raw))
		}
		// crypto/tls is the other reader: where both read a name, it is the same.
		if name, ok := stdName(h.raw); ok && !strings.EqualFold(strings.TrimSuffix(h.name, "."), strings.TrimSuffix(name, ".")) {
			t.Fatalf("read as %q, crypto/tls reads %q", h.name, name)
		}
	})
}

// stdName is the name that crypto/tls finds in a ClientHello.
func stdName(raw []byte) (name string, ok bool) {
	errStop := errors.New("stop")
	conn := tls.Server(readOnly{r: bytes.NewReader(raw)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = h.ServerName, true
		return nil, errStop
	}})
	conn.HandshakeContext(context.Background())
	return name, ok
}

// readOnly is a connection of which only the reading side is used.
type readOnly struct {
	net.Conn
	r io.Reader
}

func (r readOnly) Read(b []byte) (int, error)  { return r.r.Read(b) }
func (r readOnly) Write(b []byte) (int, error) { return len(b), nil }
func (r readOnly) Close() error                { return nil }
