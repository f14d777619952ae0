package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
	"github.com/carrel-vm/carrel/hypervisor/qemu/vhostuser"
)

// testConfig is a guest whose init is the conformance suite's program. Its root
// and scratch disk are files of zeros: that guest does not mount them.
func testConfig(t testing.TB) hypervisor.Config {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"root", "scratch"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return hypervisor.Config{
		Name: "test", Dir: dir, Kernel: hypervisortest.Kernel(t), Initrd: hypervisortest.Initrd(t, hypervisortest.Guest(t)),
		Root: filepath.Join(dir, "root"), Scratch: filepath.Join(dir, "scratch"), CPUs: 2, MemoryMiB: 256,
	}
}

func TestConformance(t *testing.T) {
	d := New(Options{Shim: []string{self(t), "confine"}, CacheDir: t.TempDir()})
	hypervisortest.Conformance(t, hypervisortest.Suite{
		New:     func(t *testing.T) hypervisor.Driver { return d },
		Config:  testConfig(t),
		Machine: true,
		Kills:   6,
		Boot:    30 * time.Second,
	})
	t.Logf("qemu %v, %+v", d.last.version, d.Accel())
}

// start starts a guest that is closed when the test ends.
func start(t *testing.T, cfg hypervisor.Config) *VM {
	t.Helper()
	d := New(Options{Shim: []string{self(t), "confine"}, CacheDir: t.TempDir()})
	vm, err := d.Create(t.Context(), cfg, hypervisor.Handlers{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return vm.(*VM)
}

// TestRealConfinement looks at a running QEMU from outside.
func TestRealConfinement(t *testing.T) {
	cfg := testConfig(t)
	cfg.Cmdline = []string{"guestprog.mute=1"} // else it ends: nobody listens
	v := start(t, cfg)
	proc := fmt.Sprintf("/proc/%d/", v.proc.cmd.Process.Pid)
	read := func(name string) string {
		b, err := os.ReadFile(proc + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	status := read("status")
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000"} {
		if !strings.Contains(status, want+"\n") {
			t.Errorf("no %q in its status", want)
		}
	}
	if os.Geteuid() == 0 && !strings.Contains(status, "CapBnd:\t0000000000000000\n") {
		t.Error("its bounding set is not empty")
	}
	if env := read("environ"); env != "" {
		t.Errorf("its environment is %q", env)
	}
	limits := read("limits")
	if !regexp.MustCompile(`Max core file size +0 +0 `).MatchString(limits) || !regexp.MustCompile(`Max open files +1024 +1024 `).MatchString(limits) {
		t.Error(limits)
	}
	// What it holds open: the guest's files, its memory, and the ends of our
	// socket pairs. Nothing else has a name or leads out.
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	sockets := 0
	for _, fd := range fds {
		to, err := os.Readlink(proc + "fd/" + fd.Name())
		if err != nil {
			continue // closed meanwhile
		}
		switch {
		case strings.HasPrefix(to, "socket:"):
			sockets++
		case strings.HasPrefix(to, "pipe:"), strings.HasPrefix(to, "anon_inode:"), strings.HasPrefix(to, "/memfd:"), to == "/dev/null":
		case to == v.cfg.Root, to == v.cfg.Scratch:
		default:
			t.Errorf("descriptor %s is %s", fd.Name(), to)
		}
	}
	if sockets != 3 {
		t.Errorf("%d sockets; qmp, console and vsock are 3", sockets)
	}
	if argv := v.driver.CommandLine(); len(argv) == 0 || argv[0] != v.facts.binary || v.driver.Accel().Name == "" {
		t.Errorf("command line %q, accelerator %+v", argv, v.driver.Accel())
	}
}

// idleShare is a share's server whose device never answers a request: enough
// for QEMU and for a guest that mounts nothing.
type idleShare struct {
	done chan error
}

func (*idleShare) Features() uint64                       { return 0 }
func (*idleShare) Queues() int                            { return 2 }
func (*idleShare) Config() []byte                         { return nil }
func (*idleShare) QueueReady(int, *vhostuser.Queue, bool) {}
func (*idleShare) Kick(int, *vhostuser.Queue)             {}
func (*idleShare) QueueStopped(int)                       {}
func (s *idleShare) Close() error                         { return <-s.done }

func (s *idleShare) Serve(c hypervisor.Carrier, f *os.File) error {
	conn, err := net.FileConn(f)
	if err != nil || c != hypervisor.VirtioFS {
		return fmt.Errorf("%s: %v", c, err)
	}
	go func() {
		defer conn.Close()
		s.done <- vhostuser.Serve(context.Background(), conn.(*net.UnixConn), s)
	}()
	return nil
}

func serveIdle(context.Context, int, hypervisor.Share) (hypervisor.ShareServer, error) {
	return &idleShare{done: make(chan error, 1)}, nil
}

// TestAllSlots starts a guest with as many shares as fit, so that every slot of
// the machine is taken.
func TestAllSlots(t *testing.T) {
	defer goleak.VerifyNone(t)
	cfg := testConfig(t)
	for i := range MaxShares(cfg) {
		cfg.Shares = append(cfg.Shares, hypervisor.Share{Tag: fmt.Sprintf("share%d", i), Path: "/tmp", GuestPath: fmt.Sprintf("/share%d", i), ReadOnly: i == 0})
	}
	d := New(Options{Shim: []string{self(t), "confine"}, CacheDir: t.TempDir()})
	vm, err := d.Create(t.Context(), cfg, hypervisor.Handlers{Share: serveIdle})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	}()
	ln, err := vm.Listen(guestport.Boot)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ms := vm.Mounts()
	if len(ms) != len(cfg.Shares) || ms[0] != (hypervisor.Mount{Tag: "share0", Type: "virtiofs", GuestPath: "/share0", ReadOnly: true}) {
		t.Errorf("mounts %+v", ms)
	}
	boot, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer boot.Close()
	boot.SetDeadline(time.Now().Add(patience))
	fmt.Fprintln(boot, "devices")
	r := bufio.NewReader(boot)
	r.ReadString('\n') // hello
	if line, err := r.ReadString('\n'); line != fmt.Sprintf("done %d\n", Slots) {
		t.Errorf("the guest has another number of devices than %d: %q, %v", Slots, line, err)
	}
}

// TestStartFails: what cannot start says why and leaves nothing.
func TestStartFails(t *testing.T) {
	cfg := testConfig(t)
	cfg.Cmdline = []string{"guestprog.mute=1"} // else it ends: nobody listens
	other := start(t, cfg)
	for _, tc := range []struct {
		name   string
		change func(*VM)
		want   string
	}{
		{"not a kernel", func(v *VM) { v.cfg.Kernel = v.cfg.Root }, "kernel"},
		{"not confined", func(v *VM) { v.spec.ReadOnly = append(v.spec.ReadOnly, "/nowhere") }, "confine: Landlock"},
		{"no shim", func(v *VM) { v.driver.opts.Shim = nil }, "no command that confines"},
		{"a shim that does nothing", func(v *VM) { v.driver.opts.Shim = []string{"/bin/true"} }, "qemu's monitor"},
		{"root image is scratch disk", func(v *VM) { v.cfg.Scratch = v.cfg.Root }, "lock"},
		{"scratch disk in use", func(v *VM) { v.cfg.Scratch = other.cfg.Scratch }, "lock"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := New(Options{Shim: []string{self(t), "confine"}, CacheDir: t.TempDir()})
			vm, err := d.Create(t.Context(), testConfig(t), hypervisor.Handlers{})
			if err != nil {
				t.Fatal(err)
			}
			tc.change(vm.(*VM))
			err = vm.Start(t.Context())
			var he *hypervisor.Error
			if !errors.As(err, &he) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
			if left := hypervisortest.Children(os.Getpid()); len(left) != 1 {
				t.Errorf("beside the other guest's process: %v", left)
			}
		})
	}
}

// TestMissingParts: Create names the part and the cure.
func TestMissingParts(t *testing.T) {
	d := New(Options{Shim: []string{self(t), "confine"}, CacheDir: t.TempDir()})
	for want, change := range map[string]func(*hypervisor.Config){
		"kernel":       func(c *hypervisor.Config) { c.Kernel = "/nowhere/vmlinuz" },
		"initrd":       func(c *hypervisor.Config) { c.Initrd = "/" },
		"root image":   func(c *hypervisor.Config) { c.Root = "/dev/null" },
		"scratch disk": func(c *hypervisor.Config) { c.Scratch = "/nowhere/disk" },
		"shares":       func(c *hypervisor.Config) { c.Shares = []hypervisor.Share{{Tag: "share0", Path: "/tmp"}} },
	} {
		cfg := testConfig(t)
		change(&cfg)
		if _, err := d.Create(t.Context(), cfg, hypervisor.Handlers{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %s: %v", want, err)
		}
	}
}

// TestConsoleRate: a flood costs the host no more than its bound, and nothing
// of it is lost.
func TestConsoleRate(t *testing.T) {
	ours, theirs, err := socketPair("console")
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	const total = consoleRate / 2
	go func() {
		theirs.Write(bytes.Repeat([]byte{'x'}, total))
		theirs.Close()
	}()
	begin, n := time.Now(), 0
	if line := drainConsole(ours, func(p []byte) { n += len(p) }); line != "" || n != total {
		t.Errorf("%q after %d bytes of %d", line, n, total)
	}
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("half a second's worth took %v", took)
	}
}
