package hypervisortest

import (
	"errors"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
)

// settle stretches the moments in which nothing shall happen: the suite runs beside
// others, and under Wine.
const settle = 15

// traces are what a guest could leave. The runtime opens handles of its own at
// any time here, so that to count them would tell nothing.
type traces struct {
	goroutines goleak.Option
	left       func() string
}

func (s Suite) look(testing.TB) traces { return traces{goleak.IgnoreCurrent(), s.Left} }

// compare fails the test for each thing that was left.
func (before traces) compare(t testing.TB, dir string) {
	t.Helper()
	if err := leaked(before.goroutines); err != nil {
		t.Errorf("goroutines are left: %v", err)
	}
	if before.left != nil {
		if left := before.left(); left != "" {
			t.Error(left)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("files are left in the guest's folder: %v, %v", left, err)
	}
}

// outside ends a guest by what happens to its machine.
func (s Suite) outside(t *testing.T, _ func(*testing.T, *guest)) {
	if s.Murder == nil {
		t.Fatal("the suite was given no way to end a guest from outside")
	}
	t.Run("Murdered", func(t *testing.T) {
		g := s.start(t)
		c := g.dial(guestport.Echo)
		s.Murder(t)
		var gone *hypervisor.GoneError
		if err := g.waitWithin(bound); !errors.As(err, &gone) {
			t.Errorf("killed from outside: %v", err)
		} else {
			t.Log(gone)
		}
		if _, err := readAll(c, bound); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a stream outlives its guest")
		}
	})
}
