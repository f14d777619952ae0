package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
)

// bootStream is the one stream that a guest opens to say that it is up. It
// stays open as long as the guest lives and carries the few things that the
// host asks of the agent itself.
type bootStream struct {
	conn net.Conn
	r    *wire.Reader

	mu      sync.Mutex
	id      uint64
	waiting []waiter // in the order of the questions
	err     error
}

type waiter struct {
	id uint64
	ch chan string
}

// maxWaiting bounds the questions that a guest has not answered.
const maxWaiting = 16

func newBootStream(c net.Conn) *bootStream { return &bootStream{conn: c, r: wire.NewReader(c)} }

// greet reads Hello, sends Setup and reads Ready; it returns what they say.
func (b *bootStream) greet(setup *wire.Setup, greeted func()) (*wire.Hello, *wire.Ready, error) {
	f := new(wire.FromGuest)
	if err := b.r.Read(f); err != nil {
		return nil, nil, fmt.Errorf("the guest said no Hello: %w", err)
	}
	h := f.GetHello()
	switch {
	case h == nil:
		return nil, nil, errors.New("the guest's first frame is not Hello")
	case h.Version != wire.Version:
		return nil, nil, fmt.Errorf("the guest speaks version %d of the wire, the host %d: carrel image build makes its agent anew, and takes seconds", h.Version, wire.Version)
	}
	greeted()
	h.Agent, h.Kernel = wire.Text(h.Agent, 64), wire.Text(h.Kernel, 64)
	h.UpNanos, h.InitNanos = max(0, h.UpNanos), max(0, h.InitNanos)
	if err := b.send(&wire.FromHost{Kind: &wire.FromHost_Setup{Setup: setup}}, time.Now().Add(writeTimeout)); err != nil {
		return nil, nil, err
	}
	f.Reset()
	if err := b.r.Read(f); err != nil {
		return nil, nil, fmt.Errorf("the guest did not become ready: %w", err)
	}
	r := f.GetReady()
	switch {
	case r == nil:
		return nil, nil, errors.New("the guest's second frame is not Ready")
	case r.Error != "":
		return nil, nil, fmt.Errorf("the guest could not set itself up: %s", wire.Text(r.Error, wire.MaxText))
	}
	r.Steering = wire.Text(r.Steering, 256)
	return h, r, nil
}

func (b *bootStream) send(f *wire.FromHost, by time.Time) error {
	b.conn.SetWriteDeadline(by)
	return wire.Write(b.conn, f)
}

// run reads answers until the stream ends; nil means that it ended cleanly.
func (b *bootStream) run() (err error) {
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.err = errors.New("the guest's agent is gone")
		for _, w := range b.waiting {
			close(w.ch)
		}
		b.waiting = nil
		b.conn.Close()
	}()
	for {
		f := new(wire.FromGuest)
		if err := b.r.Read(f); err != nil {
			if errors.Is(err, wire.ErrFrame) {
				return fmt.Errorf("sent a %w", err)
			}
			return nil
		}
		a := f.GetAnswer()
		b.mu.Lock()
		if a == nil || len(b.waiting) == 0 || b.waiting[0].id != a.Id {
			b.mu.Unlock()
			return errors.New("sent a frame that nobody asked for")
		}
		b.waiting[0].ch <- wire.Text(a.Error, wire.MaxText)
		b.waiting = b.waiting[1:]
		b.mu.Unlock()
	}
}

// ask sends one question and waits for its answer.
func (b *bootStream) ask(ctx context.Context, c *wire.Control) error {
	w := waiter{ch: make(chan string, 1)}
	b.mu.Lock()
	if b.err != nil || len(b.waiting) >= maxWaiting {
		defer b.mu.Unlock()
		if b.err != nil {
			return b.err
		}
		return errors.New("the guest leaves too many questions without an answer")
	}
	b.id++
	w.id, c.Id = b.id, b.id
	b.waiting = append(b.waiting, w)
	by := time.Now().Add(writeTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(by) {
		by = d
	}
	err := b.send(&wire.FromHost{Kind: &wire.FromHost_Control{Control: c}}, by)
	b.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case text, ok := <-w.ch:
		switch {
		case !ok:
			return errors.New("the guest ended before it answered")
		case text != "":
			return errors.New(text)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
