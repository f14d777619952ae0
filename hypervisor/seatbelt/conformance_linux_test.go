package seatbelt

import (
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
)

// TestConformance runs what every driver promises against what of this one runs
// on Linux. What the suite asks of machines only (Machine: a dial that is
// refused at once, disks, a kernel's command line) a guest of processes has not,
// as with the other walls of processes. The wall itself is not tried: there is
// none here.
func TestConformance(t *testing.T) {
	program := hypervisortest.Guest(t)
	hypervisortest.Conformance(t, hypervisortest.Suite{
		New:    func(*testing.T) hypervisor.Driver { return &Bare{Agent: program} },
		Config: hypervisor.Config{Kernel: "/k", Initrd: "/i", Root: HostRoot, CPUs: 1, MemoryMiB: 128},
		Kills:  30,
		Boot:   2 * time.Second,
	})
}
