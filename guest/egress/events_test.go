package egress

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
)

// Watchers get what is kept, then what comes; who is too slow is told how much
// it missed, and nobody waits for it.
func TestWatch(t *testing.T) {
	w := newWorld(t, nil)
	add := func(n int) {
		for range n {
			w.Server.events.add(&api.EgressEvent{Host: "x"})
		}
	}
	collect := func(last int) (got []uint64) {
		if err := w.Watch(t.Context(), last, false, func(ev *api.EgressEvent) error {
			got = append(got, ev.Sequence)
			return nil
		}); err != nil {
			t.Error(err)
		}
		return got
	}
	if got := collect(0); len(got) != 0 {
		t.Errorf("%v", got)
	}
	add(10)
	if got := collect(0); fmt.Sprint(got) != "[1 2 3 4 5 6 7 8 9 10]" {
		t.Errorf("%v", got)
	}
	if got := collect(3); fmt.Sprint(got) != "[8 9 10]" {
		t.Errorf("%v", got)
	}
	if got := collect(30); len(got) != 10 {
		t.Errorf("%v", got)
	}
	add(2 * keptEvents)
	if got := collect(0); len(got) != keptEvents || got[0] != 10+keptEvents+1 || got[keptEvents-1] != 10+2*keptEvents {
		t.Errorf("%d events, %v...", len(got), got[:1])
	}

	// A watcher that sleeps while the ring goes round.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	slept, gap := false, ""
	var next, lost uint64
	err := w.Watch(ctx, 1, true, func(ev *api.EgressEvent) error {
		if !slept {
			slept, next = true, ev.Sequence+1
			add(keptEvents + 50)
			return nil
		}
		if ev.Sequence == 0 {
			gap = ev.Verdict.Reason
			fmt.Sscan(gap, &lost)
			next += lost
			return nil
		}
		if ev.Sequence != next {
			t.Errorf("event %d came for %d", ev.Sequence, next)
		}
		if next++; next == 10+3*keptEvents+50+1 {
			stop()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || lost != 50 || !strings.Contains(gap, "not shown") {
		t.Errorf("%v, %q", err, gap)
	}
	stopped := errors.New("enough")
	if err := w.Watch(t.Context(), 0, true, func(*api.EgressEvent) error { return stopped }); !errors.Is(err, stopped) {
		t.Errorf("%v", err)
	}
	done := make(chan error)
	go func() { done <- w.Watch(t.Context(), 1, true, func(*api.EgressEvent) error { return nil }) }()
	w.Close()
	if err := <-done; err != nil {
		t.Errorf("after Close: %v", err)
	}
}

// Refusals that are alike are told once, and then counted.
func TestTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var all []string
		told := func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(all)
		}
		var k teller
		k.init(func(task, line string) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, task+" "+line)
		})
		for range 50 {
			k.tell("a", "one")
		}
		k.tell("a", "two")
		k.tell("b", "one")
		if got := told(); fmt.Sprint(got) != "[a one a two b one]" {
			t.Errorf("%q", got)
		}
		time.Sleep(sameRefusal + time.Second)
		synctest.Wait()
		if got := told(); len(got) != 4 || got[3] != "a one (49 more times in 10 s)" {
			t.Errorf("%q", got)
		}
		k.tell("a", "one")
		if got := told(); len(got) != 5 {
			t.Errorf("%q", got)
		}
		for i := range 2 * maxRefusals {
			k.tell("a", fmt.Sprint(i))
		}
		if got := told(); len(got) != 5+maxRefusals-1 {
			t.Errorf("%d lines", len(got))
		}
		time.Sleep(sameRefusal + time.Second)
		synctest.Wait()
		if got := told(); !strings.Contains(strings.Join(got, "\n"), "257 refusals were not told") {
			t.Errorf("%q", got)
		}
		k.tell("a", "one")
		k.close()
		k.tell("a", "three")
		if got := told(); got[len(got)-1] != "a one" {
			t.Errorf("%q", got[len(got)-1])
		}
	})
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{"a\r\nb": "a? b", "é\x1b[31m": "??[31m", "\u202eabc": "?abc", strings.Repeat("x", 50): strings.Repeat("x", 40)} {
		if got := text(in, 40); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{"/a/b": "/a/b", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'", "/*": "'/*'"} {
		if got := shell(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}
