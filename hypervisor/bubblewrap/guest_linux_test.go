package bubblewrap

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
	"github.com/carrel-vm/carrel/hypervisor/wall"
)

// guest is one with the real agent.
type guest struct {
	hypervisor.VM
	t     testing.TB
	d     *Driver
	tasks *int
	boot  *wire.Reader
}

// config is that of a guest whose system is the host's.
func config(t testing.TB) hypervisor.Config {
	return hypervisor.Config{Name: "wall", Dir: t.TempDir(), Kernel: "/none", Initrd: "/none", Root: HostRoot, CPUs: 1, MemoryMiB: 512}
}

// share adds a folder to a Config and returns the pin for it.
func share(t testing.TB, cfg *hypervisor.Config, s hypervisor.Share) Pin {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(s.Path, &st); err != nil {
		t.Fatal(err)
	}
	s.Tag = fmt.Sprint("share", len(cfg.Shares))
	s.Plain = true // the share server is tried with the keeper that it needs
	if s.GuestPath == "" {
		s.GuestPath = s.Path
	}
	cfg.Shares = append(cfg.Shares, s)
	return Pin{Path: s.Path, Dev: st.Dev, Ino: st.Ino}
}

// start starts a guest and sets it up.
func start(t testing.TB, cfg hypervisor.Config, pins ...Pin) *guest {
	t.Helper()
	return startWith(t, func(o *Options) { o.Pins = pins }, cfg)
}

func startWith(t testing.TB, change func(*Options), cfg hypervisor.Config) *guest {
	t.Helper()
	d := newDriver(t, hypervisortest.Agent(t))
	change(&d.opts)
	var console wall.Tail
	vm, err := d.Create(t.Context(), cfg, hypervisor.Handlers{Console: console.Add})
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{VM: vm, t: t, d: d, tasks: new(int)}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("console: %s", console.Text())
		}
	})
	ln, err := vm.Listen(wire.PortBoot)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { ln.Close() })
	defer late.Stop()
	boot, err := ln.Accept()
	if err != nil {
		t.Fatal("no boot stream: ", err)
	}
	t.Cleanup(func() { boot.Close() })
	boot.SetDeadline(time.Now().Add(patience))
	g.boot = wire.NewReader(boot)
	from := new(wire.FromGuest)
	if err := g.boot.Read(from); err != nil || from.GetHello() == nil {
		t.Fatalf("no hello: %v, %v", from, err)
	}
	setup := &wire.Setup{Hostname: cfg.Name, UnixNanos: time.Now().UnixNano(), MaxTasks: 4}
	for _, m := range vm.Mounts() {
		setup.Mounts = append(setup.Mounts, &wire.Mount{Tag: m.Tag, Type: m.Type, Path: m.GuestPath, ReadOnly: m.ReadOnly, Overlay: m.Overlay})
	}
	if err := wire.Write(boot, &wire.FromHost{Kind: &wire.FromHost_Setup{Setup: setup}}); err != nil {
		t.Fatal(err)
	}
	from.Reset()
	if err := g.boot.Read(from); err != nil || from.GetReady() == nil || from.GetReady().Error != "" {
		t.Fatalf("not ready: %v, %v", from, err)
	}
	boot.SetDeadline(time.Time{})
	return g
}

// patience bounds each wait for what has to come. A test that passes does not take
// longer for it, and a busy machine may be slower than any guess.
const patience = 5 * time.Minute

// exec runs a command as user and returns what it wrote and its status, 128
// and more for a signal.
func (g *guest) exec(user string, argv ...string) (out string, status int) {
	g.t.Helper()
	c, err := g.Dial(g.t.Context(), wire.PortAgent)
	if err != nil {
		g.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	*g.tasks++
	err = wire.Write(c, &wire.Call{Kind: &wire.Call_Exec{Exec: &wire.Exec{Argv: argv, Cwd: "/", User: user, Id: fmt.Sprintf("t%dx%d", os.Getpid(), *g.tasks)}}}) // package agent's tests kill those of theirs
	if err != nil {
		g.t.Fatal(err)
	}
	r := wire.NewReader(c)
	var b strings.Builder
	for {
		o := new(wire.Output)
		if err := r.Read(o); err != nil {
			g.t.Fatalf("%q: %v after %q", argv, err, b.String())
		}
		switch k := o.Kind.(type) {
		case *wire.Output_Stdout:
			b.Write(k.Stdout)
		case *wire.Output_Stderr:
			b.Write(k.Stderr)
		case *wire.Output_Exit:
			if k.Exit.Signal != 0 {
				return b.String(), 128 + int(k.Exit.Signal)
			}
			return b.String(), int(k.Exit.Code)
		case *wire.Output_Failed:
			return b.String() + k.Failed.Message, int(k.Failed.Code)
		}
	}
}

// sh runs a shell command as the default user.
func (g *guest) sh(command string) string {
	g.t.Helper()
	out, _ := g.exec("", "/bin/sh", "-c", command)
	return strings.TrimSpace(out)
}
