package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/carrel-vm/carrel/guest/client"
)

// taskFlags are the flags that say how a command runs in its guest.
type taskFlags struct {
	env           []string
	workdir, user string
	input, tty    bool
	timeout       time.Duration
}

func (f *taskFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set a variable: `NAME=VALUE`, or NAME to pass this one on")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "`folder` in the guest to run in (default: the shared one, or the image's)")
	fs.StringVarP(&f.user, "user", "u", "", "`user` in the guest, USER or USER:GROUP (default: the image's, or 1000; root is the guest's root only)")
	fs.BoolVarP(&f.input, "interactive", "i", false, "pass standard input on")
	fs.BoolVarP(&f.tty, "tty", "t", false, "lend the task this terminal (implies -i)")
	fs.DurationVar(&f.timeout, "timeout", 0, "end the task after this `time`, with status 124")
}

// task checks the flags and builds the task; its guest and folder may come
// later.
func (a *app) task(f *taskFlags, args []string) (*client.Task, error) {
	t := &client.Task{Args: args, ImageCommand: len(args) == 0, Dir: f.workdir, User: f.user, TTY: f.tty, Timeout: f.timeout, Notice: a.note}
	for _, e := range f.env {
		name, _, has := strings.Cut(e, "=")
		if !has {
			v, ok := os.LookupEnv(name)
			if !ok {
				return nil, usageError{fmt.Errorf("-e %s: there is no such variable here; give its value: -e %s=VALUE", name, name)}
			}
			e = name + "=" + v
		}
		t.Env = append(t.Env, e)
	}
	if f.tty {
		if !term.IsTerminal(int(a.in.Fd())) || !term.IsTerminal(int(a.out.Fd())) {
			return nil, usageError{errors.New("-t needs a terminal: standard input or output is none (leave it out, or use -i)")}
		}
		if v := os.Getenv("TERM"); termName.MatchString(v) {
			t.Env = append([]string{"TERM=" + v}, t.Env...)
		}
		if w, h, err := term.GetSize(int(a.out.Fd())); err == nil {
			t.Cols, t.Rows = uint32(w), uint32(h)
		}
	}
	if f.tty || f.input {
		t.Stdin = a.in
	}
	if err := t.Check(); err != nil {
		return nil, usageError{err}
	}
	return t, nil
}

var termName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._-]{0,63}$`)

// resetTerminal takes back what a task may have left switched on: colours, a
// hidden cursor, mouse reports, bracketed paste, application keys (xterm's
// control sequences, DECSET 1000-1006, 2004, 25, 1, and DECKPNM).
const resetTerminal = "\x1b[0m\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>"

// do runs t and returns when it is over; left says what goes on if the person
// leaves before.
func (a *app) do(ctx context.Context, c *client.Client, t client.Task, left string) error {
	out, errw, flush := a.outputs(t.TTY)
	defer flush()
	proc := make(chan *client.Process, 1)
	tell := func() {
		p := <-proc
		proc <- p
		p.Signal(client.SIGPIPE)
	}
	begun, once := time.Now(), new(sync.Once)
	heardFirst := func() { a.timings.add("task, to its first output", begun) }
	t.Stdout, t.Stderr = first{&heard{w: out, tell: tell}, once, heardFirst}, first{&heard{w: errw, tell: tell}, once, heardFirst}

	restore := func() {}
	if t.TTY {
		fd := int(a.in.Fd())
		old, err := term.MakeRaw(fd)
		if err != nil {
			return fmt.Errorf("make the terminal raw: %w", err)
		}
		restore = sync.OnceFunc(func() {
			io.WriteString(a.out, resetTerminal)
			term.Restore(fd, old)
		})
		defer restore()
		t.Notice = func(line string) { fmt.Fprint(a.err, "\r\ncarrel: "+safe(line)+"\r\n") } // a raw terminal returns no carriage
	}
	defer catchPipe()()
	unheld := a.signals.hold()
	p, err := c.StartTask(ctx, t)
	if err != nil {
		unheld()
		return err
	}
	a.timings.add("task accepted", begun)
	proc <- p
	detach := a.signals.attach(p, left, restore)
	defer detach()
	if t.TTY {
		defer onResize(func() {
			if w, h, err := term.GetSize(int(a.out.Fd())); err == nil {
				p.Resize(uint32(h), uint32(w))
			}
		})()
	}
	err = p.Wait()
	a.timings.add("task, to the end delivered", begun)
	return err
}

// heard passes a task's output on. When nobody reads it any more, as in
// `carrel exec dev -- yes | head`, the task is told as it would be without us
// in between, and what it goes on to say is for nobody.
type heard struct {
	w    io.Writer
	tell func()
	gone bool
}

func (h *heard) Write(p []byte) (int, error) {
	if h.gone {
		return len(p), nil
	}
	n, err := h.w.Write(p)
	if isPipe(err) {
		h.gone = true
		h.tell()
		return len(p), nil
	}
	return n, err
}

// outputs returns where a task's output goes: exactly as it is to a file, a
// pipe, or a terminal that was lent to it; else made harmless.
func (a *app) outputs(tty bool) (out, errw io.Writer, flush func()) {
	flush = func() {}
	wrap := func(f *os.File) io.Writer {
		if tty || !term.IsTerminal(int(f.Fd())) {
			return f
		}
		h := &harmless{w: f}
		prev := flush
		flush = func() { prev(); h.Flush() }
		return h
	}
	out = wrap(a.out)
	errw = wrap(a.err)
	return out, errw, flush
}
