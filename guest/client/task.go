package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// Task is one command to be run in a guest, in the shape of exec.Cmd.
type Task struct {
	Guest string
	// Args are the command and its arguments. ImageCommand runs the image's own
	// instead: its ENTRYPOINT and CMD. There is then none in Args.
	Args         []string
	ImageCommand bool
	// Dir is an absolute folder in the guest; empty: the image's, or the user's
	// home.
	Dir string
	// Env is NAME=value, added to the guest's own.
	Env []string
	// User is a name or number in the guest, USER or USER:GROUP; empty: the
	// image's, or 1000.
	User string
	// Stdin is copied to the task, which then sees its end; nil: /dev/null.
	// A read that is under way when the task ends is not waited for.
	Stdin io.Reader
	// Stdout and Stderr receive the task's output exactly as it is; nil:
	// thrown away. With TTY everything comes to Stdout.
	Stdout, Stderr io.Writer
	// TTY gives the task a terminal of Rows by Cols cells.
	TTY        bool
	Rows, Cols uint32
	// Timeout kills the task after it; 0: none.
	Timeout time.Duration
	Limits  *api.TaskLimits
	// Queue waits for a place where as many tasks run in the guest as may, in turns
	// with others that wait, as long as the context of the start lasts.
	Queue bool
	// Notice is told, in one line, what is not the task's output: that
	// output was dropped, that the stream was taken up again. May be nil.
	Notice func(string)
}

// Bounds of a request, in counts and bytes. The keeper has the same ones; here
// they are met before a guest is started for nothing.
const (
	maxArgs     = 4096
	maxArgBytes = 512 << 10
	maxArg      = 1 << 17 // Linux's MAX_ARG_STRLEN, binfmts.h
)

// Check says what is wrong with t, as StartTask would, before a guest exists:
// its name may still be empty.
func (t *Task) Check() error {
	if t.Guest != "" {
		if err := CheckName("guest", t.Guest); err != nil {
			return err
		}
	}
	bad := func(format string, a ...any) error {
		return &Error{Code: "bad_request", Message: fmt.Sprintf(format, a...)}
	}
	switch {
	case t.ImageCommand && len(t.Args) > 0:
		return bad("a command, and the image's own: only one can be run")
	case !t.ImageCommand && (len(t.Args) == 0 || t.Args[0] == ""):
		return bad("there is no command to run")
	}
	total := len(t.Dir)
	for _, list := range [][]string{t.Args, t.Env} {
		if len(list) > maxArgs {
			return bad("a command may have at most %d arguments and as many variables", maxArgs)
		}
		for _, s := range list {
			total += len(s) + 1
			switch {
			case strings.ContainsRune(s, 0), !utf8.ValidString(s):
				return bad("the argument or variable %.80q has a NUL byte in it or is not UTF-8", s)
			case len(s) >= maxArg:
				return bad("an argument or variable is longer than %d bytes, Linux's limit", maxArg)
			}
		}
	}
	for _, e := range t.Env {
		if i := strings.IndexByte(e, '='); i < 1 {
			return bad("the variable %q is not of the form NAME=value", e)
		}
	}
	switch {
	case total > maxArgBytes:
		return bad("arguments and variables have %d bytes together; %d are possible", total, maxArgBytes)
	case t.Dir != "" && !strings.HasPrefix(t.Dir, "/"):
		return bad("the working directory %q is not an absolute path of the guest", t.Dir)
	case strings.ContainsRune(t.Dir, 0), !utf8.ValidString(t.Dir):
		return bad("the working directory %.80q has a NUL byte in it or is not UTF-8", t.Dir)
	case !userName(t.User):
		return bad("the user %.80q is neither a name nor a number", t.User)
	case t.Timeout < 0:
		return bad("the timeout %v is negative", t.Timeout)
	}
	return nil
}

func userName(s string) bool {
	user, group, both := strings.Cut(s, ":")
	return s == "" || oneName(user) && (!both || oneName(group))
}

// oneName says whether s can be a user's or a group's name, or a number. Images have
// names that useradd(8) would not make.
func oneName(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
		if !alnum && (c != '-' && c != '.' || i == 0) {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 32
}

// StartTask starts a task and returns when the daemon has it on disk. Ending
// ctx lets go of the task without ending it: use Process.Signal or Timeout.
func (c *Client) StartTask(ctx context.Context, t Task) (*Process, error) {
	if err := CheckName("guest", t.Guest); err != nil {
		return nil, err
	}
	if err := t.Check(); err != nil {
		return nil, err
	}
	req := &api.StartTaskRequest{
		Guest: t.Guest,
		Spec: &api.TaskSpec{
			Argv: t.Args, Env: t.Env, Workdir: t.Dir, User: t.User, Tty: t.TTY, Rows: t.Rows, Cols: t.Cols,
			Stdin: t.Stdin != nil, Limits: t.Limits, TimeoutNanos: int64(t.Timeout),
		},
		Wait: t.Queue,
		// With it, asking a second time after a broken answer is safe.
		IdempotencyKey: rand.Text(),
	}
	op := "start a task in guest " + t.Guest
	res, err := twice(ctx, c, func() (*connect.Response[api.StartTaskResponse], error) {
		return c.tasks.Start(ctx, connect.NewRequest(req))
	})
	if err != nil {
		return nil, wrap(op, err)
	}
	id := res.Msg.GetTask().GetId()
	if id == "" {
		return nil, &Error{Code: "truncated", Message: op, Cause: "the daemon did not say which task it started"}
	}
	return c.follow(ctx, &Process{
		Guest: t.Guest, ID: id, own: true, tty: t.TTY,
		stdout: t.Stdout, stderr: t.Stderr, notice: t.Notice,
	}, t.Stdin), nil
}

// AttachOptions say what of a task's output is wanted.
type AttachOptions struct {
	Stdout, Stderr io.Writer
	// Offset is Process.Next of an earlier stream; 0: the oldest byte kept.
	Offset int64
	// NoFollow ends at the last byte that is there rather than wait for the
	// task's end.
	NoFollow bool
	Notice   func(string)
}

// Attach streams the output of a task that was started before.
func (c *Client) Attach(ctx context.Context, guest, task string, o AttachOptions) (*Process, error) {
	if err := CheckName("guest", guest); err != nil {
		return nil, err
	}
	if len(task) != 26 {
		return nil, &Error{Code: "bad_request", Message: fmt.Sprintf("%.64q is not the id of a task", task), Cure: "see `carrel inspect " + guest + "`"}
	}
	return c.follow(ctx, &Process{
		Guest: guest, ID: task, next: o.Offset, noFollow: o.NoFollow,
		stdout: o.Stdout, stderr: o.Stderr, notice: o.Notice,
	}, nil), nil
}
