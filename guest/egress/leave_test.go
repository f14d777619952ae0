package egress

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
)

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
