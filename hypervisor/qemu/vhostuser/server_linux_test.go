package vhostuser

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers each chain with its own readable bytes. With hold set it keeps
// chains until told to complete them.
type echo struct {
	mu      sync.Mutex
	queues  int
	hold    bool
	held    []*Chain
	queue   *Queue // the one kicked last
	events  []string
	errs    []error
	arrived chan struct{}
	drain   func()
}

func newEcho(queues int) *echo { return &echo{queues: queues, arrived: make(chan struct{}, 1024)} }

func (e *echo) Features() uint64 { return 0 }
func (e *echo) Queues() int      { return e.queues }
func (e *echo) Config() []byte   { return []byte{1, 2, 3, 4, 5, 6, 7, 8} }

func (e *echo) event(s string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = append(e.events, s)
}

func (e *echo) QueueReady(i int, q *Queue, fresh bool) {
	if fresh {
		e.event("fresh")
	} else {
		e.event("resumed")
	}
}

func (e *echo) QueueStopped(i int) {
	if e.drain != nil {
		e.drain()
	}
	e.event("stopped")
}

func (e *echo) Kick(i int, q *Queue) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue = q
	for {
		c := &Chain{}
		ok, err := q.Pop(c)
		if err != nil {
			e.errs = append(e.errs, err)
			e.arrived <- struct{}{}
		}
		if !ok {
			return
		}
		if e.hold {
			e.held = append(e.held, c)
			e.arrived <- struct{}{}
			continue
		}
		e.answer(q, c)
	}
}

func (e *echo) answer(q *Queue, c *Chain) {
	in := bytes.Join(c.Readable, nil)
	n := uint32(0)
	for _, w := range c.Writable {
		k := copy(w, in)
		in = in[k:]
		n += uint32(k)
	}
	q.Push(c, n)
	q.Notify()
}

func (e *echo) wait(t *testing.T) {
	t.Helper()
	select {
	case <-e.arrived:
	case <-time.After(patience):
		t.Fatal("nothing reached the device")
	}
}

// roundTrip sends s through queue q in chunks of two descriptors each way.
func roundTrip(t *testing.T, q *driverQueue, s string) {
	t.Helper()
	f := q.f
	at := f.next
	defer func() { f.next = at }()
	out, in := f.alloc(len(s)), f.alloc(len(s))
	copy(f.ram[out:], s)
	h := len(s) / 2
	head, ok := q.add([]part{{out, h}, {out + uint64(h), len(s) - h}}, []part{{in, h}, {in + uint64(h), len(s) - h}})
	if !ok {
		t.Fatal("no descriptors left")
	}
	q.kick()
	got, n := q.wait()
	if got != head || int(n) != len(s) || string(f.ram[in:in+uint64(n)]) != s {
		t.Fatalf("chain %d answered with %d bytes %q, want chain %d, %q", got, n, f.ram[in:in+uint64(n)], head, s)
	}
}

func (e *echo) log() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.events, " ")
}

func TestQueueEcho(t *testing.T) {
	e := newEcho(2)
	f := newFrontEnd(t, e, 1<<20)
	q := f.addQueue(8)
	f.addQueue(256)
	f.start()
	for i := range 70000 { // past the wrap of the 16-bit indices
		if roundTrip(t, q, "some bytes, there and back"); t.Failed() {
			t.Fatal(i)
		}
	}
	if got := f.ask(reqGetConfig, append(pair(2, 4), make([]byte, 8)...)); !bytes.Equal(got[configHeader:], []byte{3, 4, 5, 6}) {
		t.Errorf("configuration %v", got)
	}
	if got := f.ask(reqGetConfig, append(pair(0, 4<<10), make([]byte, 8)...)); len(got) != 0 {
		t.Errorf("too long a configuration was answered with %v", got)
	}
	f.conn.Close()
	if err := f.wait(); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// A pause keeps everything, also chains that the device still holds; a driver
// that sets the device up anew is told apart.
func TestQueuePauseAndReset(t *testing.T) {
	e := newEcho(1)
	f := newFrontEnd(t, e, 1<<20)
	q := f.addQueue(16)
	f.start()
	roundTrip(t, q, "before")
	e.mu.Lock()
	e.hold = true
	e.mu.Unlock()
	in := f.alloc(64)
	out := f.alloc(64)
	copy(f.ram[out:], "held over the pause")
	q.add([]part{{out, 19}}, []part{{in, 64}})
	q.kick()
	e.wait(t)

	f.stop()
	e.mu.Lock()
	e.hold = false
	for _, c := range e.held {
		e.answer(e.queue, c)
	}
	e.mu.Unlock()
	if _, _, ok := q.completed(); ok {
		t.Error("a stopped ring was written")
	}
	f.start()
	if _, n := q.wait(); string(f.ram[in:in+uint64(n)]) != "held over the pause" {
		t.Errorf("after the pause: %q", f.ram[in:in+uint64(n)])
	}
	roundTrip(t, q, "after")

	f.reset()
	roundTrip(t, q, "after a reset")
	if got, want := e.log(), "fresh stopped resumed stopped fresh"; got != want {
		t.Errorf("the device saw %q, want %q", got, want)
	}
}

func TestServeEndsWithContext(t *testing.T) {
	f := newFrontEnd(t, newEcho(1), 1<<20)
	f.addQueue(8)
	f.start()
	f.cancel()
	if err := f.wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
}

func TestMemoryMustBeSealed(t *testing.T) {
	plain, err := unix.MemfdCreate("plain", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(plain)
	if err := unix.Ftruncate(plain, 1<<20); err != nil {
		t.Fatal(err)
	}
	sealed := sealedMemory(t, 1<<20)
	defer unix.Close(sealed)
	for _, c := range []struct {
		name         string
		fd           int
		size, offset uint64
		want         string
	}{
		{"good", sealed, 1 << 20, 0, ""},
		{"good part off a page", sealed, 4096, 4100, ""},
		{"not sealed", plain, 1 << 20, 0, "not sealed"},
		{"too large", sealed, 1<<20 + 1, 0, "holds 1048576 bytes"},
		{"behind the end", sealed, 4096, 1 << 20, "holds 1048576 bytes"},
		{"no bytes", sealed, 0, 0, "make no sense"},
		{"wrapping", sealed, 1 << 63, 1 << 63, "make no sense"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := mapRegion(c.fd, guestBase, c.size, userBase, c.offset)
			if err == nil {
				defer unix.Munmap(r.whole)
			}
			if c.want == "" && (err != nil || uint64(len(r.ram)) != c.size) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// QEMU may be killed at any moment: what it was answered and did not read makes the
// end of its socket a reset, which is an end like any other.
func TestKilledFrontEnd(t *testing.T) {
	ours, theirs := socketPair(t)
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), theirs, newEcho(1)) }()
	ask := make([]byte, headerSize)
	le.PutUint32(ask, reqGetFeatures)
	le.PutUint32(ask[4:], flagVersion)
	if _, err := ours.Write(ask); err != nil {
		t.Fatal(err)
	}
	raw, err := ours.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Read(func(fd uintptr) bool { // until the answer is there, which stays unread
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err != unix.EAGAIN
	}); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
