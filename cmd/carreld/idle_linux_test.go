package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// restful makes policy.yaml say when idle guests are paused and stopped.
func (w *world) restful(idle string) {
	w.t.Helper()
	dir := filepath.Join(w.home, "config")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	write(w.t, filepath.Join(dir, "policy.yaml"), "version: 1\nidle: "+idle+"\n")
}

// rests waits until a guest is paused.
func rests(t *testing.T, c *client.Client, name string) *api.Guest {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		g, err := c.Guest(t.Context(), name)
		switch {
		case err == nil && g.Paused != nil:
			return g
		case err != nil || time.Now().After(deadline):
			t.Fatalf("guest %s is not paused: %v, %v", name, g, err)
		}
	}
}

// switches is how often a process's threads were put on a processor.
func switches(t *testing.T, pid int) (n int) {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid)) // the pattern is sound
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // that thread is gone
		}
		for line := range strings.Lines(string(text)) {
			if name, value, _ := strings.Cut(line, ":"); strings.HasSuffix(name, "voluntary_ctxt_switches") {
				var k int
				fmt.Sscan(value, &k)
				n += k
			}
		}
	}
	if n == 0 {
		t.Fatalf("process %d has never run", pid)
	}
	return n
}

// While a guest is idle, and while it is paused, daemon and keeper wait for its time
// and for whoever needs it, and look for neither.
func TestIdleWakesNobody(t *testing.T) {
	w := newRing2(t)
	w.restful("{pause: 30s, stop: 720h}")
	w.start()
	c := w.client()
	g, err := c.StartGuest(t.Context(), &api.GuestSpec{Name: "box", MemoryMib: 128, DiskMib: 64}, client.GuestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const window = 2 * time.Second
	count := func(f func(), pids ...int) (n int) {
		for _, pid := range pids {
			n -= switches(t, pid)
		}
		f()
		for _, pid := range pids {
			n += switches(t, pid)
		}
		return n
	}
	keeper := int(g.KeeperPid)
	quiet := func(when string) {
		t.Helper()
		// Go collects garbage and gives memory back by itself for a while after work.
		least := -1
		for deadline := time.Now().Add(patience); least != 0; {
			n := count(func() { time.Sleep(window) }, w.d.Process.Pid, keeper)
			if least < 0 || n < least {
				least = n
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: daemon and keeper woke up %d times in the quietest %v of %v", when, least, window, patience)
			}
		}
	}
	for deadline := time.Now().Add(patience); ; {
		quiet("before the pause")
		g, err := c.Guest(t.Context(), "box")
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("it was quiet only when it was paused, or %v", err)
		}
		if g.Paused == nil {
			break
		}
		p, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"true"}}) // on a slow machine: once more
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	// Who asks whether it is paused asks the daemon.
	if n := count(func() { rests(t, c, "box") }, keeper); n == 0 {
		t.Error("the control: its keeper did not wake up for the pause")
	}
	quiet("while it is paused")
	if g, err := c.Guest(t.Context(), "box"); err != nil || g.Paused == nil {
		t.Errorf("it was not paused meanwhile: %v, %v", g, err)
	}
}
