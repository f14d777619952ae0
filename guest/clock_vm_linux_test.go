package guest

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestClockOfMachine stops a real guest's processors for a while (QMP stop, cont),
// as sleep does, and has it told the time.
func TestClockOfMachine(t *testing.T) {
	g := newRealMachine(t, "clock", 512, nil)
	guestTime := func() time.Time {
		t.Helper()
		out := g.run(t, "date", "+%s%N")
		n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
		if err != nil {
			t.Fatalf("date said %q", out)
		}
		return time.Unix(0, n)
	}
	// Emulated clocks run a little too fast or too slow, which is what the rest of
	// it is for.
	const asleep, enough = 5 * time.Second, 3 * time.Second
	if err := g.vm.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(asleep)
	if err := g.vm.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The control: the guest's clock stood still. No jump of the host's was seen,
	// since there was none.
	if behind := time.Since(guestTime()); behind < enough {
		t.Fatalf("the guest's clock is %v behind after it stood still for %v", behind, asleep)
	}
	before := time.Now()
	g.clock.tell(true)
	got := guestTime()
	// It was told a time after before.
	if got.Before(before) || got.After(time.Now().Add(asleep-enough)) {
		t.Errorf("the guest says %v; it is between %v and %v", got, before, time.Now())
	}
	t.Logf("the guest's clock is %v behind", time.Since(got))
}
