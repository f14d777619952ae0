package hcs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
)

// build is the Windows that the driver is told it is on: Wine's says what it likes.
const build = 22631

func testDriver(c Carrier) *Driver { return Over(c, build) }

// testConfig is a guest with files that are there.
func testConfig(t testing.TB) hypervisor.Config {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, size int) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, bytes.Repeat([]byte(name), size)[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return hypervisor.Config{
		Name: "quiet-otter", Dir: t.TempDir(), CPUs: 1, MemoryMiB: 128,
		Kernel: file("kernel", 4096), Initrd: file("initrd", 4096), Root: file("root", 300_001), Scratch: file("scratch", 1<<20),
		Volumes: []hypervisor.Volume{{Serial: "volume0", Path: file("volume", 64<<10), GuestPath: "/v"}},
	}
}

// TestConformance is what every driver promises, with the fake's machines, which
// are processes: what holds of the driver holds here. What Hyper-V does (its
// sockets, its pipes, its disks) does not take part.
func TestConformance(t *testing.T) {
	newFake(t)
	cfg, carry := testConfig(t), newCarrier(t)
	hypervisortest.Conformance(t, hypervisortest.Suite{
		New:     func(t *testing.T) hypervisor.Driver { return testDriver(carry) },
		Config:  cfg,
		Machine: true,
		Kills:   10,
		Boot:    60 * time.Second,
		Murder:  murder,
		Left:    left,
	})
}
