//go:build linux || windows || darwin

package hypervisortest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
)

// Suite is a driver for Conformance, with guests that run guestprog.
type Suite struct {
	// New makes a driver.
	New func(t *testing.T) hypervisor.Driver
	// Config is that of a guest that is to come up; the suite sets Name and Dir.
	Config hypervisor.Config
	// Machine says that the guest is one: a dial to a port on which nobody
	// listens fails at once, it has disks, and its kernel has a command line.
	Machine bool
	// Kills is how many guests are killed at some moment of their start.
	Kills int
	// Boot is how long a guest may take to say hello where nothing else runs. The
	// kills are spread over the first part of it.
	Boot time.Duration
	// Murder ends a guest from outside, where the suite cannot do it by a signal
	// to its own children; Left says what the driver holds on to after a guest, or
	// nothing. Linux needs neither.
	Murder func(t testing.TB)
	Left   func() string
}

// Conformance checks what every driver promises. Each guest that it starts is
// watched for what it leaves behind: processes, files, descriptors, mounts and
// goroutines.
func Conformance(t *testing.T, s Suite) {
	t.Run("Life", func(t *testing.T) { s.life(t) })
	t.Run("Streams", func(t *testing.T) { s.streams(t) }) // one guest for all of its parts
	t.Run("Pause", func(t *testing.T) { s.pause(t) })
	t.Run("Endings", func(t *testing.T) { s.endings(t) })
	t.Run("KillAnyMoment", func(t *testing.T) { s.killAnyMoment(t) })
}

// guest is one guest of the suite.
type guest struct {
	hypervisor.VM
	t     testing.TB
	boot  net.Conn
	lines *bufio.Reader

	mu      sync.Mutex
	console []byte
	printed int
}

// bound is how long the suite waits for what has to come. A driver that passes does
// not take longer for it, and a busy host may be slower than any guess.
const bound = 5 * time.Minute

// leaked says which goroutines are left beside those of before. Those that have yet to
// be run to their end are waited for.
func leaked(before goleak.Option) error {
	err := goleak.Find(before)
	for end := time.Now().Add(bound); err != nil && time.Now().Before(end); {
		err = goleak.Find(before) // which takes half a second
	}
	return err
}

// consoleKept is how much of a console a failing test prints, in bytes.
const consoleKept = 2 << 10

func (g *guest) print(p []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.printed += len(p)
	if g.console = append(g.console, p...); len(g.console) > consoleKept {
		g.console = append(g.console[:0], g.console[len(g.console)-consoleKept:]...)
	}
}

func (g *guest) printedBytes() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.printed
}

// create makes a guest and arranges that, when the test ends, it is closed and
// must have left nothing.
func (s Suite) create(t *testing.T, cmdline ...string) *guest {
	t.Helper()
	before := s.look(t)
	cfg := s.Config
	cfg.Name, cfg.Dir = "conformance", t.TempDir()
	cfg.Cmdline = append(cfg.Cmdline[:len(cfg.Cmdline):len(cfg.Cmdline)], cmdline...)
	g := &guest{t: t}
	vm, err := s.New(t).Create(t.Context(), cfg, hypervisor.Handlers{Console: g.print})
	if err != nil {
		t.Fatal(err)
	}
	g.VM = vm
	t.Cleanup(func() {
		if g.boot != nil {
			g.boot.Close()
		}
		if err := vm.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		before.compare(t, cfg.Dir)
		if t.Failed() {
			t.Logf("console: %q\nagain: go test -run '%s'", g.console, t.Name())
		}
	})
	return g
}

// start starts a guest and takes its hello.
func (s Suite) start(t *testing.T, cmdline ...string) *guest {
	t.Helper()
	g := s.create(t, cmdline...)
	ln, err := g.Listen(guestport.Boot)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ran := time.Now()
	g.boot = accept(t, ln)
	ln.Close()
	g.lines = bufio.NewReader(g.boot)
	g.boot.SetReadDeadline(time.Now().Add(bound))
	if line, err := g.lines.ReadString('\n'); line != "hello\n" {
		t.Fatalf("the guest said %q: %v", line, err)
	}
	t.Logf("runs after %v, hello after %v", ran.Sub(begun), time.Since(begun))
	return g
}

func accept(t testing.TB, ln net.Listener) net.Conn {
	t.Helper()
	timer := time.AfterFunc(bound, func() { ln.Close() })
	defer timer.Stop()
	c, err := ln.Accept()
	if err != nil {
		t.Fatalf("the guest did not dial within %v: %v", bound, err)
	}
	return c
}

// ask has the guest do one thing and returns its answer.
func (g *guest) ask(word string) string {
	g.t.Helper()
	g.tell(word)
	g.boot.SetReadDeadline(time.Now().Add(bound))
	line, err := g.lines.ReadString('\n')
	if err != nil {
		g.t.Fatalf("%s: %v", word, err)
	}
	return strings.TrimSpace(strings.TrimPrefix(line, "done"))
}

// tell asks for what has no answer.
func (g *guest) tell(word string) {
	g.t.Helper()
	if _, err := fmt.Fprintln(g.boot, word); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) dial(port uint32) net.Conn {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), bound)
	defer cancel()
	c, err := g.Dial(ctx, port)
	if err != nil {
		g.t.Fatalf("dial port %d: %v", port, err)
	}
	g.t.Cleanup(func() { c.Close() })
	return c
}

// waitWithin is Wait with a bound.
func (g *guest) waitWithin(d time.Duration) error {
	g.t.Helper()
	got := make(chan error, 1)
	go func() { got <- g.Wait() }()
	select {
	case err := <-got:
		return err
	case <-time.After(d):
		g.t.Errorf("the guest is not gone after %v", d)
		g.Kill()
		return <-got
	}
}

// life goes through the states of a guest that never runs, and of one that does.
func (s Suite) life(t *testing.T) {
	t.Run("NeverStarted", func(t *testing.T) {
		g := s.create(t)
		if c, err := g.Dial(t.Context(), guestport.Echo); !errors.Is(err, hypervisor.ErrNotReady) {
			t.Errorf("dial before the start: %v, %v", c, err)
		}
		ln, err := g.Listen(guestport.Boot)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if _, err := ln.Accept(); err == nil {
			t.Error("a listener of a closed guest accepts")
		}
		if err := g.Wait(); err != nil {
			t.Errorf("a guest that was closed before its start: %v", err)
		}
		if err := g.Start(t.Context()); err == nil {
			t.Error("started after Close")
		}
	})
	t.Run("BadConfig", func(t *testing.T) {
		for name, change := range map[string]func(*hypervisor.Config){
			"no name":     func(c *hypervisor.Config) { c.Name = "" },
			"a path":      func(c *hypervisor.Config) { c.Name = "../x" },
			"no CPU":      func(c *hypervisor.Config) { c.CPUs = 0 },
			"no memory":   func(c *hypervisor.Config) { c.MemoryMiB = 0 },
			"relative":    func(c *hypervisor.Config) { c.Kernel = "vmlinuz" },
			"wrong share": func(c *hypervisor.Config) { c.Shares = []hypervisor.Share{{Tag: "x"}} },
		} {
			cfg := s.Config
			cfg.Name, cfg.Dir = "conformance", t.TempDir()
			change(&cfg)
			if vm, err := s.New(t).Create(t.Context(), cfg, hypervisor.Handlers{}); err == nil {
				vm.Close()
				t.Errorf("%s: created", name)
			}
		}
	})
	t.Run("OrderlyEnd", func(t *testing.T) {
		g := s.start(t)
		if err := g.Start(t.Context()); err == nil {
			t.Error("started twice")
		}
		if got := len(g.Mounts()); got != len(s.Config.Shares) {
			t.Errorf("%d mounts for %d shares", got, len(s.Config.Shares))
		}
		if free := g.ask("clock"); free == "" {
			t.Error("no answer on the boot stream")
		}
		open := g.dial(guestport.Stall)
		g.tell("poweroff")
		if err := g.waitWithin(bound); err != nil {
			t.Errorf("its own orderly end: %v", err)
		}
		open.SetReadDeadline(time.Now().Add(bound))
		var ne net.Error
		if n, err := open.Read(make([]byte, 1)); err == nil || errors.As(err, &ne) && ne.Timeout() {
			t.Errorf("a stream outlives its guest: %d, %v", n, err)
		}
		if _, err := g.Dial(t.Context(), guestport.Echo); !errors.Is(err, hypervisor.ErrGone) {
			t.Errorf("dial after the end: %v", err)
		}
		if _, err := g.Listen(guestport.Boot); !errors.Is(err, hypervisor.ErrGone) {
			t.Errorf("listen after the end: %v", err)
		}
		if err := g.Pause(t.Context()); !errors.Is(err, hypervisor.ErrGone) {
			t.Errorf("pause after the end: %v", err)
		}
		for range 2 {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// readAll reads to the end within a bound.
func readAll(c net.Conn, d time.Duration) ([]byte, error) {
	c.SetReadDeadline(time.Now().Add(d))
	return io.ReadAll(c)
}
