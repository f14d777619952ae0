//go:build linux || windows || darwin

package hypervisortest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
)

// pause stops the guest amid transfers, both ways, several times: not a byte
// may be lost, and none may come while it is stopped.
func (s Suite) pause(t *testing.T) {
	g := s.start(t)
	const n = 24 << 20
	var received counter
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := sink(g.dial(guestport.Sink), n); err != nil {
			t.Errorf("to the guest: %v", err)
		}
	})
	wg.Go(func() {
		c := g.dial(guestport.Source)
		c.SetDeadline(time.Now().Add(bound))
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, n)); err != nil {
			t.Error(err)
			return
		}
		got, want := sha256.New(), sha256.New()
		m, err := io.Copy(io.MultiWriter(got, &received), c)
		io.CopyN(want, new(guestport.Stream), n)
		if err != nil || m != n || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Errorf("from the guest: %d bytes of %d, or others: %v", m, n, err)
		}
	})
	for received.get() == 0 && !t.Failed() {
		time.Sleep(time.Millisecond) // the first pause shall meet a transfer
	}
	for range 6 {
		if err := g.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		at := received.get()
		before := at
		for { // what was under way arrives, as late as this process is slow
			time.Sleep(150 * time.Millisecond * settle)
			now := received.get()
			if now == before {
				break
			}
			before = now
		}
		// All of it is what a guest sends that is not paused.
		if before-at > underWay {
			t.Errorf("%d bytes came from a paused guest", before-at)
		}
		if err := g.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		for received.get() < before+2<<20 && received.get() < n && !t.Failed() {
			time.Sleep(time.Millisecond) // the next pause shall meet more of it
		}
	}
	at := received.get()
	wg.Wait()
	t.Logf("the last pause was at %d of %d MiB", at>>20, n>>20)
	if answer := g.ask("clock"); answer == "" {
		t.Error("the boot stream did not survive the pauses")
	}
}

// underWay is how many bytes a paused guest's stream may still bring: what is in the
// stream's window and in the buffers of sockets.
const underWay = 4 << 20

// counter counts bytes.
type counter struct {
	mu sync.Mutex
	n  int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += int64(len(p))
	return len(p), nil
}

func (c *counter) get() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// endings ends guests in each way that is not their own orderly one.
func (s Suite) endings(t *testing.T) {
	killed := func(t *testing.T, g *guest) {
		t.Helper()
		start := time.Now()
		if err := g.Kill(); err != nil {
			t.Error(err)
		}
		if err := g.waitWithin(bound); err != nil {
			t.Errorf("a killed guest: %v", err)
		}
		t.Logf("gone after %v", time.Since(start))
	}
	t.Run("Ignores", func(t *testing.T) {
		g := s.start(t)
		g.tell("ignore")
		c := g.dial(guestport.Stall)
		io.WriteString(c, "x")
		g.tell("poweroff") // which it does not read
		killed(t, g)
	})
	t.Run("Paused", func(t *testing.T) {
		g := s.start(t)
		if err := g.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		killed(t, g)
	})
	s.outside(t, killed)
	t.Run("Panics", func(t *testing.T) {
		g := s.start(t)
		g.tell("panic")
		var gone *hypervisor.GoneError
		if err := g.waitWithin(bound); !errors.As(err, &gone) {
			t.Errorf("a guest that panicked: %v", err)
		} else {
			t.Log(gone)
		}
	})
	if s.Machine {
		t.Run("Mute", func(t *testing.T) {
			// It boots and never says so.
			g := s.create(t, "guestprog.mute=1")
			if err := g.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // it hangs all the longer
			killed(t, g)
		})
	}
}

// killAnyMoment closes guests at moments spread over their start, while others
// dial and listen.
func (s Suite) killAnyMoment(t *testing.T) {
	first := s.start(t)
	first.boot.Close()
	start := time.Now()
	first.Close()
	t.Logf("closed in %v", time.Since(start))
	for i := range s.Kills {
		func() {
			g := s.create(t)
			ln, err := g.Listen(guestport.Boot)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				if c, err := ln.Accept(); err == nil {
					defer c.Close()
					c.SetReadDeadline(time.Now().Add(bound))
					if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error("a stream outlives its guest, which was killed while it started")
					}
				}
			})
			wg.Go(func() {
				for {
					c, err := g.Dial(t.Context(), guestport.Echo)
					switch {
					case err == nil:
						io.WriteString(c, "x")
						c.Close()
					case errors.Is(err, hypervisor.ErrGone):
						return
					}
					time.Sleep(time.Millisecond) // not to starve an emulated guest
				}
			})
			after := s.Boot / 20 * time.Duration(i) / time.Duration(s.Kills)
			timer := time.AfterFunc(after, func() { g.Close() })
			defer timer.Stop()
			if err := g.Start(t.Context()); err != nil && !errors.Is(err, hypervisor.ErrGone) {
				t.Errorf("killed after %v, in the middle of Start: %v", after, err)
			}
			if err := g.Wait(); err != nil {
				t.Errorf("killed after %v: %v", after, err)
			}
			wg.Wait()
			g.Close()
		}()
	}
}
