package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/names"
	"github.com/carrel-vm/carrel/agent/steer"
	"github.com/carrel-vm/carrel/guest/wire"
)

func TestEgress(t *testing.T) {
	way := inside(t)
	if way == "" {
		return
	}
	_, o := guestWithNetwork(t, way, &wire.Setup{})
	for to, want := range map[string]string{
		"www.Example.test:443": "www.example.test:443",
		"example.test.:80":     "example.test:80",
		"93.184.216.34:22":     "93.184.216.34:22",
		"169.254.169.254:80":   "169.254.169.254:80",
	} {
		wantRead(t, mustDial(t, to), want)
	}
	// Both ways with half-close, also the silent way round.
	c := mustDial(t, "echo.test:1")
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	go func() {
		_, _ = c.Write(big)
		_ = c.CloseWrite()
	}()
	if b, err := io.ReadAll(c); err != nil || !bytes.Equal(b, big) {
		t.Errorf("%d bytes came back, %v", len(b), err)
	}
	c = mustDial(t, "last.test:1")
	_, _ = c.Write([]byte("12345"))
	_ = c.CloseWrite()
	wantRead(t, c, "5 bytes")

	// A refusal is read though the client is still sending.
	c = mustDial(t, "refuse.test:80")
	go func() { _, _ = c.Write(big) }()
	if b, err := io.ReadAll(c); string(b) != refusal {
		t.Errorf("the refusal is read as %q, %v", b, err)
	}
	// A stream that ends before it said anything is a reset.
	wantReset(t, "silent.test:1")
	// So is an address of the table that no name has. Nothing is asked of the
	// host.
	before := o.count()
	wantReset(t, "198.19.7.7:443")
	if o.count() != before {
		t.Error("the host was asked for an address that nobody has been given")
	}
	for _, name := range []string{"localhost:9", "single:443"} {
		var ne net.Error
		if _, err := dialName(t, name); err == nil || errors.As(err, &ne) && ne.Timeout() {
			t.Errorf("%s, which fails at once: %v", name, err)
		}
	}
	// DNS is answered in the name of any server, over TCP too.
	for _, network := range []string{"udp", "tcp"} {
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, "8.8.8.8:53")
		}}
		a, err := r.LookupHost(t.Context(), "example.test")
		if err != nil || len(a) != 1 || !names.Synthetic.Contains(netip.MustParseAddr(a[0])) {
			t.Errorf("8.8.8.8 over %s says %v, %v", network, a, err)
		}
	}
}

// TestWithoutEgress: a host that wants no way out gets none, and says so.
func TestWithoutEgress(t *testing.T) {
	way := inside(t)
	if way == "" {
		return
	}
	var s *steer.Steering
	o := &outside{t: t}
	h := hostWith(t, Options{DialHost: o.dial, systemOptions: systemOptions{Network: func() (_ *steer.Steering, err error) {
		s, err = steer.Start(steer.Options{Own: names.Own, NFTables: way == steer.NFTables})
		return s, err
	}}})
	if r := h.setUpReady(&wire.Setup{UnixNanos: 1}); r.Error != "" || r.Steering != noSteering {
		t.Errorf("ready says %v", r)
	}
	if _, err := net.DialTimeout("tcp", "93.184.216.34:443", patience); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("the outside: %v", err)
	}
	if _, err := resolverHere.LookupHost(t.Context(), "a.test"); err == nil {
		t.Error("names are answered")
	}
	// What cannot be set up stops the start.
	h = hostWith(t, Options{DialHost: o.dial, systemOptions: systemOptions{Network: func() (*steer.Steering, error) { return nil, unix.EPERM }}})
	if r := h.setUpReady(&wire.Setup{UnixNanos: 1, Egress: true}); !strings.Contains(r.Error, "steer") {
		t.Errorf("ready says %v", r)
	}
}

// TestManyConnections: silent connections cost little, the bound holds, and
// places come back.
func TestManyConnections(t *testing.T) {
	way := inside(t)
	if way == "" {
		return
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur < 5000 {
		t.Fatalf("this test needs 5000 open files, %d are allowed (ulimit -n), %v", lim.Cur, err)
	}
	_, _ = guestWithNetwork(t, way, &wire.Setup{})
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	addr, err := resolverHere.LookupHost(t.Context(), "byte.test")
	if err != nil {
		t.Fatal(err)
	}
	to := net.JoinHostPort(addr[0], "443")
	before := used()
	var conns []*net.TCPConn
	one := make([]byte, 1)
	for range maxRelays {
		c := mustDial(t, to)
		_, _ = c.Write([]byte("x"))
		if _, err := io.ReadFull(c, one); err != nil {
			t.Fatalf("connection %d: %v", len(conns), err)
		}
		conns = append(conns, c)
	}
	// The client and the host's end are in this process too.
	each := (used() - before) / maxRelays
	t.Logf("%d bytes a connection, with the test's own part", each)
	if each > 40<<10 {
		t.Errorf("a silent connection takes %d bytes", each)
	}
	wantReset(t, to) // one more than the bound
	for _, c := range conns[:10] {
		_ = c.CloseWrite()
		wantRead(t, c, "")
	}
	// The places come back when the relays have seen both ends.
	end := time.Now().Add(patience)
	for {
		c, err := dialName(t, to)
		if err == nil {
			_, _ = c.Write([]byte("y"))
			if _, err = io.ReadFull(c, one); err == nil {
				break
			}
		}
		if time.Now().After(end) {
			t.Fatalf("no place comes back: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestManyNames: several thousand names, each with its own connection.
func TestManyNames(t *testing.T) {
	way := inside(t)
	if way == "" {
		return
	}
	_, _ = guestWithNetwork(t, way, &wire.Setup{})
	seen := make(map[string]bool)
	for i := range 4000 {
		name := fmt.Sprintf("host-%d.example.test", i)
		a, err := resolverHere.LookupHost(t.Context(), name+".")
		if err != nil || len(a) != 1 || seen[a[0]] {
			t.Fatalf("%s: %v, %v", name, a, err)
		}
		seen[a[0]] = true
		if i%200 == 0 {
			wantRead(t, mustDial(t, net.JoinHostPort(a[0], "443")), name+":443")
		}
	}
	back, err := resolverHere.LookupAddr(t.Context(), "198.18.1.1")
	if err != nil || len(back) != 1 || back[0] != "host-0.example.test." {
		t.Errorf("198.18.1.1 is %q, %v", back, err)
	}
}

// TestWayOutBreaks: when a part of the way out ends, so does the guest.
func TestWayOutBreaks(t *testing.T) {
	way := inside(t)
	if way == "" {
		return
	}
	var s *steer.Steering
	o := &outside{t: t}
	h := hostWith(t, Options{DialHost: o.dial, systemOptions: systemOptions{Network: func() (_ *steer.Steering, err error) {
		s, err = steer.Start(steer.Options{Own: names.Own, NFTables: way == steer.NFTables})
		return s, err
	}}})
	if e := h.setUp(&wire.Setup{UnixNanos: 1, Egress: true}); e != "" {
		t.Fatal(e)
	}
	wantRead(t, mustDial(t, "a.test:443"), "a.test:443")
	l, err := net.Listen("tcp4", "0.0.0.0:443") // a task's
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_ = s.TCP.Close()
	select {
	case err := <-h.ended:
		if err == nil || !errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "way out") {
			t.Errorf("the agent ended with %v", err)
		}
		h.ended <- err
	case <-time.After(patience):
		t.Fatal("the agent goes on without its listener")
	}
	if _, err := net.DialTimeout("tcp", "93.184.216.34:443", patience); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("an outside address reaches a task's server: %v", err)
	}
}
