package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
)

// agentPackage is what a guest starts with.
const agentPackage = "github.com/carrel-vm/carrel/cmd/carrel-agent"

// emptyRoot is a root file system with nothing but the folders that are mounted on.
func emptyRoot(t *testing.T) string {
	t.Helper()
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "root.erofs")
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "etc"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := exec.Command("mkfs.erofs", "-zlz4hc", out, dir).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v (scripts/setup)\n%s", err, b)
	}
	return out
}

// TestARM64 boots the kernel for arm64 with the agent for arm64: to the agent's Hello, over our vsock device
// on a PCI bus, and through the answer to it.
func TestARM64(t *testing.T) {
	cfg := testConfig(t)
	cfg.Kernel = hypervisortest.KernelARM64(t)
	cfg.Initrd = hypervisortest.Initrd(t, hypervisortest.ProgramFor(t, ARM64, agentPackage))
	cfg.Root, cfg.Scratch = emptyRoot(t), ""
	d := New(Options{Arch: ARM64, Shim: []string{self(t), "confine"}, CacheDir: t.TempDir()})

	t.Run("SelfTest", func(t *testing.T) { selfTest(t, d, cfg) })

	said := &console{}
	vm, err := d.Create(t.Context(), cfg, hypervisor.Handlers{Console: said.print})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("console: %s", said.text())
		}
	}()
	ln, err := vm.Listen(wire.PortBoot)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	go func() { // a guest that ends before it dials must not be waited for
		if vm.Wait() != nil {
			ln.Close()
		}
	}()
	boot, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer boot.Close()
	boot.SetDeadline(time.Now().Add(time.Minute))
	in := wire.NewReader(boot)
	from := new(wire.FromGuest)
	if err := in.Read(from); err != nil || from.GetHello().GetVersion() != wire.Version {
		t.Fatalf("%v, %v", from, err)
	}
	t.Logf("Hello after %v: %v", time.Since(begin).Round(time.Millisecond), from.GetHello())
	setup := &wire.Setup{Hostname: "arm", UnixNanos: time.Now().UnixNano(), MaxTasks: 4}
	if err := wire.Write(boot, &wire.FromHost{Kind: &wire.FromHost_Setup{Setup: setup}}); err != nil {
		t.Fatal(err)
	}
	from.Reset()
	if err := in.Read(from); err != nil || from.GetReady() == nil || from.GetReady().Error != "" {
		t.Fatalf("%v, %v", from, err)
	}
}
