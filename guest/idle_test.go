package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
)

// resting is a machine of which a test says how long it takes to stand still and to
// go on. It is only ever asked for one of them at a time.
type resting struct {
	t             *testing.T
	slow          time.Duration
	pauses, conts error // what they fail with
	r             *rest

	mu    sync.Mutex
	busy  bool
	still bool
	said  []string
	ended error
	over  bool
}

func newResting(t *testing.T, after policy.Idle) *resting {
	m := &resting{t: t, slow: 100 * time.Millisecond}
	m.r = newRest(slog.New(slog.DiscardHandler), after, func(since time.Time) {
		m.note(map[bool]string{true: "told runs", false: "told still"}[since.IsZero()])
	}, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.over {
			t.Error("it is over twice")
		}
		m.over = true
	})
	return m
}

func (m *resting) note(s string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said = append(m.said, s)
}

func (m *resting) do(what string, still bool, err error) error {
	m.mu.Lock()
	if m.busy {
		m.t.Errorf("it is to %s while it does something else", what)
	}
	m.busy = true
	slow := m.slow
	m.mu.Unlock()
	time.Sleep(slow)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy = false
	m.said = append(m.said, what)
	if err == nil {
		m.still = still
	}
	return err
}

func (m *resting) pause(context.Context) error {
	_, _, pauses, _ := m.now()
	return m.do("pause", true, pauses)
}

func (m *resting) resume(context.Context) error {
	_, _, _, conts := m.now()
	return m.do("resume", false, conts)
}

// now is what has happened, and what pauses and resumes fail with.
func (m *resting) now() (said []string, ended, pauses, conts error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.said), m.ended, m.pauses, m.conts
}

// fails has them fail from now on.
func (m *resting) fails(pauses, conts error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pauses, m.conts = pauses, conts
}

func (m *resting) lost(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = err
}

func (m *resting) stands() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.still
}

func (m *resting) isOver() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.over
}

// use holds the guest for a while, in which it must run.
func (m *resting) use(d time.Duration) (waited time.Duration) {
	m.t.Helper()
	begun := time.Now()
	end, err := m.r.use(m.t.Context())
	if err != nil {
		m.t.Error(err)
		return 0
	}
	waited = time.Since(begun)
	for until := time.Now().Add(d); ; time.Sleep(min(10*time.Millisecond, d)) {
		if m.stands() {
			m.t.Error("it stands still while somebody uses it")
			break
		}
		if !time.Now().Before(until) {
			break
		}
	}
	end()
	end() // twice is once
	return waited
}

func inTime(t *testing.T, after policy.Idle, f func(*testing.T, *resting)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newResting(t, after)
		m.r.begin(m)
		f(t, m)
		m.r.end()
	})
}

const minute = time.Minute

func TestIdlePausesAndGoesOn(t *testing.T) {
	inTime(t, policy.Idle{Pause: 5 * minute}, func(t *testing.T, m *resting) {
		time.Sleep(5*minute - time.Second)
		if m.use(2*minute) != 0 { // which begins anew
			t.Error("who uses a guest that runs waits")
		}
		time.Sleep(5*minute - time.Second)
		if m.stands() {
			t.Error("it stands still before its time")
		}
		time.Sleep(2 * time.Second)
		if !m.stands() {
			t.Error("it does not stand still after its time")
		}
		time.Sleep(100 * time.Hour) // nothing else becomes of it
		if w := m.use(minute); w != m.slow {
			t.Errorf("who uses a guest that stands still waits %v; that takes %v", w, m.slow)
		}
		time.Sleep(6 * minute)
		if !m.stands() || m.isOver() {
			t.Error("it is not as it was")
		}
		said, _, _, _ := m.now()
		if got, want := strings.Join(said, ", "), "pause, told still, resume, told runs, pause, told still"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}

// Several who hold it are one: it is idle from the end of the last one on.
func TestIdleCountsHolds(t *testing.T) {
	inTime(t, policy.Idle{Pause: minute}, func(t *testing.T, m *resting) {
		a, _ := m.r.hold()
		time.Sleep(10 * minute)
		b, _ := m.r.hold()
		a()
		time.Sleep(10 * minute)
		if m.stands() {
			t.Error("it stands still under the second one")
		}
		b()
		time.Sleep(minute + time.Second)
		if !m.stands() {
			t.Error("it does not stand still after the second one")
		}
	})
}

// What comes while it pauses, or goes on, waits for it and is not lost.
func TestIdleRaces(t *testing.T) {
	for at := -20 * time.Millisecond; at < 240*time.Millisecond; at += 10 * time.Millisecond {
		inTime(t, policy.Idle{Pause: minute, Stop: 10 * minute}, func(t *testing.T, m *resting) {
			time.Sleep(minute + at)
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() {
					time.Sleep(time.Duration(i) * 15 * time.Millisecond)
					m.use(time.Duration(i) * 20 * time.Millisecond)
				})
			}
			all.Wait()
			time.Sleep(minute + time.Second)
			if !m.stands() {
				t.Errorf("%v: it does not stand still afterwards", at)
			}
			time.Sleep(10 * minute)
			if !m.isOver() {
				t.Errorf("%v: it is not to be stopped", at)
			}
			m.r.leave()
			if m.stands() {
				t.Errorf("%v: it is stopped while it stands still", at)
			}
		})
	}
}

func TestIdleStops(t *testing.T) {
	for _, after := range []policy.Idle{{Stop: 10 * minute}, {Pause: minute, Stop: 10 * minute}} {
		inTime(t, after, func(t *testing.T, m *resting) {
			time.Sleep(9 * minute)
			m.use(minute)
			time.Sleep(10*minute - time.Second)
			if m.isOver() {
				t.Error("it is over before its time")
			}
			time.Sleep(2 * time.Second)
			if !m.isOver() {
				t.Error("it is not over after its time")
			}
			if _, ok := m.r.hold(); ok {
				t.Error("somebody gets hold of a guest that is being stopped")
			}
			if _, err := m.r.use(t.Context()); !errors.Is(err, errLeaving) {
				t.Errorf("use: %v", err)
			}
			m.r.leave()
			if m.stands() {
				t.Error("it is to end in order, and stands still")
			}
		})
	}
	// With a port it is not stopped, since who connects could not start it again; it
	// is paused all the same.
	inTime(t, policy.Idle{Pause: minute, Stop: 10 * minute}, func(t *testing.T, m *resting) {
		m.r.published(2)
		time.Sleep(time.Hour)
		if m.isOver() || !m.stands() {
			t.Error("a guest with a port is stopped, or not paused")
		}
		m.r.published(0)
		time.Sleep(time.Second)
		if !m.isOver() {
			t.Error("one without any more is not stopped")
		}
	})
}

// A stop that was asked for lets a guest go on that stands still, or is about to.
func TestIdleLeaves(t *testing.T) {
	for _, at := range []time.Duration{30 * time.Second, minute + 50*time.Millisecond, 2 * minute} {
		inTime(t, policy.Idle{Pause: minute}, func(t *testing.T, m *resting) {
			time.Sleep(at)
			m.r.leave()
			if m.stands() {
				t.Errorf("%v: it stands still", at)
			}
			time.Sleep(time.Hour)
			if m.stands() || m.isOver() {
				t.Errorf("%v: it was paused while it was being stopped", at)
			}
		})
	}
}

// A stop is not held up for ever by one that does not go on.
func TestIdleLeavesInTime(t *testing.T) {
	for _, at := range []time.Duration{minute + 50*time.Millisecond, 2 * minute} {
		inTime(t, policy.Idle{Pause: minute}, func(t *testing.T, m *resting) {
			time.Sleep(at)
			m.mu.Lock()
			m.slow = time.Hour
			m.mu.Unlock()
			begun := time.Now()
			m.r.leave()
			if took := time.Since(begun); took != StopResume {
				t.Errorf("%v: the stop goes on after %v", at, took)
			}
			m.r.leave() // which is once more
		})
	}
}

// Without a word nothing becomes of it, and what changes meanwhile counts.
func TestIdleWithoutAWord(t *testing.T) {
	inTime(t, policy.Idle{}, func(t *testing.T, m *resting) {
		time.Sleep(1000 * time.Hour)
		m.use(minute)
		time.Sleep(1000 * time.Hour)
		if said, _, _, _ := m.now(); len(said) > 0 || m.isOver() {
			t.Errorf("%v", said)
		}
		m.r.set(policy.Idle{Pause: minute})
		time.Sleep(minute + time.Second)
		if !m.stands() {
			t.Error("the control: it does not stand still")
		}
	})
	for _, c := range []struct {
		spec *api.GuestSpec
		want policy.Idle
	}{
		{&api.GuestSpec{DiskMib: 1}, policy.Idle{Pause: 1, Stop: 2}},
		{&api.GuestSpec{}, policy.Idle{Pause: 1}}, // what it wrote would be gone
		{&api.GuestSpec{Ephemeral: true, DiskMib: 1}, policy.Idle{}},
	} {
		if got := idleOf(c.spec, policy.Rules{Idle: policy.Idle{Pause: 1, Stop: 2}}); got != c.want {
			t.Errorf("%v: %+v", c.spec, got)
		}
	}
	// One of the pool stands still whatever the policy says, and is never stopped for it.
	for _, rules := range []policy.Rules{{}, {Idle: policy.Idle{Stop: 2}}} {
		if got := (&KeepRequest{Spec: &api.GuestSpec{Ephemeral: true, DiskMib: 1}, Rules: rules, Warm: true}).idle(); got != (policy.Idle{Pause: warmRest}) {
			t.Errorf("of the pool: %+v", got)
		}
	}
	var none *rest
	end, err := none.use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	end()
	none.leave()
	none.end()
}

// One that cannot be paused goes on, and is not tried again; one that does not go
// on has ended, with the reason.
func TestIdleFails(t *testing.T) {
	broken := errors.New("broken")
	inTime(t, policy.Idle{Pause: minute, Stop: 10 * minute}, func(t *testing.T, m *resting) {
		m.fails(broken, nil)
		time.Sleep(2 * minute)
		m.use(0)
		time.Sleep(2 * minute)
		said, ended, _, _ := m.now()
		if want := []string{"pause", "resume", "told runs"}; !slices.Equal(said, want) || ended != nil {
			t.Errorf("%v, %v", said, ended)
		}
		time.Sleep(10 * minute)
		if !m.isOver() {
			t.Error("it is not stopped either")
		}
	})
	for _, err := range []error{broken, fmt.Errorf("resume: %w", hypervisor.ErrGone)} {
		inTime(t, policy.Idle{Pause: minute}, func(t *testing.T, m *resting) {
			m.fails(nil, err)
			time.Sleep(2 * minute)
			end, uerr := m.r.use(t.Context()) // and finds out for itself
			if uerr != nil {
				t.Fatal(uerr)
			}
			end()
			_, ended, _, _ := m.now()
			switch {
			case err == broken && (!errors.Is(ended, broken) || !strings.Contains(ended.Error(), "does not go on")):
				t.Errorf("it ended by %v", ended)
			case err != broken && ended != nil: // its machine has its own reason
				t.Errorf("it ended by %v", ended)
			}
		})
	}
}

// Who waits for it need not wait for ever, and holds it no longer then.
func TestIdleWaitEnds(t *testing.T) {
	inTime(t, policy.Idle{Pause: minute}, func(t *testing.T, m *resting) {
		time.Sleep(2 * minute)
		m.mu.Lock()
		m.slow = time.Hour
		m.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), minute)
		defer cancel()
		if _, err := m.r.use(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("use: %v", err)
		}
		time.Sleep(3 * time.Hour)
		if !m.stands() {
			t.Error("it does not stand still again")
		}
	})
}

// The clock is told of a jump when the guest runs, and never has it go on.
func TestIdleClock(t *testing.T) {
	inTime(t, policy.Idle{Pause: minute}, func(t *testing.T, m *resting) {
		end, ok := m.r.runs()
		if !ok {
			t.Fatal("a guest that runs is not told")
		}
		end()
		for _, at := range []time.Duration{minute + 50*time.Millisecond, minute} {
			time.Sleep(at)
			if _, ok := m.r.runs(); ok {
				t.Errorf("a guest that stands still, or is about to, is told")
			}
		}
		time.Sleep(time.Hour)
		if !m.stands() {
			t.Error("it went on for the time")
		}
	})
}

// A guest is asked for a sign of life while tasks run, and not when it stands still: it
// could not answer, and would be given up.
func TestIdleBeat(t *testing.T) {
	for _, c := range []struct {
		task  time.Duration
		asked int // while it runs
	}{{time.Second, 0}, {minute, int(minute / pingEvery)}, {pingEvery + time.Second, 1}} {
		inTime(t, policy.Idle{Pause: 2 * time.Second}, func(t *testing.T, m *resting) {
			h := &heartbeat{wake: make(chan struct{}, 1)}
			gone, over := make(chan struct{}), make(chan struct{})
			asked := 0
			go func() {
				defer close(over)
				h.run(gone, m.r.runs, func() bool {
					// The task may end meanwhile.
					for range 50 {
						if m.stands() {
							t.Error("it is asked while it stands still")
							return true
						}
						time.Sleep(100 * time.Millisecond)
					}
					asked++
					return true
				})
			}()
			end, _ := m.r.hold()
			h.begin()
			time.Sleep(c.task + time.Millisecond)
			h.end()
			end()
			time.Sleep(10 * minute)
			if !m.stands() || asked != c.asked {
				t.Errorf("after a task of %v it stands still: %v, and was asked %d times, not %d", c.task, m.stands(), asked, c.asked)
			}
			close(gone)
			<-over
		})
	}
}
