package bubblewrap

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
)

// asWall is the argument with which the test program is a wall process.
const asWall = "wall-under-test"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == asWall {
		if err := WallMain(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newDriver(t testing.TB, agent string) *Driver {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{Agent: agent, Shim: []string{self, asWall}, CacheDir: t.TempDir()})
}

func TestConformance(t *testing.T) {
	program := hypervisortest.Guest(t)
	hypervisortest.Conformance(t, hypervisortest.Suite{
		New:    func(t *testing.T) hypervisor.Driver { return newDriver(t, program) },
		Config: hypervisor.Config{Kernel: "/none", Initrd: "/none", Root: HostRoot, CPUs: 1, MemoryMiB: 256},
		Kills:  50,
		Boot:   2 * time.Second,
	})
}
