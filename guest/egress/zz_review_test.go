//go:build linux

package egress

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestZZBlocking(t *testing.T) {
	w := newWorld(t, nil, allow("a.example", 7), allow("b.example", 7))
	got := make(chan net.Conn, 4)
	w.serve("a.example", somewhere, 7, func(c net.Conn) {
		got <- c
		for {
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				t.Log("server write ended:", err)
				return
			}
		}
	})
	a, b := socketPair(t)
	// what a keeper kept of the end that it handed over
	raw, _ := b.(*net.UnixConn).SyscallConn()
	var dup int
	raw.Control(func(fd uintptr) { dup, _ = syscall.Dup(int(fd)) })
	defer syscall.Close(dup)
	done := make(chan struct{})
	go func() { w.Serve(context.Background(), b); close(done) }()
	open(t, a, "a.example")
	<-got
	unix.SetNonblock(dup, false)
	time.Sleep(2 * time.Second) // writes fill the socket and block in the kernel
	start := time.Now()
	conf := make(chan int, 1)
	go func() { conf <- w.configure() }()
	select {
	case n := <-conf:
		t.Logf("closed %d in %v", n, time.Since(start))
	case <-time.After(5 * time.Second):
		t.Errorf("Configure hangs")
		go io.Copy(io.Discard, a)
		<-conf
	}
	a.Close()
	<-done
}

func open(t *testing.T, a net.Conn, host string) {
	if err := writeOpen(a, host); err != nil {
		t.Fatal(err)
	}
}

// Sockets under way are bounded.
func TestZZDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		w := newWorld(t, func(o *Options) {
			o.Lookup = func(context.Context, string) ([]netip.Addr, error) {
				var all []netip.Addr
				for i := range 32 {
					all = append(all, netip.MustParseAddr(fmt.Sprintf("93.184.215.%d", i+1)))
				}
				return all, nil
			}
			o.Dial = func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
				n := now.Add(1)
				defer now.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}, allow("a.example", 7))
		for range maxConns {
			c := w.pipe("a.example", 7)
			defer c.Close()
		}
		time.Sleep(20 * time.Second)
		t.Logf("%d at once", most.Load())
		w.Close()
	})
}

type halfPipe struct{ net.Conn }

func (h halfPipe) CloseWrite() error { return nil }

func TestZZHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		w := newWorld(t, func(o *Options) {
			pipes(func(net.Conn) { <-hang })(o)
			d := o.Dial
			o.Dial = func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
				c, err := d(ctx, a)
				return halfPipe{c}, err
			}
		}, allow("a.example", 7))
		a, b := net.Pipe()
		w.wg.Go(func() { w.Serve(context.Background(), eofAfter{b}) })
		go func() {
			writeOpen(a, "a.example")
			time.Sleep(time.Second)
		}()
		start := time.Now()
		ends(a)
		t.Logf("half-closed at once, silent server: ended after %v", time.Since(start))
		close(hang)
		w.Close()
	})
}

// eofAfter says end after a while without bytes... the guest half-closed.
type eofAfter struct{ net.Conn }

func (e eofAfter) Read(b []byte) (int, error) {
	e.Conn.SetReadDeadline(time.Now().Add(time.Second))
	n, err := e.Conn.Read(b)
	if isTimeout(err) {
		err = io.EOF
	}
	return n, err
}
func (e eofAfter) SetReadDeadline(time.Time) error { return nil }
func (e eofAfter) CloseWrite() error               { return nil }
