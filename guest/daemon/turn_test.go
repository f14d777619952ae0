package daemon

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrel-vm/carrel/guest/policy"
)

// A start that takes too long is told so, and one that does not hear it loses its turn
// to the next, once.
func TestTurnEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := new(Daemon)
		host := policy.HostLimits{Starts: 1}
		enter := func() (context.Context, func()) {
			ctx, leave, err := d.startTurn(t.Context(), caller{"s", "c"}, host, 8, func(int) error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			return ctx, leave
		}
		begun := time.Now()
		ctx, leave := enter()
		<-ctx.Done()
		if took := time.Since(begun); took != startBound || errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			t.Errorf("after %v it is told %v", took, context.Cause(ctx))
		}
		_, next := enter()
		if took := time.Since(begun); took != turnBound {
			t.Errorf("the next one's turn came after %v", took)
		}
		leave()
		if d.starts.full(caller{}, 1, 0) == nil {
			t.Error("who left twice left for the next one, too")
		}
		next()
		if !d.starts.idle() {
			t.Error("a turn was not given back")
		}
		_, leave = enter() // the control: one that leaves in time
		leave()
		time.Sleep(2 * turnBound)
		if !d.starts.idle() {
			t.Error("it left again")
		}
	})
}

// What does not answer is not waited for.
func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late, stuck := errors.New("late"), make(chan struct{})
		defer close(stuck)
		if n, err := within(t.Context(), time.Minute, late, func() (int, error) { <-stuck; return 1, nil }); n != 0 || !errors.Is(err, late) {
			t.Errorf("%d, %v", n, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := within(ctx, time.Minute, late, func() (int, error) { <-stuck; return 1, nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("without a caller: %v", err)
		}
		if n, err := within(t.Context(), time.Minute, late, func() (int, error) { return 2, late }); n != 2 || !errors.Is(err, late) {
			t.Errorf("the control: %d, %v", n, err)
		}
	})
}
