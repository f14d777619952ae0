package seatbelt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/carrel-vm/carrel/guest/wire"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
)

// real is a guest of the real agent, beside its tasks, as macOS would start it
// and without a wall.
type real struct {
	t    *testing.T
	vm   hypervisor.VM
	boot net.Conn
	r    *wire.Reader
	id   int
}

func startReal(t *testing.T, agent string, setup *wire.Setup) *real {
	t.Helper()
	cfg := hypervisor.Config{
		Name: "real", Dir: t.TempDir(), Kernel: "/k", Initrd: "/i", Root: HostRoot, CPUs: 1, MemoryMiB: 128,
		Shares: []hypervisor.Share{{Tag: "share0", Path: "/tmp", GuestPath: "/tmp", ReadOnly: true}},
	}
	var console tail
	v, err := (&Bare{Agent: agent}).Create(t.Context(), cfg, hypervisor.Handlers{Console: console.add})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) > 0 {
			t.Errorf("left in the guest's folder: %v, %v", left, err)
		}
		if t.Failed() {
			t.Logf("console: %s", console.text())
		}
	})
	g := &real{t: t, vm: v}
	ln, err := v.Listen(wire.PortBoot)
	if err != nil {
		t.Fatal(err)
	}
	if setup.Egress {
		out, err := v.Listen(wire.PortEgress)
		if err != nil {
			t.Fatal(err)
		}
		serveOutside(t, out)
	}
	if err := v.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(patience, func() { ln.Close() })
	g.boot, err = ln.Accept()
	stop.Stop()
	ln.Close()
	if err != nil {
		t.Fatalf("no hello: %v", err)
	}
	t.Cleanup(func() { g.boot.Close() })
	g.r = wire.NewReader(g.boot)
	for _, m := range v.Mounts() {
		setup.Mounts = append(setup.Mounts, &wire.Mount{Tag: m.Tag, Type: m.Type, Path: m.GuestPath, ReadOnly: m.ReadOnly})
	}
	if f := g.read(); f.GetHello().GetVersion() != wire.Version {
		t.Fatalf("hello: %v", f)
	}
	g.write(&wire.FromHost{Kind: &wire.FromHost_Setup{Setup: setup}})
	if f := g.read(); f.GetReady() == nil || f.GetReady().Error != "" || (f.GetReady().Steering == "proxy") != setup.Egress {
		t.Fatalf("ready: %v", f)
	}
	return g
}

func (g *real) read() *wire.FromGuest {
	g.t.Helper()
	_ = g.boot.SetReadDeadline(time.Now().Add(patience))
	f := new(wire.FromGuest)
	if err := g.r.Read(f); err != nil {
		g.t.Fatalf("read from the agent: %v", err)
	}
	return f
}

func (g *real) write(f *wire.FromHost) {
	g.t.Helper()
	if err := wire.Write(g.boot, f); err != nil {
		g.t.Fatal(err)
	}
}

// task is the last one's id, which no other on this machine has: package agent's tests
// kill those of theirs by it.
func (g *real) task() string { return fmt.Sprintf("t%dx%d", os.Getpid(), g.id) }

// start runs a script and returns its stream.
func (g *real) start(script string) (net.Conn, *wire.Reader) {
	g.t.Helper()
	c, err := g.vm.Dial(g.t.Context(), wire.PortAgent)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	g.id++
	e := &wire.Exec{Argv: []string{"/bin/sh", "-c", script}, Id: g.task()}
	if err := wire.Write(c, &wire.Call{Kind: &wire.Call_Exec{Exec: e}}); err != nil {
		g.t.Fatal(err)
	}
	return c, wire.NewReader(c)
}

// sh runs a script to its end and returns what it printed.
func (g *real) sh(script string) (out string, code int32) {
	g.t.Helper()
	_, r := g.start(script)
	for {
		o := new(wire.Output)
		if err := r.Read(o); err != nil || o.GetFailed() != nil {
			g.t.Fatalf("%s: %v, %v; so far %q", script, o, err, out)
		}
		out += string(o.GetStdout()) + string(o.GetStderr())
		if x := o.GetExit(); x != nil {
			return out, x.Code
		}
	}
}

// serveOutside is the host's end of a guest's connections, in place of an egress
// process: it says what it was asked for, and refuses what is called so.
func serveOutside(t *testing.T, ln net.Listener) {
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				o := new(wire.Open)
				r := &byByte{c}
				if err := (protodelim.UnmarshalOptions{MaxSize: 4096}).UnmarshalFrom(r, o); err != nil || o.Host == "refused.example" {
					return
				}
				b := make([]byte, 4096)
				n, _ := c.Read(b)
				line, _, _ := strings.Cut(string(b[:n]), "\r\n")
				body := fmt.Sprintf("%s:%d for %s: %s\n", o.Host, o.Port, o.Task, line)
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); all.Wait() })
}

type byByte struct{ net.Conn }

func (b *byByte) ReadByte() (byte, error) {
	var p [1]byte
	_, err := io.ReadFull(b, p[:])
	return p[0], err
}

// TestRealAgent: the agent that macOS would start runs tasks, takes their
// connections to the host through its proxy, and ends when it is asked to.
func TestRealAgent(t *testing.T) {
	agent := hypervisortest.BesideAgent(t)
	g := startReal(t, agent, &wire.Setup{Egress: true, MaxTasks: 8})
	if out, code := g.sh(`echo "$HOME|$TMPDIR|$USER"; cd; pwd; exit 3`); code != 3 || strings.Count(out, "/files/home") != 2 || !strings.Contains(out, "/files/tmp/|"+strconv.Itoa(os.Getuid())) {
		t.Errorf("%q, %d", out, code)
	}
	// Each as its task, with the password that is in the environment.
	for script, want := range map[string]string{
		"curl -sS http://plain.example/a":                       "plain.example:80 for ",
		"curl -sS --proxy \"$ALL_PROXY\" http://socks.example/": "socks.example:80 for ",
		"curl -sS --proxytunnel http://tunnel.example:81/":      "tunnel.example:81 for ",
	} {
		if out, code := g.sh(script); code != 0 || !strings.HasPrefix(out, want+g.task()+": GET /") {
			t.Errorf("%s: %q, %d", script, out, code)
		}
	}
	if out, code := g.sh("curl -sS http://refused.example/"); code == 0 {
		t.Errorf("what the host refuses came through: %q", out)
	}
	// Somebody else of the loopback, who has no password.
	if out, _ := g.sh(`curl -sS -o /dev/null -w '%{http_code}' --proxy "$(echo $HTTP_PROXY | sed 's,//.*@,//,')" http://plain.example/`); out != "407" {
		t.Errorf("without the password: %q", out)
	}
	// No descriptor of the agent's reaches a task.
	if out, _ := g.sh("ls /proc/self/fd | tr '\\n' ' '"); strings.TrimSpace(out) != "0 1 2 3" { // 3 is ls's own
		t.Errorf("a task has descriptors %q", out)
	}
	g.write(&wire.FromHost{Kind: &wire.FromHost_Control{Control: &wire.Control{Id: 9, Kind: &wire.Control_PowerOff{PowerOff: &wire.PowerOff{GraceNanos: 1}}}}})
	if f := g.read(); f.GetAnswer().GetId() != 9 || f.GetAnswer().Error != "" {
		t.Errorf("power off: %v", f)
	}
	if err := g.vm.Wait(); err != nil {
		t.Errorf("its orderly end: %v", err)
	}
}

// TestAgentKilledByTask: a task that kills its agent ends the guest, and itself,
// though nothing is its parent any more and its session is its own; the host is
// told.
func TestAgentKilledByTask(t *testing.T) {
	g := startReal(t, hypervisortest.BesideAgent(t), &wire.Setup{MaxTasks: 8})
	_, r := g.start("sleep 1000 & echo $$ $! $PPID; wait")
	var pids []string
	for len(pids) < 3 {
		o := new(wire.Output)
		if err := r.Read(o); err != nil {
			t.Fatal(err)
		}
		pids = strings.Fields(string(o.GetStdout()))
	}
	v := g.vm.(*vm)
	for seen := false; !seen; time.Sleep(10 * time.Millisecond) { // it is looked for now and then
		v.signals.Lock()
		pid, _ := strconv.Atoi(pids[1])
		_, seen = v.seen[pid]
		v.signals.Unlock()
	}
	if _, r := g.start("kill -9 " + pids[2]); r == nil {
		t.Fatal()
	}
	var gone *hypervisor.GoneError
	if err := g.vm.Wait(); !errors.As(err, &gone) || !strings.Contains(gone.Cause, "signal 9") {
		t.Errorf("%v", err)
	}
	await(t, pids, "")
}

// TestKeeperGone: when the host's end of the boot stream is closed, as it is
// when the keeper dies, the agent ends its tasks and itself.
func TestKeeperGone(t *testing.T) {
	g := startReal(t, hypervisortest.BesideAgent(t), &wire.Setup{MaxTasks: 8})
	_, r := g.start("echo $$; exec sleep 1000")
	o := new(wire.Output)
	for len(o.GetStdout()) == 0 {
		if err := r.Read(o); err != nil {
			t.Fatal(err)
		}
	}
	g.boot.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = g.vm.Kill() })()
	var gone *hypervisor.GoneError
	if err := g.vm.Wait(); !errors.As(err, &gone) || !strings.Contains(gone.Cause, "status 1") {
		t.Errorf("%v", err)
	}
	await(t, []string{strings.TrimSpace(string(o.GetStdout()))}, "")
}
