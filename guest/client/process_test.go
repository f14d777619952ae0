//go:build unix

package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// notices collects what Notice is told.
type notices struct {
	mu  sync.Mutex
	all []string
}

func (n *notices) add(s string) { n.mu.Lock(); n.all = append(n.all, s); n.mu.Unlock() }
func (n *notices) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.all, "\n")
}

func TestWait(t *testing.T) {
	for _, tc := range []struct {
		name   string
		end    *api.Task
		status int // -1: not an ExitError
		want   string
	}{
		{"success", exited(0), 0, ""},
		{"failure", exited(3), 3, "exit status 3"},
		{"signal", &api.Task{State: api.TaskState_TASK_STATE_EXITED, Ending: &api.Ending{Status: 137, Signal: 9}}, 137, "SIGKILL"},
		{"out of memory", &api.Task{State: api.TaskState_TASK_STATE_EXITED, Ending: &api.Ending{Status: 137, Signal: 9, Oom: true}}, 137, "out of memory"},
		{"timeout", &api.Task{State: api.TaskState_TASK_STATE_EXITED, Ending: &api.Ending{Status: 124, TimedOut: true}}, 124, "timeout"},
		{"not found", &api.Task{State: api.TaskState_TASK_STATE_EXITED, Ending: &api.Ending{Status: 127, Cause: "no make"}}, 127, "no make"},
		{"interrupted", &api.Task{State: api.TaskState_TASK_STATE_INTERRUPTED, Ending: &api.Ending{Status: 125, Cause: "keeper killed"}}, 125, "interrupted: keeper killed"},
		// What must never look like a success.
		{"interrupted with status 0", &api.Task{State: api.TaskState_TASK_STATE_INTERRUPTED, Ending: &api.Ending{}}, 125, "interrupted"},
		{"interrupted without ending", &api.Task{State: api.TaskState_TASK_STATE_INTERRUPTED}, 125, "interrupted"},
		{"signal with status 0", &api.Task{State: api.TaskState_TASK_STATE_EXITED, Ending: &api.Ending{Signal: 9}}, 125, "SIGKILL"},
		{"timeout with status 0", &api.Task{State: api.TaskState_TASK_STATE_EXITED, Ending: &api.Ending{TimedOut: true}}, 125, "timeout"},
		{"status 256", exited(256), 125, "256"}, // 0 to a shell
		{"status -1", exited(-1), 125, "-1"},
		{"exited without ending", &api.Task{State: api.TaskState_TASK_STATE_EXITED}, -1, "not how"},
		{"still running", &api.Task{State: api.TaskState_TASK_STATE_RUNNING}, -1, "RUNNING"},
		{"no state", &api.Task{}, -1, "UNSPECIFIED"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake()
			f.end = tc.end
			c := f.serve(t, home(t))
			var out, errw bytes.Buffer
			p, err := c.StartTask(t.Context(), Task{Guest: "g", Args: []string{"x"}, Stdout: &out, Stderr: &errw})
			if err != nil {
				t.Fatal(err)
			}
			err = p.Wait()
			if out.String() != "line 0\nline 2\n" || errw.String() != "line 1\n" {
				t.Errorf("stdout %q, stderr %q", out.String(), errw.String())
			}
			var exit *ExitError
			switch {
			case tc.status == 0:
				if err != nil {
					t.Fatal(err)
				}
				if err := <-f.left; !errors.Is(err, io.EOF) {
					t.Errorf("the result's arrival was not acknowledged, but %v", err)
				}
				return
			case tc.status > 0:
				if !errors.As(err, &exit) || exit.Status != tc.status {
					t.Fatalf("got %v, want an ExitError with status %d", err, tc.status)
				}
			default:
				if !errors.Is(err, ErrTruncated) {
					t.Fatalf("got %v, want ErrTruncated", err)
				}
			}
			if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(tc.want)) {
				t.Errorf("%q does not say %q", err, tc.want)
			}
		})
	}
}

// A stream that breaks is taken up again where it ended: nothing is lost and
// nothing comes twice, however it broke.
func TestReattach(t *testing.T) {
	for name, broke := range map[string]error{
		"reset":                 errCut,
		"clean end, but no end": nil,
		"unavailable":           connect.NewError(connect.CodeUnavailable, errors.New("going down")),
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.lines = 40
			f.attached = func(int) (int, error) { return 7, broke } // each stream carries 7 pieces
			c := f.serve(t, home(t))
			var out, errw bytes.Buffer
			var n notices
			p, err := c.StartTask(t.Context(), Task{Guest: "g", Args: []string{"x"}, Stdout: &out, Stderr: &errw, Notice: n.add})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Wait(); err != nil {
				t.Fatal(err)
			}
			want, wantErr := lines(40)
			if out.String() != want || errw.String() != wantErr {
				t.Fatalf("stdout %q, stderr %q", out.String(), errw.String())
			}
			if f.streams != 6 || !strings.Contains(n.String(), "nothing is lost") {
				t.Fatalf("%d streams, notices %q", f.streams, n.String())
			}
		})
	}
}

func lines(n int) (out, errw string) {
	for i := range n {
		l := "line " + itoa(i) + "\n"
		if i%2 == 0 {
			out += l
		} else {
			errw += l
		}
	}
	return out, errw
}

func itoa(i int) string {
	if i < 10 {
		return string(rune('0' + i))
	}
	return itoa(i/10) + itoa(i%10)
}

// The daemon is killed amid the stream; the client starts another and goes on.
func TestReattachAfterKill(t *testing.T) {
	p := home(t)
	exe := self(t, p)
	t.Setenv("FAKE_KILL_AFTER", "4")
	c, err := Connect(t.Context(), Options{Home: p.Home, Daemon: exe})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var out, errw bytes.Buffer
	var n notices
	proc, err := c.StartTask(t.Context(), Task{Guest: "g", Args: []string{"x"}, Stdout: &out, Stderr: &errw, Notice: n.add})
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.Wait(); err != nil {
		t.Fatal(err)
	}
	want, wantErr := lines(10)
	if out.String() != want || errw.String() != wantErr {
		t.Fatalf("stdout %q, stderr %q", out.String(), errw.String())
	}
	if got := pids(t, p); len(got) != 2 {
		t.Fatalf("daemons %v, want two; notices %q", got, n.String())
	}
}

func TestTruncated(t *testing.T) {
	for name, broke := range map[string]error{"reset": errCut, "clean": nil} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.attached = func(n int) (int, error) {
				if n == 1 {
					return 2, broke
				}
				return 0, broke // and never again a byte
			}
			c := f.serve(t, home(t))
			p, err := c.StartTask(t.Context(), Task{Guest: "g", Args: []string{"x"}})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Wait(); !errors.Is(err, ErrTruncated) || errors.As(err, new(*ExitError)) {
				t.Fatalf("got %v, want ErrTruncated", err)
			}
			if p.Next() != 2 || f.streams > maxTries+2 {
				t.Fatalf("next %d after %d streams", p.Next(), f.streams)
			}
		})
	}
	t.Run("no daemon", func(t *testing.T) {
		f, pl := newFake(), home(t)
		ln := listen(t, pl)
		srv, done := serveOn(ln, f.handler())
		f.holdEnd = make(chan struct{})
		c, err := Connect(t.Context(), Options{Home: pl.Home, NoStart: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		pr, pw := io.Pipe()
		p, err := c.StartTask(t.Context(), Task{Guest: "g", Args: []string{"x"}, Stdout: pw})
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(pr, make([]byte, len("line 0\nline 2\n")))
		srv.Close()
		<-done
		if err := p.Wait(); !errors.Is(err, ErrTruncated) || !IsNotRunning(err) {
			t.Fatalf("got %v, want ErrTruncated because no daemon runs", err)
		}
	})
}

// An answer of the daemon's own is not a break: it is not asked again.
func TestRefusalIsNotRetried(t *testing.T) {
	f := newFake()
	f.attached = func(int) (int, error) {
		return 0, api.NewError(connect.CodeUnavailable, "damaged", "the spool cannot be read", "carrel rm g")
	}
	c := f.serve(t, home(t))
	p, err := c.Attach(t.Context(), "g", taskID, AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); CodeOf(err) != "damaged" || f.streams != 1 {
		t.Fatalf("got %v after %d streams", err, f.streams)
	}
}

func TestStdin(t *testing.T) {
	f := newFake()
	f.holdEnd = f.eof // the task ends when its input does
	c := f.serve(t, home(t))
	in := strings.Repeat("0123456789", 50_000)
	p, err := c.StartTask(t.Context(), Task{Guest: "g", Args: []string{"cat"}, Stdin: strings.NewReader(in)})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if string(f.stdin) != in {
		t.Fatalf("%d bytes of input arrived, want %d", len(f.stdin), len(in))
	}
}

// A task that does not read its input still gets its signals.
func TestSignalsPassStdin(t *testing.T) {
	f := newFake()
	f.deaf = true
	f.holdEnd = make(chan struct{})
	c := f.serve(t, home(t))
	t.Cleanup(func() { close(f.eof) })
	in := &zeros{ctx: t.Context(), stalled: make(chan struct{})}
	p, err := c.StartTask(t.Context(), Task{Guest: "g", Args: []string{"sleep", "9"}, Stdin: in})
	if err != nil {
		t.Fatal(err)
	}
	<-in.stalled
	if err := p.Signal(SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := <-f.signals; got != 15 {
		t.Fatalf("signal %d, want 15", got)
	}
	if err := p.Resize(24, 80); err != nil {
		t.Fatal(err)
	}
	if got := <-f.signals; got != -24080 {
		t.Fatalf("size %d", got)
	}
	close(f.holdEnd)
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(SIGTERM); err == nil {
		t.Fatal("a signal to a task that is over was taken")
	}
}

// zeros is input that never ends before the test does. It says when so much has
// been taken that the stream's window is used up.
type zeros struct {
	ctx     context.Context
	n       int
	stalled chan struct{}
}

func (z *zeros) Read(p []byte) (int, error) {
	if z.ctx.Err() != nil {
		return 0, io.EOF
	}
	before := z.n
	if z.n += len(p); before <= window && z.n > window {
		close(z.stalled)
	}
	return len(p), nil
}

// Input that may be lost is never sent twice, and never passed over.
func TestInputLost(t *testing.T) {
	f := newFake()
	release := make(chan struct{})
	f.attached = func(n int) (int, error) {
		if n == 1 {
			<-release
			return 1, errCut
		}
		return -1, nil
	}
	c := f.serve(t, home(t))
	pr, pw := io.Pipe()
	defer pw.Close()
	p, err := c.StartTask(t.Context(), Task{Guest: "g", Args: []string{"cat"}, Stdin: pr})
	if err != nil {
		t.Fatal(err)
	}
	pw.Write([]byte("half of it"))
	pw.Write([]byte("!")) // is read only when the first is on its way
	close(release)
	if err := p.Wait(); !errors.Is(err, ErrInputLost) {
		t.Fatalf("got %v, want ErrInputLost", err)
	}

	t.Run("control: none was sent", func(t *testing.T) {
		f := newFake()
		f.attached = func(n int) (int, error) {
			if n == 1 {
				return 1, errCut
			}
			return -1, nil
		}
		c := f.serve(t, home(t))
		pr, pw := io.Pipe()
		defer pw.Close()
		p, err := c.StartTask(t.Context(), Task{Guest: "g", Args: []string{"cat"}, Stdin: pr})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
	})
}

// What cannot be written is an error of the caller's, not a break.
func TestOutputThatCannotBeWritten(t *testing.T) {
	f := newFake()
	f.attached = func(int) (int, error) { return -1, nil }
	c := f.serve(t, home(t))
	p, err := c.StartTask(t.Context(), Task{Guest: "g", Args: []string{"x"}, Stdout: failing{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); !errors.Is(err, io.ErrClosedPipe) || f.streams != 1 {
		t.Fatalf("got %v after %d streams", err, f.streams)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestCancelLetsGo(t *testing.T) {
	f := newFake()
	f.holdEnd = make(chan struct{})
	c := f.serve(t, home(t))
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	p, err := c.StartTask(ctx, Task{Guest: "g", Args: []string{"x"}, Stdout: pw})
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(pr, make([]byte, len("line 0\nline 2\n")))
	p.Resize(1, 1)
	<-f.signals // the stream stands, and is idle
	cancel()
	if err := p.Wait(); !errors.Is(err, ErrTruncated) || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want ErrTruncated and Canceled", err)
	}
	if err := <-f.left; errors.Is(err, io.EOF) {
		t.Fatal("a client that let go said that it had the result")
	}
}

func TestAttachNoFollow(t *testing.T) {
	f := newFake()
	f.end = &api.Task{State: api.TaskState_TASK_STATE_RUNNING}
	c := f.serve(t, home(t))
	var out bytes.Buffer
	p, err := c.Attach(t.Context(), "g", taskID, AttachOptions{NoFollow: true, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil || out.String() != "line 0\nline 2\n" {
		t.Fatalf("got %v, %q", err, out.String())
	}
	for _, id := range []string{"", "../../../../../../etc/pass", "short"} {
		if _, err := c.Attach(t.Context(), "g", id, AttachOptions{}); err == nil && len(id) != 26 {
			t.Errorf("task %q was taken", id)
		}
	}
}

func TestTaskCheck(t *testing.T) {
	ok := Task{Args: []string{"make", "--", "-rf", "a\nb", "$(x)"}, Env: []string{"A=b\nc", "E="}, Dir: "/src"}
	if err := ok.Check(); err != nil {
		t.Fatal(err)
	}
	for name, task := range map[string]Task{
		"no command":    {},
		"empty command": {Args: []string{""}},
		"NUL":           {Args: []string{"a\x00b"}},
		"not UTF-8":     {Args: []string{"a\xff"}},
		"env":           {Args: []string{"a"}, Env: []string{"B"}},
		"env name":      {Args: []string{"a"}, Env: []string{"=B"}},
		"env NUL":       {Args: []string{"a"}, Env: []string{"A=\x00"}},
		"relative":      {Args: []string{"a"}, Dir: "src"},
		"dir NUL":       {Args: []string{"a"}, Dir: "/src\x00"},
		"user":          {Args: []string{"a"}, User: "-x"},
		"two colons":    {Args: []string{"a"}, User: "root:0:0"},
		"long":          {Args: []string{strings.Repeat("a", 1<<17)}},
		"2 MB":          {Args: []string{"a"}, Env: slicesRepeat("A="+strings.Repeat("a", 1<<16), 32)},
		"many":          {Args: slicesRepeat("a", 4097)},
		"timeout":       {Args: []string{"a"}, Timeout: -1},
		"guest":         {Guest: "../x", Args: []string{"a"}},
	} {
		if err := task.Check(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func slicesRepeat(s string, n int) (out []string) {
	for range n {
		out = append(out, s)
	}
	return out
}

// A task that was attached to gets signals and sizes, too, in calls of their own:
// its stream is not its input. After its end that is said.
func TestSignalAttached(t *testing.T) {
	f := newFake()
	f.holdEnd = make(chan struct{})
	c := f.serve(t, home(t))
	p, err := c.Attach(t.Context(), "g", taskID, AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(15); err != nil || <-f.signals != 1015 {
		t.Error(err)
	}
	if err := p.Resize(24, 80); err != nil || <-f.signals != 2000+24080 {
		t.Error(err)
	}
	if err := p.Signal(-1); CodeOf(err) != "bad_number" {
		t.Error(err)
	}
	close(f.holdEnd)
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	if err := p.Signal(15); !errors.Is(err, errOver) {
		t.Error(err)
	}
}
