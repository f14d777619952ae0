package names

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func query(t testing.TB, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	n, err := dnsmessage.NewName(name)
	if err != nil {
		t.Fatal(err)
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: kind, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unpack(t testing.TB, b []byte) *dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("the answer %x: %v", b, err)
	}
	return &m
}

// result is an answer in short: the code, and what the one record says.
func result(t testing.TB, b []byte) string {
	t.Helper()
	m := unpack(t, b)
	if !m.Response || m.Truncated || len(b) > 512 {
		t.Errorf("header %+v of %d bytes", m.Header, len(b))
	}
	s := strings.TrimPrefix(m.RCode.String(), "RCode")
	for _, a := range m.Answers {
		switch r := a.Body.(type) {
		case *dnsmessage.AResource:
			s += " " + netip.AddrFrom4(r.A).String()
		case *dnsmessage.PTRResource:
			s += " " + r.PTR.String()
		default:
			s += fmt.Sprintf(" %v", a.Header.Type)
		}
		if a.Header.TTL != ttl && a.Header.Name.String() != "." {
			t.Errorf("TTL %d", a.Header.TTL)
		}
	}
	return s
}

func TestAnswer(t *testing.T) {
	const https, svcb = dnsmessage.Type(65), dnsmessage.Type(64)
	var tab Table
	for _, c := range []struct {
		name string
		kind dnsmessage.Type
		want string
	}{
		{"example.com.", dnsmessage.TypeA, "Success 198.18.1.1"},
		{"EXAMPLE.com.", dnsmessage.TypeA, "Success 198.18.1.1"},
		{"www.example.com.", dnsmessage.TypeA, "Success 198.18.1.2"},
		{"example.com.", dnsmessage.TypeALL, "Success 198.18.1.1"},
		{"host.carrel.internal.", dnsmessage.TypeA, "Success 198.18.1.3"},
		{"_dmarc.example.com.", dnsmessage.TypeA, "Success 198.18.1.4"},
		{"xn--bcher-kva.example.", dnsmessage.TypeA, "Success 198.18.1.5"},
		// Types that we do not have, for names that may not even be: no
		// record, but never "no such name", which would end a look-up of A.
		{"v6.example.com.", dnsmessage.TypeAAAA, "Success"},
		{"example.com.", https, "Success"},
		{"example.com.", svcb, "Success"},
		{"example.com.", dnsmessage.TypeMX, "Success"},
		{"example.com.", dnsmessage.TypeTXT, "Success"},
		{"secret-in-a-label.attacker.test.", dnsmessage.TypeTXT, "Success"},
		{"_ldap._tcp.example.com.", dnsmessage.TypeSRV, "Success"},
		{"example.com.", dnsmessage.TypeNS, "Success"},
		{"example.com.", dnsmessage.TypePTR, "Success"},
		{"localhost.", dnsmessage.TypeA, "Success 127.0.0.1"},
		{"a.localhost.", dnsmessage.TypeA, "Success 127.0.0.1"},
		{"localhost.", dnsmessage.TypeAAAA, "Success"},
		{"1.1.18.198.in-addr.arpa.", dnsmessage.TypePTR, "Success example.com."},
		{"1.1.18.198.in-addr.arpa.", dnsmessage.TypeA, "Success"},
		{"1.0.0.127.in-addr.arpa.", dnsmessage.TypePTR, "Success localhost."},
		// No such name.
		{"99.9.18.198.in-addr.arpa.", dnsmessage.TypePTR, "NameError"},
		{"1.0.18.198.in-addr.arpa.", dnsmessage.TypePTR, "NameError"},
		{"8.8.8.8.in-addr.arpa.", dnsmessage.TypePTR, "NameError"},
		{"01.1.18.198.in-addr.arpa.", dnsmessage.TypePTR, "NameError"},
		{"1.18.198.in-addr.arpa.", dnsmessage.TypePTR, "NameError"},
		{"1.0.0.ip6.arpa.", dnsmessage.TypePTR, "NameError"},
		{"single.", dnsmessage.TypeA, "NameError"},
		{"single.", dnsmessage.TypeAAAA, "NameError"},
		{".", dnsmessage.TypeA, "NameError"},
		{"use-application-dns.net.", dnsmessage.TypeA, "NameError"},
		// What a resolver could take for an address.
		{"127.0.0.1.", dnsmessage.TypeA, "NameError"},
		{"169.254.169.254.", dnsmessage.TypeA, "NameError"},
		{"example.1.", dnsmessage.TypeA, "NameError"},
		{"a.0x7f.", dnsmessage.TypeA, "NameError"},
		{"a.0x.", dnsmessage.TypeA, "NameError"},
		// What is no host name.
		{"a b.example.com.", dnsmessage.TypeA, "NameError"},
		{"a\x00.example.com.", dnsmessage.TypeA, "NameError"},
		{"a\n.example.com.", dnsmessage.TypeA, "NameError"},
		{"b\xc3\xbccher.example.", dnsmessage.TypeA, "NameError"},
		{"a%00.example.", dnsmessage.TypeA, "NameError"},
		{"a@b.example.", dnsmessage.TypeA, "NameError"},
		{"*.example.", dnsmessage.TypeA, "NameError"},
	} {
		if got := result(t, tab.Answer(query(t, c.name, c.kind))); got != c.want {
			t.Errorf("%q %v: %q, want %q", c.name, c.kind, got, c.want)
		}
	}
	if tab.Len() != 5 {
		t.Errorf("%d names have an address, want the 5 that were looked up as A", tab.Len())
	}
	if n, ok := tab.Name(netip.MustParseAddr("198.18.1.2")); !ok || n != "www.example.com" {
		t.Errorf("198.18.1.2 is %q, %t", n, ok)
	}
}

func TestOddMessages(t *testing.T) {
	var tab Table
	good := query(t, "example.com.", dnsmessage.TypeA)
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, c := range map[string]struct {
		b    []byte
		want string // "": no answer
	}{
		"control":       {good, "Success 198.18.1.1"},
		"empty":         {nil, ""},
		"short":         {good[:11], ""},
		"an answer":     {change(func(b []byte) []byte { b[2] |= 0x80; return b }), ""},
		"cut":           {good[:len(good)-1], "FormatError"},
		"no question":   {change(func(b []byte) []byte { b[5] = 0; return b[:12] }), "FormatError"},
		"two questions": {change(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), "FormatError"},
		"a loop":        {change(func(b []byte) []byte { b[12], b[13] = 0xc0, 12; return b }), "FormatError"},
		"lies":          {change(func(b []byte) []byte { b[11] = 9; return b }), "FormatError"},
		"status":        {change(func(b []byte) []byte { b[2] = 2 << 3; return b }), "NotImplemented"},
		"update":        {change(func(b []byte) []byte { b[2] = 5 << 3; return b }), "NotImplemented"},
		"chaos":         {change(func(b []byte) []byte { b[len(b)-1] = 3; return b }), "Refused"},
	} {
		got := tab.Answer(c.b)
		if c.want == "" {
			if got != nil {
				t.Errorf("%s: answered %x", name, got)
			}
			continue
		}
		if r := result(t, got); r != c.want {
			t.Errorf("%s: %q, want %q", name, r, c.want)
		}
		if binary.BigEndian.Uint16(got) != 4711 {
			t.Errorf("%s: another ID", name)
		}
	}
	// EDNS: an OPT is answered by an OPT; of an unknown version, by 16.
	for version, want := range map[uint32]dnsmessage.RCode{0: dnsmessage.RCodeSuccess, 1: rcodeBadVersion} {
		m := unpack(t, good)
		m.Additionals = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Type: dnsmessage.TypeOPT, Class: 1232, TTL: version << 16},
			Body:   &dnsmessage.OPTResource{},
		}}
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		a := unpack(t, tab.Answer(b))
		if len(a.Additionals) != 1 || a.Additionals[0].Header.ExtendedRCode(a.RCode) != want || (len(a.Answers) == 1) != (version == 0) {
			t.Errorf("EDNS version %d: %+v", version, a)
		}
	}
}

func TestTableIsBounded(t *testing.T) {
	var tab Table
	seen := make(map[netip.Addr]bool)
	for i := range MaxNames {
		a, ok := tab.Address(fmt.Sprintf("n%d.example", i))
		if !ok || seen[a] || !Synthetic.Contains(a) || a == Own || netip.MustParsePrefix("198.18.0.0/24").Contains(a) {
			t.Fatalf("name %d: %s, %t", i, a, ok)
		}
		seen[a] = true
		if n, ok := tab.Name(a); !ok || n != fmt.Sprintf("n%d.example", i) {
			t.Fatalf("%s is %q", a, n)
		}
	}
	if got := result(t, tab.Answer(query(t, "one.more.", dnsmessage.TypeA))); got != "ServerFailure" {
		t.Errorf("one name more: %q", got)
	}
	// The old ones stay.
	if got := result(t, tab.Answer(query(t, "n0.example.", dnsmessage.TypeA))); got != "Success 198.18.1.1" {
		t.Errorf("the first name: %q", got)
	}
	for _, a := range []string{"198.18.0.1", "198.18.0.0", "198.18.1.0", "198.18.1.255", "198.19.255.254", "198.20.1.1", "10.0.0.1", "::1"} {
		if n, ok := tab.Name(netip.MustParseAddr(a)); ok {
			t.Errorf("%s is %q", a, n)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	var tab Table
	var g sync.WaitGroup
	for range 8 {
		g.Go(func() {
			for i := range 500 {
				name := fmt.Sprintf("n%d.example", i)
				a, ok := tab.Address(name)
				if n, ok2 := tab.Name(a); !ok || !ok2 || n != name {
					t.Errorf("%s: %s is %q", name, a, n)
				}
			}
		})
	}
	g.Wait()
	if tab.Len() != 500 {
		t.Errorf("%d names", tab.Len())
	}
}

func TestServe(t *testing.T) {
	var tab Table
	p, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	g.Go(func() {
		if err := tab.ServePackets(p); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	c, err := net.Dial("udp4", p.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Minute))
	b := make([]byte, 600)
	for _, q := range [][]byte{nil, []byte("x"), make([]byte, MaxMessage+1), query(t, "example.com.", dnsmessage.TypeA)} {
		_, _ = c.Write(q)
	}
	n, err := c.Read(b)
	if err != nil || result(t, b[:n]) != "Success 198.18.1.1" {
		t.Errorf("over UDP: %x, %v", b[:n], err)
	}
	_, _ = c.Close(), p.Close()

	client, server := net.Pipe()
	g.Go(func() { tab.ServeStream(server) })
	for range 3 {
		q := query(t, "example.com.", dnsmessage.TypeA)
		go func() { _, _ = client.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)) }()
		n, err := client.Read(b)
		if err != nil || int(binary.BigEndian.Uint16(b)) != n-2 || result(t, b[2:n]) != "Success 198.18.1.1" {
			t.Errorf("over TCP: %x, %v", b[:n], err)
		}
	}
	_, _ = client.Write([]byte{0xff, 0xff})
	if _, err := client.Read(b); err == nil {
		t.Error("a message of 65535 bytes is waited for")
	}
	_ = client.Close()
	g.Wait()
}

func FuzzDNS(f *testing.F) {
	for _, n := range []string{"example.com.", "localhost.", "1.1.18.198.in-addr.arpa.", "single.", "127.0.0.1."} {
		for _, k := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR, dnsmessage.TypeALL} {
			f.Add(query(f, n, k))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var tab Table
		a := tab.Answer(b)
		if a == nil {
			return
		}
		m := unpack(t, a)
		if !m.Response || m.ID != binary.BigEndian.Uint16(b) || len(a) > 512 || len(m.Answers) > 1 || tab.Len() > 1 {
			t.Fatalf("%x is answered by %+v", b, m)
		}
		if tab.Len() == 0 {
			return
		}
		// What got an address is a host name in its one form, and comes back.
		name, ok := tab.Name(address(0))
		again, ok2 := canonical(name)
		if !ok || !ok2 || again != name || !strings.Contains(name, ".") {
			t.Fatalf("%q became a name", name)
		}
		if _, err := netip.ParseAddr(name); err == nil {
			t.Fatalf("the address %q became a name", name)
		}
	})
}
