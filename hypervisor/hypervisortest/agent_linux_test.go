package hypervisortest

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
	"github.com/carrel-vm/carrel/hypervisor"
)

// TestRealAgent greets the real agent, runs a task that leaves a process
// behind, and ends the guest: nothing of it may stay.
func TestRealAgent(t *testing.T) {
	before := look(t)
	cfg := hypervisor.Config{
		Name: "real", Dir: t.TempDir(), Kernel: "/k", Initrd: "/i", Root: "/r", CPUs: 1, MemoryMiB: 128,
		Shares: []hypervisor.Share{{Tag: "share0", Path: "/tmp", GuestPath: "/tmp", ReadOnly: true}},
	}
	g := &guest{t: t}
	vm, err := New(Options{Agent: []string{Agent(t), "serve"}}).Create(t.Context(), cfg, hypervisor.Handlers{Console: g.print})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
		before.compare(t, cfg.Dir)
		if t.Failed() {
			t.Logf("console: %q", g.console)
		}
	}()
	ln, err := vm.Listen(wire.PortBoot)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	boot := accept(t, ln)
	defer boot.Close()
	boot.SetDeadline(time.Now().Add(bound))
	in := wire.NewReader(boot)
	from := new(wire.FromGuest)
	if err := in.Read(from); err != nil || from.GetHello().GetVersion() != wire.Version {
		t.Fatalf("%v, %v", from, err)
	}
	setup := &wire.Setup{Hostname: "real", UnixNanos: time.Now().UnixNano(), MaxTasks: 4}
	for _, m := range vm.Mounts() {
		setup.Mounts = append(setup.Mounts, &wire.Mount{Tag: m.Tag, Type: m.Type, Path: m.GuestPath, ReadOnly: m.ReadOnly})
	}
	if err := wire.Write(boot, &wire.FromHost{Kind: &wire.FromHost_Setup{Setup: setup}}); err != nil {
		t.Fatal(err)
	}
	from.Reset()
	if err := in.Read(from); err != nil || from.GetReady() == nil || from.GetReady().Error != "" {
		t.Fatalf("%v, %v", from, err)
	}

	c, err := vm.Dial(t.Context(), wire.PortAgent)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(bound))
	// The marker makes the process recognisable from outside.
	marker := fmt.Sprintf("%d.%d", 3600+os.Getpid(), time.Now().UnixNano()%1e6)
	err = wire.Write(c, &wire.Call{Kind: &wire.Call_Exec{Exec: &wire.Exec{
		Argv: []string{"/bin/sh", "-c", "echo out; sleep " + marker}, Cwd: "/", User: fmt.Sprint(os.Getuid()), Id: fmt.Sprintf("t%dx1", os.Getpid()), // package agent's tests kill those of theirs
	}}})
	if err != nil {
		t.Fatal(err)
	}
	out := wire.NewReader(c)
	var said string
	for said != "out\n" {
		o := new(wire.Output)
		if err := out.Read(o); err != nil || o.GetFailed() != nil || o.GetExit() != nil {
			t.Fatalf("%v, %v", o, err)
		}
		said += string(o.GetStdout())
	}
	if n := running(t, marker); n == 0 {
		t.Fatal("the task's process is not found: no proof")
	}
	if err := vm.Kill(); err != nil {
		t.Error(err)
	}
	if err := vm.Wait(); err != nil {
		t.Error(err)
	}
	deadline := time.Now().Add(bound)
	for running(t, marker) > 0 {
		if time.Now().After(deadline) {
			t.Fatal("a task outlives its guest")
		}
		time.Sleep(5 * time.Millisecond) // the kernel ends killed processes in its own time
	}
}

// running counts the processes with word among their arguments.
func running(t *testing.T, word string) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && strings.Contains(string(b), word) {
			n++
		}
	}
	return n
}
