package vhostuser

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
)

func dial(t testing.TB, g *guest, port uint32) *Stream {
	t.Helper()
	c, err := g.d.Dial(testContext(t), port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*Stream)
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(int64(n))).Read(b)
	return b
}

type halfCloser interface {
	io.ReadWriter
	CloseWrite() error
}

// exchange sends n bytes, closes that side, and wants the same bytes back.
func exchange(c halfCloser, n int) error {
	b := random(n)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(b)
		if err == nil {
			err = c.CloseWrite()
		}
		wrote <- err
	}()
	h := sha256.New()
	got, err := io.Copy(h, c)
	if err := errors.Join(err, <-wrote); err != nil {
		return fmt.Errorf("%d bytes, %d back: %w", n, got, err)
	}
	if want := sha256.Sum256(b); got != int64(n) || !bytes.Equal(h.Sum(nil), want[:]) {
		return fmt.Errorf("%d bytes came back of %d, or others", got, n)
	}
	return nil
}

var sizes = []int{0, 1, 63, 3731, 3732, 3733, 65535, 65536, 65537, 300000, 16<<20 + 5}

func TestVsockHostDials(t *testing.T) {
	g := newVsockGuest(t)
	g.listen(10, echoStream)
	for _, n := range sizes {
		c := dial(t, g, 10)
		if err := exchange(c, n); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	eventually(t, "every stream is forgotten", func() bool { return g.places() == 0 })
}

func (g *guest) places() int {
	g.d.mu.Lock()
	defer g.d.mu.Unlock()
	return g.d.count
}

func serveEcho(t testing.TB, l net.Listener) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
}

func TestVsockGuestDials(t *testing.T) {
	g := newVsockGuest(t)
	l, err := g.d.Listen(5)
	if err != nil {
		t.Fatal(err)
	}
	serveEcho(t, l)
	for _, n := range sizes {
		s, err := g.dial(5)
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(s, n); err != nil {
			t.Error(err)
		}
	}
	if _, err := g.dial(6); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("dial to a port without listener: %v", err)
	}
	if _, err := g.d.Listen(5); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	if _, err := g.d.Listen(firstDialPort); err == nil {
		t.Error("a listener on a port of the dialled range")
	}
}

// A guest with a small buffer must not stall: the window that counts is the
// smaller one of both.
func TestVsockSmallGuestWindow(t *testing.T) {
	g := newVsockGuest(t)
	g.listen(10, echoStream)
	for _, w := range []uint32{128, 4096, 100_000} {
		g.mu.Lock()
		g.window = w
		g.mu.Unlock()
		if err := exchange(dial(t, g, 10), 1<<20); err != nil {
			t.Errorf("window %d: %v", w, err)
		}
	}
}

func TestVsockMany(t *testing.T) {
	g := newVsockGuest(t)
	g.listen(10, echoStream)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			for range 2 {
				c, err := g.d.Dial(testContext(t), 10)
				if err != nil {
					t.Error(err)
					return
				}
				if err := exchange(c.(*Stream), 200_000+i); err != nil {
					t.Error(err)
				}
				c.Close()
			}
		})
	}
	wg.Wait()
}

func TestVsockNotReadyThenRefused(t *testing.T) {
	g := newStoppedGuest(t)
	if _, err := g.d.Dial(testContext(t), 10); !errors.Is(err, hypervisor.ErrNotReady) {
		t.Errorf("before the driver is up: %v", err)
	}
	g.boot()
	if _, err := g.d.Dial(testContext(t), 10); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	g.listen(10, echoStream)
	if err := exchange(dial(t, g, 10), 10); err != nil {
		t.Error(err)
	}
}

// A stream whose reader sleeps holds up only itself.
func TestVsockStalledStream(t *testing.T) {
	g := newVsockGuest(t)
	g.listen(10, echoStream)
	g.listen(11, func(*guestStream) {})
	c := dial(t, g, 11)
	all := 0
	for last := false; !last; { // until there is no room, however slowly that comes
		c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		n, err := c.Write(make([]byte, 1<<20))
		all, last = all+n, all >= guestWindow
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d bytes, %v; want %d and a timeout", all, err, guestWindow)
		}
	}
	if all != guestWindow {
		t.Errorf("wrote %d bytes; want %d", all, guestWindow)
	}
	if err := exchange(dial(t, g, 10), 1<<20); err != nil {
		t.Error(err)
	}
	wrote := make(chan error, 1)
	c.SetWriteDeadline(time.Time{})
	go func() {
		_, err := c.Write([]byte("x"))
		wrote <- err
	}()
	c.Close()
	if err := <-wrote; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write during Close: %v", err)
	}
}

// A guest that posts no buffers makes nobody wait longer than he wants to.
func TestVsockGuestTakesNothing(t *testing.T) {
	g := newVsockGuest(t)
	g.listen(10, echoStream)
	c := dial(t, g, 10)
	g.setDeaf(true)
	big := make([]byte, 2*256*rxBufSize)
	c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	n, err := c.Write(big)
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > guestWindow {
		t.Errorf("Write: %d, %v", n, err)
	}
	// The buffers are full once the other streams have written too.
	var others []*Stream
	for full := false; !full; {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		o, err := g.d.Dial(ctx, 10)
		cancel()
		if full = err != nil; full && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Dial: %v", err)
		}
		if !full {
			others = append(others, o.(*Stream))
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Close()
		for _, o := range others {
			o.Close()
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("Close waits for the guest")
	}
	g.setDeaf(false)
	if err := exchange(dial(t, g, 10), 100_000); err != nil {
		t.Error(err)
	}
}

func TestVsockDeadlines(t *testing.T) {
	g := newVsockGuest(t)
	g.listen(10, echoStream)
	c := dial(t, g, 10)
	b := make([]byte, 4)
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := c.Read(b)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("Read: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(b)
		read <- err
	}()
	c.SetReadDeadline(time.Unix(1, 0)) // wakes it, also if it comes first
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read with a deadline in the past: %v", err)
	}
	c.SetDeadline(time.Now().Add(patience))
	if err := exchange(c, 1000); err != nil {
		t.Errorf("after the deadlines: %v", err)
	}
}

func TestVsockBacklogAndLimit(t *testing.T) {
	g := newVsockGuest(t)
	l, err := g.d.Listen(5)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range backlog {
		if _, err := g.dial(5); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.dial(5); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("dial beyond the backlog: %v", err)
	}
	var conns []net.Conn
	accept := func() {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for range backlog {
		accept()
	}
	for len(conns) < maxStreams {
		if _, err := g.dial(5); err != nil {
			t.Fatal(err)
		}
		accept()
	}
	if _, err := g.dial(5); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("dial of the guest beyond the limit: %v", err)
	}
	g.listen(10, echoStream)
	if _, err := g.d.Dial(testContext(t), 10); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("dial of the host beyond the limit: %v", err)
	}
	g.mu.Lock()
	windows := map[uint32]int{}
	for _, s := range g.streams {
		windows[s.hostWindow]++
	}
	g.mu.Unlock()
	if windows[window] != largeWindows || windows[smallWindow] != maxStreams-largeWindows {
		t.Errorf("streams by window: %v", windows)
	}
	// A stream that only the guest has ended still takes a place.
	g.mu.Lock()
	var some *guestStream
	for _, some = range g.streams {
		break
	}
	g.mu.Unlock()
	some.Close()
	eventually(t, "the stream is reset", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.streams[some.ports] == nil })
	if _, err := g.dial(5); err == nil {
		t.Error("a place is free though nobody closed a stream")
	}
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "the places are free", func() bool { return g.places() == 0 })
	if err := exchange(dial(t, g, 10), 1000); err != nil {
		t.Error(err)
	}
}

// What was written before Close arrives, also at a reader that comes late.
func TestVsockCloseKeepsWhatWasWritten(t *testing.T) {
	g := newVsockGuest(t)
	late := make(chan *guestStream, 1)
	g.listen(11, func(s *guestStream) { late <- s })
	want := random(200_000)
	c := dial(t, g, 11)
	if _, err := c.Write(want); err != nil {
		t.Fatal(err)
	}
	c.Close()
	got, err := io.ReadAll(<-late)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	eventually(t, "the guest's reset", func() bool { return g.places() == 0 })
}

// A guest that never agrees to a close does not keep the stream.
func TestVsockCloseTimesOut(t *testing.T) {
	g := newVsockGuest(t)
	g.d.mu.Lock()
	g.d.closeWait = 20 * time.Millisecond
	g.d.mu.Unlock()
	g.listen(11, func(*guestStream) {})
	c := dial(t, g, 11)
	c.Write([]byte("unread, so that the guest does not answer the shutdown"))
	c.Close()
	eventually(t, "the place is free", func() bool { return g.places() == 0 })
	eventually(t, "the guest is told", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.resets[c.ports] == 1 })
}

func TestVsockGuestCloses(t *testing.T) {
	g := newVsockGuest(t)
	g.listen(11, func(s *guestStream) { s.Write([]byte("last words")); s.Close() })
	c := dial(t, g, 11)
	if got, err := io.ReadAll(c); err != nil || string(got) != "last words" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Write: %v", err)
	}
}
