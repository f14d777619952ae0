package seatbelt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

// On Linux the life of a guest is tested with this test program in the place of
// sandbox-exec and the agent, and with no wall.

const standIn = "CARREL_SEATBELT_STAND_IN"

// patience bounds each wait for what has to come. A test that passes does not take
// longer for it, and a busy machine may be slower than any guess.
const patience = 5 * time.Minute

func TestMain(m *testing.M) {
	if how := os.Getenv(standIn); how != "" {
		guest(how)
		return
	}
	goleak.VerifyTestMain(m)
}

// guest is the guest's first process.
func guest(how string) {
	boot := os.NewFile(3, "boot")
	switch how {
	case "serve": // says which children it has, and echoes what is dialled
		var pids []string
		for _, session := range []bool{false, true} {
			c := exec.Command("/bin/sh", "-c", "sleep 1000 & echo $!; exec sleep 1000")
			c.SysProcAttr = &syscall.SysProcAttr{Setsid: session}
			out, err := c.StdoutPipe()
			if err == nil {
				err = c.Start()
			}
			if err != nil {
				panic(err)
			}
			b := make([]byte, 32)
			n, _ := out.Read(b)
			pids = append(pids, strconv.Itoa(c.Process.Pid), strings.TrimSpace(string(b[:n])))
		}
		fmt.Fprintln(boot, strings.Join(pids, " "))
		for {
			if port, fd := guestReceive(4); fd >= 0 && port == 7 {
				f := os.NewFile(uintptr(fd), "stream")
				b, _ := io.ReadAll(f)
				_, _ = f.Write(bytes.ToUpper(b))
				f.Close()
			}
		}
	case "fail":
		fmt.Fprintln(os.Stderr, "it is\x1b[31m broken")
		os.Exit(3)
	case "files":
		var open []string
		all, _ := os.ReadDir("/proc/self/fd")
		for _, f := range all {
			if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.HasPrefix(to, "socket:") {
				open = append(open, f.Name())
			}
		}
		sid, _ := unix.Getsid(0)
		fmt.Fprint(boot, strings.Join(open, " "), " ", sid == os.Getpid())
	}
}

// guestReceive reads one message as a guest does.
func guestReceive(calls int) (port uint32, fd int) {
	b, oob := make([]byte, messageLen), make([]byte, unix.CmsgSpace(4))
	n, oobn, err := receive(calls, b, oob)
	if err != nil || n != messageLen {
		os.Exit(0)
	}
	fd = -1
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) == 1 {
		if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
			fd = fds[0]
			_, _ = unix.Write(calls, make([]byte, messageLen)) // it has arrived
		}
	}
	return binary.BigEndian.Uint32(b), fd
}

func newGuest(t *testing.T, how string, files ...*os.File) *vm {
	t.Helper()
	streams, theirs, err := newCarrier()
	if err != nil {
		t.Fatal(err)
	}
	v := &vm{
		shares: []hypervisor.Share{{Tag: "share0", Path: "/a", GuestPath: "/a", ReadOnly: true}}, streams: streams, theirs: theirs,
		gone: make(chan struct{}), processes: inProc, remove: func() error { return nil },
		prepare: func(bool) (command, error) {
			return command{argv: []string{"/proc/self/exe"}, env: []string{standIn + "=" + how}, files: files}, nil
		},
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return v
}

func (v *vm) said(t *testing.T) string {
	t.Helper()
	l, err := v.Listen(bootPort)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := v.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 256)
	n, err := c.Read(b)
	if err != nil {
		t.Fatalf("the guest says nothing: %v", err)
	}
	return string(b[:n])
}

// state of a process, "" when it is gone.
func state(pid string) string {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return ""
	}
	s := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))[0]
	if s == "Z" {
		return ""
	}
	return s
}

func await(t *testing.T, pids []string, want string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		wrong := ""
		for _, p := range pids {
			if got := state(p); got != want {
				wrong = fmt.Sprintf("process %s is %q, want %q", p, got, want)
			}
		}
		if wrong == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatal(wrong)
		}
	}
}

// TestLife: a guest with children and grandchildren, in its session and in
// others, is dialled, paused, resumed and killed, and nothing is left.
func TestLife(t *testing.T) {
	v := newGuest(t, "serve")
	if _, err := v.Dial(t.Context(), 7); !errors.Is(err, hypervisor.ErrNotReady) {
		t.Errorf("dial before the start: %v", err)
	}
	pids := strings.Fields(v.said(t))
	if len(pids) != 4 {
		t.Fatalf("children: %q", pids)
	}
	await(t, pids, "S")
	c, err := v.Dial(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(c, "hello")
	_ = c.(*net.UnixConn).CloseWrite()
	if b, err := io.ReadAll(c); string(b) != "HELLO" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if err := v.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, pids, "T")
	if err := v.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, pids, "S")
	if err := v.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := v.Wait(); err != nil {
		t.Errorf("Wait after Kill: %v", err)
	}
	await(t, pids, "")
	for what, err := range map[string]error{"Pause": v.Pause(t.Context()), "Start": v.Start(t.Context()), "Kill": errors.Join(v.Kill(), hypervisor.ErrGone)} {
		if !errors.Is(err, hypervisor.ErrGone) {
			t.Errorf("%s after the end: %v", what, err)
		}
	}
	if _, err := v.Dial(t.Context(), 7); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("Dial after the end: %v", err)
	}
	if _, err := v.Listen(9); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("Listen after the end: %v", err)
	}
}

func TestOwnEnd(t *testing.T) {
	v := newGuest(t, "fail")
	if err := v.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var gone *hypervisor.GoneError
	if err := v.Wait(); !errors.As(err, &gone) || gone.Cause != "the guest's agent ended with status 3" || gone.Detail != `it is\x1b[31m broken` {
		t.Errorf("%v", err)
	}
}

// TestInherits: the guest gets its two ends and what was prepared, and no more.
func TestInherits(t *testing.T) {
	l, port, err := proxyListener()
	if err != nil || port == 0 {
		t.Fatal(port, err)
	}
	v := newGuest(t, "files", l)
	if got := v.said(t); got != "3 4 5 true" {
		t.Errorf("the guest has %q", got)
	}
	if err := v.Wait(); err != nil {
		t.Fatal(err)
	}
	if c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second); err == nil {
		c.Close()
		t.Error("the listener outlives the guest")
	}
}

func TestNeverStarted(t *testing.T) {
	v := newGuest(t, "serve")
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if err := v.Wait(); err != nil {
		t.Errorf("Wait: %v", err)
	}
	if err := v.Start(context.Background()); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("Start: %v", err)
	}
}

// TestCannotList: a guest whose processes cannot be listed dies as a group, and
// the failure is said.
func TestCannotList(t *testing.T) {
	v := newGuest(t, "serve")
	pids := strings.Fields(v.said(t))
	v.processes = func() ([]process, error) { return nil, errors.New("no") }
	if err := v.Kill(); err == nil {
		t.Error("nothing was said")
	}
	_ = v.Wait()
	await(t, pids[:2], "") // those of the first session
	for _, p := range pids[2:] {
		n, _ := strconv.Atoi(p)
		_ = unix.Kill(n, unix.SIGKILL)
	}
}

func TestRemoveTree(t *testing.T) {
	dir, outside := filepath.Join(t.TempDir(), "files"), t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "a", "link")); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"a/b", "a", "."} {
		if err := os.Chmod(filepath.Join(dir, d), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeTree(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(outside, "kept")); err != nil {
		t.Error(err)
	}
	if err := removeTree(dir); err != nil {
		t.Errorf("again: %v", err)
	}
}
