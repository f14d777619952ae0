package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// pipes makes the world's servers net.Pipes, whose deadlines follow a test's own
// clock. Each is handed to handle.
func pipes(handle func(net.Conn)) func(*Options) {
	return func(o *Options) {
		o.Lookup = func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{somewhere}, nil }
		o.Dial = func(context.Context, netip.AddrPort) (net.Conn, error) {
			a, b := net.Pipe()
			go func() {
				defer b.Close()
				handle(b)
			}()
			return a, nil
		}
	}
}

// ends waits until a connection is closed, and says how long it took.
func ends(c net.Conn) time.Duration {
	start := time.Now()
	io.Copy(io.Discard, c)
	return time.Since(start)
}

// E32: whoever takes too long is hung up on, at each step.
func TestSlowClients(t *testing.T) {
	hang := func(c net.Conn) { io.Copy(io.Discard, c) }
	for _, x := range []struct {
		what     string
		port     uint32
		say      func(net.Conn)
		min, max time.Duration
	}{
		{"no first frame", 0, func(net.Conn) {}, openTimeout, openTimeout},
		{"half a first frame", 0, func(c net.Conn) { c.Write([]byte{9, 1}) }, openTimeout, openTimeout},
		{"no ClientHello", 443, func(net.Conn) {}, helloTimeout, helloTimeout + sniffTimeout},
		{"a ClientHello byte for byte", 443, func(c net.Conn) {
			for _, b := range records(helloMessage(sni("a.example")), maxRecord) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, helloTimeout, helloTimeout + drainTimeout},
		{"a ClientHello that stops, on another port", 7, func(c net.Conn) { c.Write([]byte{recordHandshake, 3}) }, helloTimeout, helloTimeout + drainTimeout},
		{"a server that does not answer a ClientHello", 443, func(c net.Conn) { c.Write(records(helloMessage(sni("a.example")), maxRecord)) }, flightTimeout, flightTimeout + lastWords},
		{"nothing at all", 7, func(net.Conn) {}, idleLimit, idleLimit + idleLimit/4},
		{"nothing more", 7, func(c net.Conn) { c.Write([]byte("hello")) }, idleLimit, idleLimit + idleLimit/4},
		{"no request in clear", 80, func(net.Conn) {}, helloTimeout, helloTimeout + sniffTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, pipes(hang), allow("a.example", 443, 7, 80))
			a, b := net.Pipe()
			w.wg.Go(func() { w.Serve(context.Background(), b) })
			if x.port != 0 {
				if err := wire.Write(a, &wire.Open{Host: "a.example", Port: x.port}); err != nil {
					t.Fatal(err)
				}
			}
			w.wg.Go(func() { x.say(a) })
			if took := ends(a); took < x.min || took > x.max {
				t.Errorf("%s: %v, want %v to %v", x.what, took, x.min, x.max)
			}
			a.Close()
			w.Close()
		})
	}
}

// The control: a connection that idles within the limits lives on.
func TestIdleLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, pipes(func(c net.Conn) { io.Copy(c, c) }), allow("a.example", 7))
		c := w.pipe("a.example", 7)
		for range 5 {
			time.Sleep(idleLimit - idleLimit/10)
			if err := says(c); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		w.Close()
	})
}

// E34: connections are bounded in number; one that ends makes room.
func TestManyConnections(t *testing.T) {
	w := newWorld(t, nil, allow("a.example", 7))
	w.serve("a.example", somewhere, 7, echo)
	var all []net.Conn
	for i := range maxConns {
		c := w.pipe("a.example", 7)
		all = append(all, c)
		if i < 3 || i == maxConns-1 {
			c.SetDeadline(time.Now().Add(patience))
			if err := says(c); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
	}
	c := w.stream()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("connection %d: %d, %v", maxConns+1, n, err)
	}
	w.seen("too many", func(ev *api.EgressEvent) bool {
		return isDenied(ev) && strings.Contains(ev.Verdict.Reason, "1024 connections already")
	})
	t.Logf("%d goroutines", runtime.NumGoroutine())
	all[0].Close()
	for end := time.Now().Add(patience); ; {
		c := w.stream()
		err := wire.Write(c, &wire.Open{Host: "a.example", Port: 7})
		if err == nil {
			err = says(c)
		}
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after one has ended: %v", err)
		}
	}
	for _, c := range all {
		c.Close()
	}
}

// E34: and in how fast they come. Those beyond the burst wait their turn, and
// those that would wait too long are refused.
func TestArrivals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, pipes(func(c net.Conn) { io.Copy(c, c) }), allow("a.example", 7))
		start := time.Now()
		for range arrivalBurst {
			w.arrive.Allow() // as if they had come and gone
		}
		c := w.pipe("a.example", 7)
		if err := says(c); err != nil || time.Since(start) == 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		c.Close()
		w.arrive.ReserveN(time.Now(), arrivalBurst)
		w.arrive.ReserveN(time.Now(), arrivalBurst)
		a, b := net.Pipe()
		w.wg.Go(func() { w.Serve(t.Context(), b) })
		if n, err := a.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("one too many: %d, %v", n, err)
		}
		w.seen("flood", func(ev *api.EgressEvent) bool {
			return isDenied(ev) && strings.Contains(ev.Verdict.Reason, "connections a second")
		})
		w.Close()
	})
}

// P10: a panic while one connection is served ends that one, is said, and leaves
// the others alone.
func TestPanicEndsOneConnection(t *testing.T) {
	var panics atomic.Int32
	w := newWorld(t, func(o *Options) {
		lookup, dial := o.Lookup, o.Dial
		o.Lookup = func(ctx context.Context, name string) ([]netip.Addr, error) {
			if name == "lookup.example" {
				panics.Add(1)
				panic("a fault in a resolver")
			}
			return lookup(ctx, name)
		}
		o.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			if to.Addr() == netip.MustParseAddr("93.184.215.77") {
				panics.Add(1)
				panic("a fault in a dialer")
			}
			return dial(ctx, to)
		}
	}, allow("lookup.example", 7), allow("dial.example", 7), allow("a.example", 7))
	w.serve("a.example", somewhere, 7, echo)
	w.names["dial.example"] = []netip.Addr{netip.MustParseAddr("93.184.215.77")}
	before := w.open("a.example", 7)
	if err := says(before); err != nil {
		t.Fatal(err)
	}
	for _, h := range []string{"lookup.example", "dial.example"} {
		if err := says(w.open(h, 7)); err == nil {
			t.Errorf("%s passes", h)
		}
		w.seen("denial of "+h, func(ev *api.EgressEvent) bool { return isDenied(ev) && ev.Host == h })
	}
	if panics.Load() != 2 {
		t.Errorf("%d panics: nothing was tested", panics.Load())
	}
	if err := says(before); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	if err := says(w.open("a.example", 7)); err != nil {
		t.Errorf("a connection from after: %v", err)
	}
}

// Rates hold for all connections of a rule together, and max_up_bytes for each.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := allow("a.example", 7)
		r.Rate = 100 << 10
		w := newWorld(t, pipes(func(c net.Conn) { io.Copy(io.Discard, c) }), r)
		start := time.Now()
		done := make(chan error, 2)
		for range 2 {
			c := w.pipe("a.example", 7)
			go func() {
				_, err := c.Write(make([]byte, 512<<10))
				c.Close()
				done <- err
			}()
		}
		if err := errors.Join(<-done, <-done); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("1 MiB at 100 KiB/s took %v", took)
		}
		w.Close()
	})
}
