package vhostuser

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
)

// QMP's stop and cont in the middle of transfers lose nothing.
func TestVsockPause(t *testing.T) {
	g := newVsockGuest(t)
	g.listen(10, echoStream)
	var wg sync.WaitGroup
	var pauses atomic.Int64
	const enough = 3 // to tell; a busy machine may move all of it between two
	for i := range 4 {
		c := dial(t, g, 10)
		wg.Go(func() {
			for {
				if err := exchange(c, 16<<20+i); err != nil {
					t.Error(err)
				}
				if pauses.Load() >= enough || t.Failed() {
					return
				}
				next, err := g.d.Dial(testContext(t), 10)
				if err != nil {
					t.Error(err)
					return
				}
				c.Close()
				c = next.(*Stream)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for {
		g.stop()
		g.start()
		var next <-chan time.Time // after so many it goes on: a busy machine moves next to nothing between two
		if pauses.Add(1) < 500 {
			next = time.After(3 * time.Millisecond)
		}
		select {
		case <-done:
			t.Logf("%d pauses", pauses.Load())
			return
		case <-next:
		}
	}
}

// While the guest is paused a Dial waits, as long as its context lets it.
func TestVsockDialWhilePaused(t *testing.T) {
	g := newVsockGuest(t)
	g.listen(10, echoStream)
	g.stop()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := g.d.Dial(ctx, 10); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial: %v", err)
	}
	dialled := make(chan error, 1)
	go func() {
		c, err := g.d.Dial(testContext(t), 10)
		if err == nil {
			c.Close()
		}
		dialled <- err
	}()
	g.start()
	if err := <-dialled; err != nil {
		t.Errorf("Dial over a pause: %v", err)
	}
}

func TestVsockReset(t *testing.T) {
	g := newVsockGuest(t)
	g.listen(10, echoStream)
	l, err := g.d.Listen(5)
	if err != nil {
		t.Fatal(err)
	}
	serveEcho(t, l)
	for range 10 {
		c := dial(t, g, 10)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			read <- err
		}()
		g.reboot()
		if err := <-read; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Read over a reset: %v", err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Write after a reset: %v", err)
		}
		if err := exchange(dial(t, g, 10), 300_000); err != nil {
			t.Errorf("after the reset: %v", err)
		}
		s, err := g.dial(5)
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(s, 300_000); err != nil {
			t.Errorf("after the reset: %v", err)
		}
	}
}

// The death of QEMU reaches everyone who waits.
func TestVsockDeath(t *testing.T) {
	a, b := socketPair(t)
	d := NewVsock(guestCID)
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background(), b) }()
	l, err := d.Listen(5)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	a.Close()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if _, err := d.Dial(testContext(t), 5); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("Dial: %v", err)
	}

	g := newVsockGuest(t)
	g.listen(10, func(s *guestStream) { s.Write([]byte("before the end")) })
	g.listen(11, func(*guestStream) {})
	c, w := dial(t, g, 10), dial(t, g, 11)
	if _, err := io.ReadFull(c, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := w.Write(make([]byte, 1<<20))
		wrote <- err
	}()
	g.conn.Close()
	g.wait()
	g.d.Close()
	if got, err := io.ReadAll(c); string(got) != "the end" || !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("what had arrived: %q, %v", got, err)
	}
	if err := <-wrote; !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("Write: %v", err)
	}
	if err := g.d.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// Streams take turns, so that a bulk transfer does not hold up the others.
func TestVsockTurns(t *testing.T) {
	g := newVsockGuest(t)
	g.listen(11, func(*guestStream) {})
	var streams []*Stream
	for range 3 {
		streams = append(streams, dial(t, g, 11))
	}
	seen := make(chan packet, 1000)
	g.stop()
	g.mu.Lock()
	g.packets = seen
	g.mu.Unlock()
	var wg sync.WaitGroup
	for i, c := range streams {
		wg.Go(func() {
			if _, err := c.Write(make([]byte, 50_000)); err != nil {
				t.Error(err)
			}
		})
		eventually(t, "the stream waits for its turn", func() bool {
			g.d.mu.Lock()
			defer g.d.mu.Unlock()
			return len(g.d.turns) == i+1
		})
	}
	g.start()
	wg.Wait()
	for i := range 30 {
		if p := <-seen; p.ports != streams[i%3].ports {
			t.Fatalf("packet %d is of stream %v, want %v", i, p.ports, streams[i%3].ports)
		}
	}
}

// TestVsockOwed: a guest hears of the buffers that it has sent with when there
// are many of them, or after a while, and not for each.
func TestVsockOwed(t *testing.T) {
	g := newStoppedGuest(t)
	g.d.owedTime = time.Hour
	l, err := g.d.Listen(5)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g.boot()
	s, err := g.dial(5)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	send := func() {
		t.Helper()
		if _, err := s.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	shown := func() uint16 { return uint16(atomic.LoadUint32(g.tx.word(g.tx.used)) >> 16) }
	limit := g.tx.size / 8
	for range limit - 2 { // the request was the first
		send()
	}
	if n := shown(); n != 0 {
		t.Errorf("after %d packets the guest has heard of %d", limit-1, n)
	}
	send()
	eventually(t, "the guest hears of all", func() bool { return int(shown()) == limit })
	g.d.mu.Lock()
	g.d.owedTime = time.Millisecond
	g.d.mu.Unlock()
	send()
	eventually(t, "the guest hears of one", func() bool { return int(shown()) == limit+1 })
	// As much as fits into few packets is heard of, too.
	g.d.mu.Lock()
	g.d.owedTime = time.Hour
	g.d.mu.Unlock()
	if _, err := s.Write(make([]byte, 2*owedBytes)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 2*owedBytes)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest hears of much", func() bool { return int(shown()) > limit+1 })
}
