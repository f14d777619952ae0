package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/agent/selftest"
	"github.com/carrel-vm/carrel/guest/wire"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
)

// disksFor makes a root file system with nothing but the folders that are mounted on,
// and an empty disk for changes.
func disksFor(t *testing.T) (root, scratch string) {
	t.Helper()
	dir, out := t.TempDir(), t.TempDir()
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "etc", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, scratch = filepath.Join(out, "root.erofs"), filepath.Join(out, "scratch.ext4")
	for _, argv := range [][]string{{"mkfs.erofs", "-zlz4hc", root, dir}, {"mkfs.ext4", "-q", scratch, "512M"}} {
		if b, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v (scripts/setup installs it)\n%s", argv, err, b)
		}
	}
	return root, scratch
}

// TestARM64 boots our kernel for arm64 with our agent for arm64 on an emulated processor: what a guest
// needs is in that kernel, and the agent says Hello over our vsock device on a PCI bus, mounts its
// disks, steers names, runs a task and ends its machine.
func TestARM64(t *testing.T) {
	cfg := testConfig(t)
	cfg.Kernel = hypervisortest.KernelARM64(t)
	cfg.Initrd = hypervisortest.Initrd(t, hypervisortest.ProgramFor(t, ARM64, "github.com/carrel-vm/carrel/cmd/carrel-agent"))
	d := New(Options{Arch: ARM64, Shim: []string{self(t), "confine"}, CacheDir: t.TempDir()})

	t.Run("SelfTest", func(t *testing.T) { selfTest(t, d, cfg) })
	t.Run("Hello", func(t *testing.T) {
		cfg.Root, cfg.Scratch = disksFor(t)
		bootARM64(t, d, cfg, func(t *testing.T, vm hypervisor.VM, _ func()) {
			// The root holds no program: the agent's own is one. Its self-test runs under a task's filter here.
			out, exit := task(t, vm, &wire.Exec{Argv: []string{"/proc/1/exe", "selftest"}, Cwd: "/", User: "0", Id: "first"})
			if exit.GetCode() != 0 || exit.GetSignal() != 0 || !strings.Contains(out, "\n"+selftest.Passed+"\n") {
				t.Fatalf("the task ended with %v:\n%s", exit, out)
			}
		})
	})
}

// TestImageARM64 boots the image that carrel image build --arch arm64 has made, all of it, and runs what people ask for
// first as the user that tasks have.
func TestImageARM64(t *testing.T) {
	cfg := testConfig(t)
	cfg.Kernel, cfg.Initrd, cfg.Root = hypervisortest.ImageARM64(t)
	_, cfg.Scratch = disksFor(t)
	cfg.MemoryMiB = 1024
	d := New(Options{Arch: ARM64, Shim: []string{self(t), "confine"}, CacheDir: t.TempDir()})
	bootARM64(t, d, cfg, func(t *testing.T, vm hypervisor.VM, again func()) {
		for i, c := range []struct{ script, want string }{
			{"uname -m; id -u; dpkg --print-architecture", "aarch64\n1000\narm64\n"},
			{"node --version && node -p process.arch+6*7", "v22."},
			{"npm --version", "10."},
			{"go version", "go version go1.26"},
			{"git --version", "git version 2."},
			{"python3 -c 'import platform; print(platform.machine())'", "aarch64\n"},
			// The Go library is compiled already, and the C compiler makes what runs.
			{"cd && mkdir m && cd m && printf 'module m\n' >go.mod && printf 'package main\nimport \"fmt\"\nfunc main() { fmt.Println(6 * 7) }\n' >m.go && go run .", "42\n"},
			{"cd && printf 'int puts(const char *);int main(void) { return puts(\"seen\") < 0; }\n' >c.c && gcc -o c c.c && ./c", "seen\n"},
		} {
			again()
			begin := time.Now()
			out, exit := task(t, vm, &wire.Exec{Argv: []string{"/bin/sh", "-ec", c.script}, Id: fmt.Sprint("t", i)})
			if exit.GetCode() != 0 || exit.GetSignal() != 0 || !strings.HasPrefix(out, c.want) {
				t.Errorf("%s: ended with %v, expected %q:\n%s", c.script, exit, c.want, out)
			}
			t.Logf("%s: %v", c.script, time.Since(begin).Round(time.Millisecond))
		}
	})
}

// bootARM64 starts a machine and has tasks run in it. The machine is given patience once more whenever again is called.
func bootARM64(t *testing.T, d *Driver, cfg hypervisor.Config, tasks func(t *testing.T, vm hypervisor.VM, again func())) {
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
			t.Logf("console: %s\nagain: make image-arm64, then go test -run %s ./hypervisor/qemu", said.text(), t.Name())
		}
	}()
	ln, err := vm.Listen(wire.PortBoot)
	if err != nil {
		t.Fatal(err)
	}
	hang := time.AfterFunc(patience, func() { vm.Kill() })
	defer hang.Stop()
	begin := time.Now()
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() {
		err := vm.Wait()
		ln.Close() // a guest that ends before it dials must not be waited for
		gone <- err
	}()
	boot, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer boot.Close()
	in, from := wire.NewReader(boot), new(wire.FromGuest)
	if err := in.Read(from); err != nil || from.GetHello().GetVersion() != wire.Version || !strings.HasSuffix(from.GetHello().Kernel, "-carrel") {
		t.Fatalf("%v, %v", from, err)
	}
	t.Logf("Hello after %v: %v", time.Since(begin).Round(time.Millisecond), from.GetHello())

	// With a way out, so that the program that steers names is loaded.
	setup := &wire.Setup{Hostname: "arm", UnixNanos: time.Now().UnixNano(), MaxTasks: 4, Egress: true}
	if err := wire.Write(boot, &wire.FromHost{Kind: &wire.FromHost_Setup{Setup: setup}}); err != nil {
		t.Fatal(err)
	}
	from.Reset()
	if err := in.Read(from); err != nil || from.GetReady().GetError() != "" || from.GetReady().GetSteering() != "sk_lookup" {
		t.Fatalf("%v, %v", from, err)
	}

	tasks(t, vm, func() { hang.Reset(patience) })

	if err := wire.Write(boot, &wire.FromHost{Kind: &wire.FromHost_Control{Control: &wire.Control{Id: 1, Kind: &wire.Control_PowerOff{PowerOff: &wire.PowerOff{}}}}}); err != nil {
		t.Fatal(err)
	}
	from.Reset()
	if err := in.Read(from); err != nil || from.GetAnswer() == nil || from.GetAnswer().Error != "" {
		t.Fatalf("%v, %v", from, err)
	}
	if err := <-gone; err != nil || !hang.Stop() {
		t.Errorf("the machine did not end by itself: %v", err)
	}
}

// task calls the agent for one task and returns its output and its end.
func task(t *testing.T, vm hypervisor.VM, e *wire.Exec) (string, *wire.Exit) {
	t.Helper()
	c, err := vm.Dial(t.Context(), wire.PortAgent)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := wire.Write(c, &wire.Call{Kind: &wire.Call_Exec{Exec: e}}); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for in := wire.NewReader(c); ; {
		m := new(wire.Output)
		if err := in.Read(m); errors.Is(err, io.EOF) {
			t.Fatalf("the call ended without the task's end:\n%s", said.String())
		} else if err != nil {
			t.Fatal(err)
		}
		said.Write(m.GetStdout())
		said.Write(m.GetStderr())
		if m.GetFailed() != nil {
			t.Fatal(m.GetFailed())
		}
		if m.GetExit() != nil {
			return said.String(), m.GetExit()
		}
	}
}
