package steer

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestFallback: where BPF may not be loaded, as in a user namespace, nftables
// do the work, and the steering says why.
func TestFallback(t *testing.T) {
	const way = "fallback"
	if os.Getenv(insideName) == "" {
		again(t, t.Name(), way)
		return
	}
	s, err := Start(Options{Own: own})
	if err != nil {
		t.Fatal(err)
	}
	answer(t, s)
	if why, ok := strings.CutPrefix(s.How, NFTables+": "); !ok || why == "" {
		t.Errorf("steered by %q", s.How)
	}
	t.Log(s.How)
	wantAnswer(t, "93.184.216.34:443", "steered to 93.184.216.34:443 from "+own.String())
}

func TestConnections(t *testing.T) {
	s, _ := inside(t)
	if s == nil {
		return
	}
	answer(t, s)
	serve(t, "0.0.0.0:443", "a task's")
	serve(t, "127.0.0.1:8080", "a task's")
	for _, to := range []string{"198.18.1.1:443", "198.18.1.1:80", "93.184.216.34:443", "169.254.169.254:80", "10.1.2.3:22", "198.19.255.254:1", "192.168.1.1:53"} {
		wantAnswer(t, to, "steered to "+to+" from "+own.String())
	}
	// What is local stays local.
	for _, to := range []string{"127.0.0.1:443", "127.0.0.1:8080", "127.9.9.9:443", "198.18.0.1:443"} {
		wantAnswer(t, to, "a task's")
	}
	for _, to := range []string{"127.0.0.1:9", "198.18.0.1:9"} {
		if _, err := ask(to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s, where nobody listens: %v", to, err)
		}
	}
	// The steering's own port is nobody's destination.
	if got, err := ask(listenTCP.String()); !errors.Is(err, unix.ECONNRESET) || got != "" {
		t.Errorf("our own port says %q, %v", got, err)
	}
	for _, to := range []string{"[2001:db8::1]:443", "[fd00::1]:443", "[fe80::1%lo]:443"} {
		if _, err := ask(to); err == nil || timedOut(err) {
			t.Errorf("%s: %v", to, err)
		}
	}
	if got, err := ask("[::ffff:93.184.216.34]:443"); err != nil || !strings.HasPrefix(got, "steered to 93.184.216.34:443") {
		t.Errorf("a mapped address: %q, %v", got, err)
	}
}

// TestDatagrams: DNS arrives, whatever server was meant, and nothing else does.
func TestDatagrams(t *testing.T) {
	s, way := inside(t)
	if s == nil {
		return
	}
	trap, err := net.ListenPacket("udp4", "0.0.0.0:5353") // a task's
	if err != nil {
		t.Fatal(err)
	}
	defer trap.Close()
	fail := func(to string) {
		t.Helper()
		c, err := net.Dial("udp4", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err = c.Write([]byte("x"))
		if err == nil {
			_, err = c.Read(make([]byte, 9))
		}
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EPERM) {
			t.Errorf("a datagram to %s: %v", to, err)
		}
	}
	for _, to := range []string{"198.18.1.1:443", "8.8.8.8:123", "8.8.8.8:5353", "169.254.169.254:80"} {
		fail(to)
	}
	// A socket that is connected to nobody hears of it from the write alone, and
	// that is how QUIC is spoken.
	free, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer free.Close()
	for _, to := range []string{"198.18.1.1:443", "8.8.8.8:443"} {
		if _, err := free.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); !errors.Is(err, unix.EPERM) {
			t.Errorf("a datagram to %s from a socket of no peer: %v", to, err)
		}
	}
	_ = trap.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, from, err := trap.ReadFrom(make([]byte, 9)); err == nil {
		t.Errorf("a task's socket got a datagram that was not for it, from %v", from)
	}
	// Control: on loopback datagrams arrive.
	c, err := net.Dial("udp4", "127.0.0.1:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	_ = trap.SetReadDeadline(time.Now().Add(patience))
	if _, _, err := trap.ReadFrom(make([]byte, 9)); err != nil {
		t.Errorf("control: %v", err)
	}
	for _, to := range []string{"127.0.0.1:53", "8.8.8.8:53"} {
		c, err := net.Dial("udp4", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte("question"))
		_ = s.DNS.SetReadDeadline(time.Now().Add(patience))
		b := make([]byte, 99)
		n, _, err := s.DNS.ReadFrom(b)
		if err != nil || string(b[:n]) != "question" {
			t.Errorf("a question to %s (%s): %q, %v", to, way, b[:n], err)
		}
	}
}

// TestEcho: the kernel does not answer pings in the name of the Internet.
func TestEcho(t *testing.T) {
	s, _ := inside(t)
	if s == nil {
		return
	}
	if err := ping("127.0.0.1"); err != nil {
		t.Errorf("control: loopback: %v", err)
	}
	if err := ping(own.String()); err != nil {
		t.Errorf("control: own address: %v", err)
	}
	for _, to := range []string{"8.8.8.8", "198.18.1.1"} {
		if err := ping(to); !errors.Is(err, unix.EPERM) {
			t.Errorf("ping %s: %v", to, err)
		}
	}
}

// TestOwn: addresses that the guest's root gives to devices are local as long
// as they are there.
func TestOwn(t *testing.T) {
	s, _ := inside(t)
	if s == nil {
		return
	}
	answer(t, s)
	serve(t, "0.0.0.0:443", "a task's")
	wantAnswer(t, "172.17.0.1:443", "steered to 172.17.0.1:443 from "+own.String())
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := netlink.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		t.Fatal(err)
	}
	a, _ := netlink.ParseAddr("172.17.0.1/16")
	if err := netlink.AddrAdd(bridge, a); err != nil {
		t.Fatal(err)
	}
	eventually(t, "172.17.0.1:443", "a task's")
	wantAnswer(t, "172.18.0.1:443", "steered to 172.18.0.1:443 from "+own.String())
	if err := netlink.AddrDel(bridge, a); err != nil {
		t.Fatal(err)
	}
	eventually(t, "172.17.0.1:443", "steered to 172.17.0.1:443 from "+own.String())
}

// TestClosed: without the agent there is no way, not even to a task's server.
func TestClosed(t *testing.T) {
	s, _ := inside(t)
	if s == nil {
		return
	}
	serve(t, "0.0.0.0:443", "a task's")
	_ = s.Close()
	_ = s.Close()
	if err := s.Wait(); err == nil {
		t.Error("a closed steering follows addresses")
	}
	if got, err := ask("93.184.216.34:443"); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("the outside answers %q, %v", got, err)
	}
	wantAnswer(t, "127.0.0.1:443", "a task's")
	if _, err := os.Stat(filepath.Join("/proc", "self")); err != nil {
		t.Fatal(err)
	}
	// It can be started again.
	again, err := Start(Options{Own: own})
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}
