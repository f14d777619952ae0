package hypervisortest

import (
	"testing"
	"time"

	"go.uber.org/goleak"

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

// A goroutine that a busy machine runs to its end only later is waited for.
func TestLeakedWaits(t *testing.T) {
	before := goleak.IgnoreCurrent()
	go time.Sleep(time.Second)
	if err := goleak.Find(before); err == nil {
		t.Error("the control: nothing is found")
	}
	if err := leaked(before); err != nil {
		t.Error(err)
	}
}
