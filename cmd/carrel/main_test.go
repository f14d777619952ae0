package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestExitStatus(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{&client.ExitError{Status: 3}, 3},
		{&client.ExitError{Status: 1}, 1},
		{fmt.Errorf("task: %w", &client.ExitError{Status: 137, Signal: 9}), 137},
		{&client.ExitError{Status: 124, TimedOut: true}, 124},
		{&client.ExitError{Status: 127}, 127},
		{&client.ExitError{Status: 125, Interrupted: true}, 125},
		{errNo, 1},
		{usageError{errors.New("x")}, 2},
		{usageError{&client.Error{Code: "bad_name"}}, 2},
		{signalError{client.SIGINT}, 130},
		{signalError{client.SIGTERM}, 143},
		{client.ErrTruncated, 125},
		{fmt.Errorf("x: %w", client.ErrInputLost), 125},
		{&client.Error{Code: "image_missing"}, 125},
		{context.Canceled, 125},
		{io.ErrUnexpectedEOF, 125},
	} {
		if got := exitStatus(tc.err); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.err, got, tc.want)
		}
	}
}

// call runs the program with no daemon to be found, and returns what it said.
func call(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("CARREL_HOME", filepath.Join(dir, "h"))
	t.Setenv("PATH", dir)
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	out, errw := file("out"), file("err")
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	in0, out0, err0 := os.Stdin, os.Stdout, os.Stderr
	os.Stdin, os.Stdout, os.Stderr = null, out, errw
	defer func() { os.Stdin, os.Stdout, os.Stderr = in0, out0, err0 }()
	status = run(args)
	for _, f := range []*os.File{out, errw, null} {
		f.Close()
	}
	o, _ := os.ReadFile(filepath.Join(dir, "out"))
	e, _ := os.ReadFile(filepath.Join(dir, "err"))
	return status, string(o), string(e)
}

// A command line that cannot be meant is said before anything starts.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"nonsense"},
		{"run"},
		{"run", "--bogus", "--", "true"},
		{"run", "--name", "../x", "--", "true"},
		{"run", "--name", "-x", "--", "true"},
		{"run", "--name", strings.Repeat("a", 4096), "--", "true"},
		{"run", "--image", "../b", "--", "true"},
		{"run", "--image", "/etc/x", "--", "true"},
		{"run", "--image", "-x:y", "--", "true"},
		{"run", "--memory", "lots", "--", "true"},
		{"run", "--memory", "-1", "--", "true"},
		{"run", "--cpus", "-1", "--", "true"},
		{"run", "--cpus", "99999999999", "--", "true"},
		{"run", "-v", "/a:rx", "--", "true"},
		{"run", "-v", "/a", "--no-share", "--", "true"},
		{"run", "-e", "CARREL_NO_SUCH_VARIABLE", "--", "true"},
		{"run", "-e", "=x", "--", "true"},
		{"run", "-w", "relative", "--", "true"},
		{"run", "-u", "-x", "--", "true"},
		{"run", "--timeout", "-1s", "--", "true"},
		{"run", "-t", "--", "true"}, // no terminal here
		{"run", "--", ""},
		{"exec", "dev"},
		{"exec", "../x", "true"},
		{"shell"},
		{"shell", "dev"}, // no terminal here
		{"start", "a", "b"},
		{"start", "--name", "a", "b"},
		{"stop"},
		{"stop", "A"},
		{"rm", "a\nb"},
		{"ls", "x"},
		{"inspect", "a/b"},
		{"logs", "-f"},
		{"logs", "A"},
		{"cp", "a", "b"},
		{"cp", "a:/x", "b:/y"},
		{"cp", "a:rel", "."},
		{"image"},
		{"image", "build", "A"},
		{"daemon"},
		{"daemon", "status", "x"},
		{"--version-of-nothing"},
	} {
		status, stdout, stderr := call(t, args...)
		if status != 2 || stdout != "" || !strings.Contains(stderr, "--help") {
			t.Errorf("%.60q: status %d, stdout %q, stderr %q", args, status, stdout, stderr)
		}
	}
}

// The same lines, when they can be meant, come as far as the missing daemon.
func TestNoDaemonToBeFound(t *testing.T) {
	t.Setenv("HOME", "/home/u") // Windows has none
	for _, args := range [][]string{
		{"run", "--", "true"},
		{"run", "true", "--bogus"}, // the command's own flag
		{"run", "-v", ".:rw", "-e", "A=b", "-e", "HOME", "-w", "/x", "-u", "root", "--timeout", "1s", "--cpus", "1", "--memory", "1G", "--", "true"},
		{"start", "dev"},
		{"start", "--name", "dev", "dev"},
		{"stop", "dev"},
		{"rm", "-f", "dev"},
		{"ls"},
		{"inspect", "dev"},
		{"exec", "dev", "--", "true"},
		{"exec", "dev", "true"},
		{"logs", "dev"},
		{"cp", "a", "dev:/x"},
		{"image", "ls"},
		{"daemon", "run"},
	} {
		status, stdout, stderr := call(t, args...)
		if status != 125 || stdout != "" || !strings.Contains(stderr, "no carreld") || !strings.Contains(stderr, "to mend it: ") {
			t.Errorf("%q: status %d, stdout %q, stderr %q", args, status, stdout, stderr)
		}
	}
	for _, args := range [][]string{{"ls", "--json"}, {"inspect", "--json", "dev"}, {"image", "ls", "--json"}} {
		status, _, stderr := call(t, args...)
		var e map[string]string
		if err := json.Unmarshal([]byte(stderr), &e); err != nil || status != 125 || e["code"] != "daemon_missing" || e["cause"] == "" || e["cure"] == "" || e["message"] == "" {
			t.Errorf("%q: status %d, stderr %q", args, status, stderr)
		}
	}
}

func TestNeedsNoDaemon(t *testing.T) {
	for _, tc := range []struct {
		args   []string
		status int
		want   string
	}{
		{nil, 0, "Available Commands"},
		{[]string{"--help"}, 0, "carrel run -- make test"},
		{[]string{"run", "--help"}, 0, "carrel apply brings it into the folder"},
		{[]string{"version"}, 0, "API carrel.v1"},
		{[]string{"version", "--json"}, 0, `"api":"carrel.v1"`},
		{[]string{"completion", "bash"}, 0, "complete"},
		{[]string{"__complete", "stop", ""}, 0, ":4"}, // no names, and no files instead
		{[]string{"daemon", "status"}, 1, "no daemon is running"},
		{[]string{"doctor"}, 1, "no daemon can be asked"},
		{[]string{"daemon", "stop"}, 0, ""},
	} {
		status, stdout, stderr := call(t, tc.args...)
		if status != tc.status || !strings.Contains(stdout, tc.want) {
			t.Errorf("%q: status %d, stdout %.200q, stderr %q", tc.args, status, stdout, stderr)
		}
	}
}

// Every command says what it is for, and how it is used.
func TestHelpIsThere(t *testing.T) {
	a := &app{}
	for _, c := range a.rootCommand().Commands() {
		if c.Short == "" || c.Name() != "version" && c.Name() != "daemon" && c.Name() != "image" && c.Example == "" {
			t.Errorf("%s has no description or no example", c.CommandPath())
		}
	}
}

// On a terminal of the usual width no line of a description is broken in two.
func TestHelpFits(t *testing.T) {
	var check func(*cobra.Command)
	check = func(c *cobra.Command) {
		text := strings.Split(c.Long, "\n")
		for _, sub := range c.Commands() {
			text = append(text, fmt.Sprintf("  %-*s %s", c.NamePadding(), sub.Name(), sub.Short))
			check(sub)
		}
		for _, line := range text {
			if n := utf8.RuneCountInString(line); n > helpWidth {
				t.Errorf("%s: %d characters: %s", c.CommandPath(), n, line)
			}
		}
	}
	check(new(app).rootCommand())
}

// A word that is no command names those that may have been meant, in one line;
// what is missing is shown in the line as it should be.
func TestUsageHelps(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"runn", "--", "ls"}, "carrel: unknown command \"runn\" for \"carrel\" (did you mean run or prune?)\n"},
		{[]string{"xyzzyx"}, "carrel: unknown command \"xyzzyx\" for \"carrel\"\n"},
		{[]string{"image", "lss"}, "carrel: unknown command \"lss\" for \"carrel image\" (did you mean ls?)\n"},
		{[]string{"run"}, "carrel: something is missing: carrel run [flags] [--] COMMAND [ARG...]\n"},
		{[]string{"exec", "dev"}, "carrel: something is missing: carrel exec [flags] NAME [--] COMMAND [ARG...]\n"},
		{[]string{"allow", "dev"}, "carrel: something is missing: carrel allow [flags] NAME HOST[:PORT]...\n"},
		{[]string{"ls", "dev"}, "carrel: \"dev\" is too much: carrel ls [flags]\n"},
		{[]string{"shell", "dev"}, "carrel: a shell needs a terminal: standard input or output is none (without one: carrel exec -i dev -- sh)\n"},
	} {
		if status, _, stderr := call(t, tc.args...); status != exitUsage || !strings.HasPrefix(stderr, tc.want) || strings.Count(stderr, "\n") != 2 {
			t.Errorf("%q: status %d, %q", tc.args, status, stderr)
		}
	}
}

// The keys that answer a question stand on one line, however long the host's name is.
func TestMayReach(t *testing.T) {
	lines := strings.Split(mayReach(&api.EgressEvent{Host: strings.Repeat("a", 253), Port: 443}), "\n")
	if len(lines) != 3 || len(lines[1]) > helpWidth || !strings.Contains(lines[1], "n: no") || lines[2] != "" {
		t.Errorf("%q", lines)
	}
}

// What is said to take an apply back does so: undo does not know commits.
func TestWasApplied(t *testing.T) {
	if line := wasApplied("dev", false, 2, 1); line != "2 changes applied, 1 left; carrel undo dev takes back what was applied" {
		t.Error(line)
	}
	if line := wasApplied("dev", true, 1, 0); strings.Contains(line, "undo") || !strings.Contains(line, "git update-ref -d") {
		t.Error(line)
	}
}

func TestSignalsWithoutATask(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	exits := 0
	s := &signals{a: &app{err: os.Stderr}, cancel: cancel, exit: func(int) { exits++ }}
	now := time.Now()
	s.one(client.SIGINT, now)
	var sig signalError
	if !errors.As(context.Cause(ctx), &sig) || sig.signal != client.SIGINT || exits != 0 {
		t.Fatalf("the first one: cause %v, %d exits", context.Cause(ctx), exits)
	}
	s.one(client.SIGINT, now.Add(secondTime+time.Second))
	if exits != 0 {
		t.Fatal("a late second Ctrl-C ended the program")
	}
	s.one(client.SIGINT, now.Add(secondTime+2*time.Second))
	if exits != 1 {
		t.Fatal("a quick second Ctrl-C did not end the program")
	}
}

// noted are the signals that a task got.
type noted []client.Signal

func (p *noted) Signal(n client.Signal) error { *p = append(*p, n); return nil }

// A signal that comes while a task is being started is the task's, which may run
// already; it ends the command where none comes of the start, or nobody says so.
func TestSignalsOfAStart(t *testing.T) {
	for name, tc := range map[string]struct {
		then  func(s *signals, p *noted, over func())
		ends  bool // the command
		tasks []client.Signal
	}{
		"it runs":     {func(s *signals, p *noted, _ func()) { s.attach(p, "", nil) }, false, []client.Signal{client.SIGTERM, client.SIGHUP, client.SIGINT}},
		"it does not": {func(_ *signals, _ *noted, over func()) { over() }, true, nil},
		"no word":     {func(*signals, *noted, func()) { time.Sleep(heldTime) }, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				s := &signals{a: &app{err: os.Stderr}, cancel: cancel, exit: func(int) { t.Error("it left") }}
				over := s.hold()
				s.one(client.SIGTERM, time.Now())
				s.one(client.SIGHUP, time.Now())
				if time.Sleep(heldTime - time.Second); ctx.Err() != nil {
					t.Fatalf("the command ended at once: %v", context.Cause(ctx))
				}
				p := new(noted)
				tc.then(s, p, over)
				synctest.Wait()
				var sig signalError
				if ended := errors.As(context.Cause(ctx), &sig) && sig.signal == client.SIGTERM; ended != tc.ends {
					t.Errorf("the command has ended: %v", context.Cause(ctx))
				}
				if len(tc.tasks) > 0 {
					s.one(client.SIGINT, time.Now())
					time.Sleep(heldTime)
				}
				// Whoever asks twice does not wait, however long that is after.
				late, leave := context.WithCancelCause(t.Context())
				s = &signals{a: &app{err: os.Stderr}, cancel: leave, exit: func(int) { t.Error("it left") }}
				defer s.hold()()
				s.one(client.SIGINT, time.Now())
				time.Sleep(secondTime)
				if late.Err() != nil {
					t.Error("the first Ctrl-C ended the command")
				}
				if s.one(client.SIGINT, time.Now()); late.Err() == nil {
					t.Error("the second Ctrl-C did not end the command")
				}
				if !slices.Equal(*p, tc.tasks) || !tc.ends && ctx.Err() != nil {
					t.Errorf("the task got %v; %v", *p, context.Cause(ctx))
				}
			})
		})
	}
}

func TestCommandLine(t *testing.T) {
	for _, tc := range []struct {
		argv []string
		want string
	}{
		{[]string{"make", "test"}, "make test"},
		{[]string{"sh", "-c", "a | b"}, "sh -c 'a | b'"},
		{[]string{"echo", "it's", ""}, `echo 'it'\''s' ''`},
		{[]string{"echo", "\x1b[0m"}, `echo '\x1b[0m'`},
	} {
		if got := commandLine(tc.argv); got != tc.want {
			t.Errorf("%q: %s, want %s", tc.argv, got, tc.want)
		}
	}
}
