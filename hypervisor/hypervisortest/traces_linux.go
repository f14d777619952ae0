package hypervisortest

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
)

// settle stretches the moments in which nothing shall happen.
const settle = 1

// traces are what a guest could leave.
type traces struct {
	goroutines goleak.Option
	children   int
	fds        int
}

func (Suite) look(t testing.TB) traces { return look(t) }

func look(t testing.TB) traces {
	t.Helper()
	return traces{goleak.IgnoreCurrent(), len(Children(os.Getpid())), countFDs(t)}
}

func countFDs(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// compare fails the test for each thing that was left. Close has returned, so
// there is nothing to wait for, but for goroutines that have yet to be run to their end.
func (before traces) compare(t testing.TB, dir string) {
	t.Helper()
	if err := leaked(before.goroutines); err != nil {
		t.Errorf("goroutines are left: %v", err)
	}
	after := look(t)
	if after.children != before.children {
		t.Errorf("%d child processes, %d before: %v", after.children, before.children, Children(os.Getpid()))
	}
	if after.fds > before.fds {
		t.Errorf("%d descriptors are open, %d before", after.fds, before.fds)
	}
	// Others mount things meanwhile; the guest's folder is ours alone.
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("mounts are left in the guest's folder: %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("files are left in the guest's folder: %v, %v", left, err)
	}
}

// outside ends guests by what happens to the hypervisor's processes.
func (s Suite) outside(t *testing.T, killed func(*testing.T, *guest)) {
	t.Run("Stopped", func(t *testing.T) {
		// A hypervisor that does not react at all.
		g := s.start(t)
		for _, pid := range Children(os.Getpid()) {
			syscall.Kill(pid, syscall.SIGSTOP)
		}
		killed(t, g)
	})
	t.Run("Murdered", func(t *testing.T) {
		g := s.start(t)
		c := g.dial(guestport.Echo)
		for _, pid := range Children(os.Getpid()) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		var gone *hypervisor.GoneError
		if err := g.waitWithin(bound); !errors.As(err, &gone) || !strings.Contains(gone.Cause, "signal 9") {
			t.Errorf("killed from outside: %v", err)
		}
		if _, err := readAll(c, bound); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a stream outlives its guest")
		}
	})
}
