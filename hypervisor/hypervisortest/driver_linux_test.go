package hypervisortest

import (
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
)

func TestConformance(t *testing.T) {
	program := Guest(t)
	Conformance(t, Suite{
		New:    func(t *testing.T) hypervisor.Driver { return New(Options{Agent: []string{program, "serve"}}) },
		Config: hypervisor.Config{Kernel: "/k", Initrd: "/i", Root: "/r", CPUs: 1, MemoryMiB: 128},
		Kills:  50,
		Boot:   2 * time.Second,
	})
}
