//go:build cgo

package vz

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
)

// TestConformance is what every driver promises, with machines of the framework: on
// a Mac, by a test program that is signed for them (docs/platforms.md).
// CARREL_TEST_KERNEL names the kernel, an uncompressed Image on Apple's processors.
func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("it needs a kernel, and a signature that makes machines: scripts/verify-host")
	}
	dir := t.TempDir()
	for _, name := range []string{"root", "scratch"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	initrd := os.Getenv(testInitrd)
	if initrd == "" {
		initrd = hypervisortest.Initrd(t, testProgram(t))
	}
	hypervisortest.Conformance(t, hypervisortest.Suite{
		New: func(*testing.T) hypervisor.Driver { return New(Options{}) },
		Config: hypervisor.Config{
			Name: "test", Dir: dir, Kernel: hypervisortest.Kernel(t), Initrd: initrd,
			Root: filepath.Join(dir, "root"), Scratch: filepath.Join(dir, "scratch"), CPUs: 2, MemoryMiB: 256,
		},
		Machine: true,
		Kills:   6,
		Boot:    30 * time.Second,
		// The module's own goroutines stay (vz v3.7.1): one for each listener and machine.
		Left: func() string { return "" },
	})
}
