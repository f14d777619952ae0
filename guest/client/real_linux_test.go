package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/place"
)

// The tests and examples here use a real daemon and real guests, behind the
// process wall. The first that needs it builds and starts it; TestMain ends it.

var real = sync.OnceValues(func() (client.Options, error) {
	p, err := place.Home()
	if err != nil {
		return client.Options{}, err
	}
	home, err := os.MkdirTemp("", "carrel-r-")
	if err != nil {
		return client.Options{}, err
	}
	o := client.Options{Home: home, Daemon: filepath.Join(home, "bin", "carreld"), Version: "dev"}
	client.AtExit = func() error { return errors.Join(endReal(o), reaped()) }
	// The image that make image has built; a daemon that a client starts gets it.
	if err := os.Setenv("CARREL_CACHE", p.Cache); err != nil {
		return o, err
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(home, "bin")+"/", "./cmd/carreld", "./cmd/carrel-agent")
	cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return o, fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return o, nil
})

func endReal(o client.Options) error {
	defer os.RemoveAll(o.Home)
	o.NoStart = true
	c, err := client.Connect(context.Background(), o)
	if client.IsNotRunning(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Shutdown(context.Background(), true)
}

// reaped returns when no process of ours is left: a daemon lives a moment longer than
// the lock by which its end is waited for, and who started it has a goroutine for it.
func reaped() error {
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if errors.Is(unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil), unix.ECHILD) {
			return nil
		}
	}
	return errors.New("a process that the tests have started goes on")
}

// options are those of a program that uses the SDK; its own are empty, and lead to
// the user's daemon.
func options() client.Options {
	o, err := real()
	if err != nil {
		panic(err)
	}
	return o
}

// inGuest starts a guest that goes with the test.
func inGuest(t *testing.T) (*client.Client, string) {
	t.Helper()
	o, err := real()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := c.StartSession(t.Context(), &api.GuestSpec{Boundary: "process"}, client.GuestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, s.Guest.Name
}

func TestFilesOverAGuest(t *testing.T) {
	c, guest := inGuest(t)
	out, err := c.Command(t.Context(), guest, "sh", "-c", `mkdir -p /tmp/f/sub/deep && cd /tmp/f && echo a > a.txt && chmod 640 a.txt && echo b > sub/b.txt &&
		ln -s sub link && ln -s /tmp/f/a.txt sub/deep/abs && ln -s nowhere sub/dangling && ln -s loop loop && mkfifo pipe`).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := c.Files(t.Context(), guest, "/tmp/f/sub", "")
	if err != nil {
		t.Fatal(err)
	}
	// A link that leads nowhere is none to fstest: it opens all that it finds.
	if out, err := c.Command(t.Context(), guest, "rm", "/tmp/f/sub/dangling").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := fstest.TestFS(f, "b.txt", "deep/abs"); err != nil {
		t.Error(err)
	}
	top, err := c.Files(t.Context(), guest, "/tmp/f", "")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := fs.ReadFile(top, "link/b.txt"); err != nil || string(b) != "b\n" {
		t.Errorf("through a folder that is a link: %q, %v", b, err)
	}
	if b, err := fs.ReadFile(top, "sub/deep/abs"); err != nil || string(b) != "a\n" {
		t.Errorf("through a link: %q, %v", b, err)
	}
	if to, err := fs.ReadLink(top, "link"); err != nil || to != "sub" {
		t.Errorf("a link: %q, %v", to, err)
	}
	if fi, err := fs.Stat(top, "a.txt"); err != nil || fi.Mode() != 0o640 || fi.Size() != 2 {
		t.Errorf("%v, %v", fi, err)
	}
	if _, err := top.Open("loop"); err == nil || !strings.Contains(err.Error(), "more than 40 links") {
		t.Errorf("a loop: %v", err)
	}
	if _, err := top.Open("pipe"); err == nil || !strings.Contains(err.Error(), "neither file nor folder") {
		t.Errorf("a pipe: %v", err)
	}
	var names []string
	in, err := top.ReadDir(".")
	for _, e := range in {
		names = append(names, fs.FormatDirEntry(e))
	}
	if got := strings.Join(names, ", "); err != nil || got != "- a.txt, L link, L loop, ? pipe, d sub/" {
		t.Errorf("%q, %v", got, err)
	}
	for name, want := range map[string]error{"missing": fs.ErrNotExist, "missing/x": fs.ErrNotExist, "../a.txt": fs.ErrInvalid, "/etc": fs.ErrInvalid} {
		if _, err := top.Stat(name); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := top.ReadFile("sub"); err == nil {
		t.Error("a folder was read as a file")
	}
}

func TestWriteFileInAGuest(t *testing.T) {
	c, guest := inGuest(t)
	f, err := c.Files(t.Context(), guest, "/tmp", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WriteFile("no/such/file", nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into no folder: %v", err)
	}
	if err := f.MkdirAll("no/such", 0o755); err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("0123456789abcdef", 200_000) // some pieces of a stream
	for range 2 {                                       // and in place of what is there
		if err := f.WriteFile("no/such/file", []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := f.ReadFile("no/such/file"); err != nil || string(b) != want {
		t.Errorf("%d bytes of %d, %v", len(b), len(want), err)
	}
	h, err := f.Open("no/such/file")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(h, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	if err := errors.Join(h.Close(), h.Close()); err != nil {
		t.Error(err)
	}
	if _, err := h.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a read after Close: %v", err)
	}
	if out, err := c.Command(t.Context(), guest, "stat", "-c", "%a %u %s", "/tmp/no/such/file").Output(); err != nil || string(out) != fmt.Sprintf("600 1000 %d\n", len(want)) {
		t.Errorf("%q, %v", out, err)
	}
	other, err := c.Files(t.Context(), guest, "/tmp/no/such", "root")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.WriteFile("roots", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadFile("no/such/roots"); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a file of another user: %v", err)
	}
	if b, err := other.ReadFile("roots"); err != nil || string(b) != "x" {
		t.Errorf("by that user: %q, %v", b, err)
	}
}

func TestCommand(t *testing.T) {
	c, guest := inGuest(t)
	if out, err := c.Command(t.Context(), guest, "sh", "-c", "echo out; echo err >&2").Output(); err != nil || string(out) != "out\n" {
		t.Errorf("%q, %v", out, err)
	}
	out, err := c.Command(t.Context(), guest, "sh", "-c", "echo err >&2; exit 7").CombinedOutput()
	var exit *client.ExitError
	if !errors.As(err, &exit) || exit.Status != 7 || string(out) != "err\n" {
		t.Errorf("%q, %v", out, err)
	}

	m := c.Command(t.Context(), guest, "sh", "-c", "tr a-z A-Z; echo done >&2")
	in, ierr := m.StdinPipe()
	o, oerr := m.StdoutPipe()
	e, eerr := m.StderrPipe()
	if err := errors.Join(ierr, oerr, eerr); err != nil {
		t.Fatal(err)
	}
	if _, err := m.StdoutPipe(); err == nil {
		t.Error("two pipes of one output")
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if err := m.Start(); err == nil {
		t.Error("it was started twice")
	}
	var said, warned []byte
	var readers sync.WaitGroup
	readers.Go(func() { said, _ = io.ReadAll(o) })
	readers.Go(func() { warned, _ = io.ReadAll(e) })
	if _, err := io.WriteString(in, "hello\n"); err != nil {
		t.Error(err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	readers.Wait()
	if err := m.Wait(); err != nil || string(said) != "HELLO\n" || string(warned) != "done\n" {
		t.Errorf("%q, %q, %v", said, warned, err)
	}

	// The end of its context is the command's.
	ctx, cancel := context.WithCancel(t.Context())
	m = c.Command(ctx, guest, "sh", "-c", "echo up; exec sleep 1000")
	if o, err = m.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(o, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := m.Wait(); !errors.Is(err, context.Canceled) || !errors.As(err, &exit) || exit.Signal != client.SIGKILL {
		t.Errorf("after cancel: %v", err)
	}
	ts, err := c.Tasks(t.Context(), guest)
	if err != nil {
		t.Fatal(err)
	}
	if last := ts[len(ts)-1]; last.State != api.TaskState_TASK_STATE_EXITED || last.Ending.GetSignal() != 9 {
		t.Errorf("the killed task is %v", last)
	}
	if err := c.Command(ctx, guest, "true").Run(); !errors.Is(err, context.Canceled) {
		t.Errorf("a start after the end: %v", err)
	}
}

// A session's guest goes with it, unless something of it waits.
func TestSession(t *testing.T) {
	o, err := real()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	project, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, changes := range []bool{false, true} {
		s, err := c.StartSession(t.Context(), &api.GuestSpec{Boundary: "process", Shares: []*api.Share{{Path: project}}}, client.GuestOptions{})
		if err != nil {
			t.Fatal(err)
		}
		name := s.Guest.Name
		cmd := c.Command(t.Context(), name, "sh", "-c", "true")
		if changes {
			cmd.Args[2] = "echo x > new"
		}
		cmd.Dir = project
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		// A task's end is not the session's.
		if err := c.Command(t.Context(), name, "true").Run(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		if _, err := c.Trace(t.Context(), name, true); err != nil && client.CodeOf(err) != "not_found" {
			t.Fatal(err)
		}
		g, err := c.Guest(t.Context(), name)
		switch {
		case !changes && client.CodeOf(err) != "not_found":
			t.Errorf("without changes it is %v, %v", g, err)
		case changes && (err != nil || g.Kept != api.GuestKept_GUEST_KEPT_REVIEW):
			t.Errorf("with changes it is %v, %v", g, err)
		case changes:
			if _, err := c.Discard(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
	}
}
