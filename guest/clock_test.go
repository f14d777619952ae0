package guest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// hostClock is a host's clock that tests set.
type hostClock struct {
	mu   sync.Mutex
	wall time.Time
	run  time.Duration
}

func (h *hostClock) read() (time.Time, time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wall, h.run
}

// pass lets time pass on both clocks, jump on the wall's alone.
func (h *hostClock) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wall, h.run = h.wall.Add(d), h.run+d
}

func (h *hostClock) jump(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wall = h.wall.Add(d)
}

// told is a guest's clock with what it was told.
type told struct {
	*clock
	h     *hostClock
	times []time.Time
	dials int
	died  error
	fail  error // of the next question
}

func newTold() *told {
	t := &told{h: &hostClock{wall: time.Unix(1_800_000_000, 0)}}
	t.clock = &clock{
		ask: func(_ context.Context, c *wire.Control) error {
			if err := t.fail; err != nil {
				t.fail = nil
				return err
			}
			t.times = append(t.times, time.Unix(0, c.GetSetTime().UnixNanos))
			return nil
		},
		fresh: func(context.Context) error { t.dials++; return nil },
		dead:  func(err error) { t.died = err },
		log:   slog.New(slog.NewTextHandler(io.Discard, nil)), read: t.h.read,
	}
	t.parted = t.apart()
	return t
}

func TestClockJumps(t *testing.T) {
	for name, tc := range map[string]struct {
		jump time.Duration
		told bool
	}{
		"a day asleep":          {24 * time.Hour, true},
		"a second":              {time.Second, true},
		"set back":              {-time.Hour, true},
		"just enough":           {jumpMin, true},
		"slewed":                {jumpMin - time.Millisecond, false},
		"slewed back":           {-jumpMin + time.Millisecond, false},
		"nothing but time":      {0, false},
		"back before the epoch": {-70 * 365 * 24 * time.Hour, true}, // the agent refuses it
	} {
		c := newTold()
		c.h.pass(48 * time.Hour)
		c.check()
		if len(c.times) != 0 {
			t.Fatalf("%s: told although only time had passed", name)
		}
		c.h.jump(tc.jump)
		c.check()
		now, _ := c.h.read()
		if (len(c.times) == 1) != tc.told || tc.told && (!c.times[0].Equal(now) || c.dials != 1) {
			t.Errorf("%s: told %v, %d fresh streams", name, c.times, c.dials)
		}
		c.h.pass(time.Hour)
		c.check() // and once is enough
		if want := len(c.times); want > 1 {
			t.Errorf("%s: told %d times", name, want)
		}
	}
}

func TestClockSlewsFar(t *testing.T) {
	c := newTold()
	for range 100 { // a minute in all
		c.h.pass(time.Hour)
		c.h.jump(600 * time.Millisecond / 2)
		c.check()
	}
	if n := len(c.times); n != 50 {
		t.Errorf("told %d times in 30 s of slewing, each half a second and a bit", n)
	}
}

func TestClockFails(t *testing.T) {
	c := newTold()
	c.h.jump(time.Hour)
	c.fail = errors.New("set the guest's clock: operation not permitted")
	c.check()
	if c.died != nil || c.dials != 0 {
		t.Errorf("a refusal ended the guest: %v", c.died)
	}
	c.check() // it is told again
	if len(c.times) != 1 || c.dials != 1 {
		t.Errorf("told %v", c.times)
	}
	c.h.jump(time.Hour)
	c.fail = context.DeadlineExceeded
	c.check()
	if c.died == nil {
		t.Error("a guest that does not answer goes on")
	}
	c = newTold()
	c.h.jump(time.Hour)
	c.fresh = func(context.Context) error { return context.DeadlineExceeded }
	if c.check(); c.died == nil {
		t.Error("a guest that takes no stream goes on")
	}
}

// TestClockBeforeTasks: the host's clock jumps, and the next task begins when the
// guest knows the time.
func TestClockBeforeTasks(t *testing.T) {
	var mu sync.Mutex
	var order []string
	note := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, what)
	}
	var host *hostClock
	h := &hostile{
		boot: func(c net.Conn) {
			r := wire.NewReader(c)
			say(c, &wire.FromGuest{Kind: &wire.FromGuest_Hello{Hello: &wire.Hello{Version: wire.Version, Agent: "test"}}})
			if r.Read(new(wire.FromHost)) != nil {
				return
			}
			say(c, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: &wire.Ready{}}})
			for {
				f := new(wire.FromHost)
				if r.Read(f) != nil {
					return
				}
				if s := f.GetControl().GetSetTime(); s != nil {
					if now, _ := host.read(); s.UnixNanos != now.UnixNano() {
						note("another time")
					}
					note("time")
				}
				say(c, &wire.FromGuest{Kind: &wire.FromGuest_Answer{Answer: &wire.Answer{Id: f.GetControl().GetId()}}})
			}
		},
		call: func(c net.Conn, _ int) {
			if started(c) == nil {
				return // the stream that only tries whether there can be one
			}
			note("task")
			say(c, exit(0, 0))
		},
	}
	host = &hostClock{wall: time.Unix(1_800_000_000, 0)}
	g := startFake(t, h)
	g.clock.mu.Lock()
	g.clock.read = host.read
	g.clock.parted = g.clock.apart()
	g.clock.mu.Unlock()
	for i, want := range []string{"task", "task time task", "task time task task"} {
		if i == 1 {
			host.jump(8 * time.Hour) // the lid was closed
		}
		if e, _ := execFake(t, g, &api.TaskSpec{Argv: []string{"true"}}, nil); e.Status != 0 || e.Cause != "" {
			t.Fatal(e)
		}
		mu.Lock()
		got := ""
		for _, o := range order {
			got += " " + o
		}
		mu.Unlock()
		if got != " "+want {
			t.Errorf("%d: %q, want %q", i, got, want)
		}
	}
}

// TestClockIsFollowed: what the host says needs no event of ours.
func TestClockIsFollowed(t *testing.T) {
	c := newTold()
	jumped, gone, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	c.watch = &clockWatch{jumped: jumped, close: func() { close(closed) }}
	followed := make(chan struct{})
	go func() { defer close(followed); c.follow(gone) }()
	jumped <- struct{}{}
	jumped <- struct{}{} // the first was dealt with
	close(gone)
	<-followed
	<-closed
	if len(c.times) < 1 {
		t.Error("the guest was not told")
	}
}

// A guest of these tests that takes no calls is one that the host may call: the clock
// of the machine that they run on may jump.
func TestClockOfAFake(t *testing.T) {
	h := new(hostile)
	startFake(t, h).clock.tell(true)
	h.vm.mu.Lock()
	defer h.vm.mu.Unlock()
	if h.vm.calls == 0 {
		t.Error("the guest was not called")
	}
}
