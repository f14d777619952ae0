package agent

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

func TestSetupRefused(t *testing.T) {
	h := newHost(t)
	// Before Setup nothing runs.
	s := h.exec(&wire.Exec{Argv: []string{"/bin/true"}})
	s.wait()
	if s.failed == nil || !strings.Contains(s.failed.Message, "not set up") {
		t.Fatalf("%v %v", s.exit, s.failed)
	}
	e := h.setUp(&wire.Setup{UnixNanos: 1, Mounts: []*wire.Mount{{Tag: "share0", Type: "virtiofs", Path: "/mnt"}}})
	if !strings.Contains(e, "mounts nothing") {
		t.Fatalf("ready says %q", e)
	}
	for _, m := range []*wire.Mount{{Tag: "share0", Type: "none", Path: "mnt"}, {Tag: "../x", Type: "none", Path: "/mnt"}, {Tag: "share0", Type: "none", Path: "/a\x00b"}} {
		if e := newHost(t).setUp(&wire.Setup{UnixNanos: 1, Mounts: []*wire.Mount{m}}); !strings.Contains(e, "malformed") {
			t.Fatalf("ready says %q to %v", e, m)
		}
	}
	if e := newHost(t).setUp(&wire.Setup{UnixNanos: 1, Mounts: []*wire.Mount{{Tag: "share0", Type: "none", Path: "/mnt"}}}); e != "" {
		t.Fatalf("control: ready says %q", e)
	}
}

func TestControl(t *testing.T) {
	h := ready(t)
	if a := h.control(&wire.Control{Id: 7, Kind: &wire.Control_Ping{Ping: &wire.Ping{}}}); a.Id != 7 || a.Error != "" {
		t.Fatalf("answer %v", a)
	}
	if a := h.control(&wire.Control{Id: 8}); a.Id != 8 || a.Error == "" {
		t.Fatalf("answer to nothing: %v", a)
	}
}

// TestPowerOff: tasks are asked first and killed after the grace; the answer
// comes when they have ended, and then the agent ends.
func TestPowerOff(t *testing.T) {
	t.Run("asked", func(t *testing.T) { // it is not killed, so the grace is never waited out
		h := ready(t)
		polite := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.05; done"}})
		polite.until("up\n")
		powerOff(t, h, maxGrace)
		polite.wait()
		polite.wantExit(9, 0)
	})
	t.Run("killed", func(t *testing.T) {
		h := ready(t)
		rude := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"}})
		rude.until("up\n")
		start := time.Now()
		powerOff(t, h, time.Second)
		if d := time.Since(start); d < 900*time.Millisecond {
			t.Errorf("answered after %v, grace was 1s", d)
		}
		rude.wait()
		rude.wantExit(0, int32(unix.SIGKILL))
	})
}

// powerOff asks for the end, and waits for the answer and the agent's end.
func powerOff(t *testing.T, h *host, grace time.Duration) {
	t.Helper()
	if a := h.control(&wire.Control{Id: 1, Kind: &wire.Control_PowerOff{PowerOff: &wire.PowerOff{GraceNanos: int64(grace)}}}); a.Error != "" {
		t.Fatal(a.Error)
	}
	select {
	case err := <-h.ended:
		if err != nil {
			t.Fatal(err)
		}
		h.ended <- nil
	case <-time.After(patience):
		t.Fatal("the agent goes on")
	}
}

// TestHostGone: the end of the boot stream ends all tasks and the agent.
func TestHostGone(t *testing.T) {
	h := ready(t)
	const mark = "6543.21"
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "echo up; exec sleep " + mark}})
	s.until("up\n")
	_ = h.boot.Close()
	select {
	case err := <-h.ended:
		if err == nil {
			t.Fatal("a lost host is no error")
		}
		h.ended <- err
	case <-time.After(patience):
		t.Fatal("the agent goes on without its host")
	}
	gone(t, mark)
}

func TestMaxTasks(t *testing.T) {
	h := newHost(t)
	if e := h.setUp(&wire.Setup{UnixNanos: 1, MaxTasks: 1}); e != "" {
		t.Fatal(e)
	}
	s := h.exec(&wire.Exec{Argv: []string{"/bin/cat"}, Stdin: true})
	s.stdin("up\n")
	s.until("up\n")
	over := h.exec(&wire.Exec{Argv: []string{"/bin/true"}})
	over.wait()
	if over.failed == nil || over.failed.Code != 125 || !strings.Contains(over.failed.Message, "limit") {
		t.Fatalf("%v %v", over.exit, over.failed)
	}
	s.closeStdin()
	s.wait()
	// The place is free once the host has seen the end: a hundred in a row.
	for range 100 {
		h.sh("true").wantExit(0, 0)
	}
}

func TestBadFrames(t *testing.T) {
	h := ready(t)
	closed := func(c net.Conn) {
		t.Helper()
		b := make([]byte, 1)
		if n, err := c.Read(b); err == nil || n != 0 || !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			t.Fatalf("read %d, %v: the agent answers", n, err)
		}
	}
	for _, frame := range []string{"\xff\xff\xff\xff\x7f", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "\x03\xff\xff\xff", "\x00", "\x81\x80\x40"} {
		c := h.dialPort(wire.PortAgent)
		if _, err := c.Write([]byte(frame)); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		closed(c)
	}
	closed(h.dialPort(wire.PortEgress))
	// An unknown Input frame ends the task.
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "echo up; exec sleep 100"}})
	s.until("up\n")
	s.send(&wire.Input{})
	s.wait()
	s.wantExit(0, 9)
	h.sh("true").wantExit(0, 0)
}

// TestAgentKilled: a task does not outlive its agent, even if that is killed.
func TestAgentKilled(t *testing.T) {
	var cmd *exec.Cmd
	h := hostOf(t, func(boot, calls *os.File) <-chan error {
		cmd = exec.Command("/proc/self/exe")
		cmd.Args = []string{asAgent}
		cmd.ExtraFiles = []*os.File{boot, calls}
		cmd.Stderr = os.Stderr
		err := cmd.Start()
		_, _ = boot.Close(), calls.Close()
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		return ended
	})
	if e := h.setUp(&wire.Setup{UnixNanos: 1, MaxTasks: 4}); e != "" {
		t.Fatal(e)
	}
	const mark = "5432.1"
	user := strconv.Itoa(os.Geteuid())
	if user == "0" {
		user = "1000" // a change of user must not lose the bond
	}
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sleep", mark}, User: user, Cwd: "/"})
	for !s.started {
		if !s.next() || s.failed != nil {
			t.Fatalf("%v %v", s.exit, s.failed)
		}
	}
	if !alive(mark) {
		t.Fatal("control: the task does not run")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	gone(t, mark)
	for s.next() {
	}
	if s.exit != nil {
		t.Fatal("a killed agent said how the task ended")
	}
}
