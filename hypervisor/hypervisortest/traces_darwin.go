package hypervisortest

import (
	"errors"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
)

// settle stretches the moments in which nothing shall happen.
const settle = 1

// traces are what a guest could leave. Goroutines are counted only where the suite
// says nothing else: the binding of Apple's framework leaves some for each machine.
type traces struct {
	goroutines goleak.Option
	left       func() string
	fds        int
}

func (s Suite) look(t testing.TB) traces {
	t.Helper()
	return traces{goleak.IgnoreCurrent(), s.Left, countFDs(t)}
}

func countFDs(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// compare fails the test for each thing that was left.
func (before traces) compare(t testing.TB, dir string) {
	t.Helper()
	if before.left == nil {
		if err := leaked(before.goroutines); err != nil {
			t.Errorf("goroutines are left: %v", err)
		}
	} else if left := before.left(); left != "" {
		t.Error(left)
	}
	if after := countFDs(t); after > before.fds {
		t.Errorf("%d descriptors are open, %d before", after, before.fds)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("files are left in the guest's folder: %v, %v", left, err)
	}
}

// outside ends a guest by what happens to its machine, if the suite has a way to.
func (s Suite) outside(t *testing.T, _ func(*testing.T, *guest)) {
	if s.Murder == nil {
		t.Log("not tried: the end of a guest from outside, for which the suite has no way")
		return
	}
	t.Run("Murdered", func(t *testing.T) {
		g := s.start(t)
		c := g.dial(guestport.Echo)
		s.Murder(t)
		var gone *hypervisor.GoneError
		if err := g.waitWithin(bound); !errors.As(err, &gone) {
			t.Errorf("killed from outside: %v", err)
		}
		if _, err := readAll(c, bound); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a stream outlives its guest")
		}
	})
}
