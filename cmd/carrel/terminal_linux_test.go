package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// dialogTime bounds one dialog on a terminal, the start of a guest included.
const dialogTime = 5 * time.Minute

// onTerminal is the command
//
//	terminal STATUS ROWSxCOLS DIALOG PROGRAM [ARG...]
//
// It runs a program on a terminal of its own and holds the dialog of a file
// with it, one step per line:
//
//	see REGEXP        wait until what came since the last match has this
//	type TEXT         type it, and Return
//	key ^C            type one control character
//	size ROWSxCOLS    change the terminal's size
//
// The program must end with STATUS and leave the terminal's settings as they
// were. All that it showed is left in the file terminal.out.
func onTerminal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: terminal STATUS ROWSxCOLS DIALOG PROGRAM [ARG...]")
	}
	status, err := strconv.Atoi(args[0])
	ts.Check(err)
	d, err := openDialog(args[1])
	ts.Check(err)
	defer d.close()
	dialog := ts.ReadFile(args[2])
	before, err := unix.IoctlGetTermios(int(d.tty.Fd()), unix.TCGETS)
	ts.Check(err)

	ctx, cancel := context.WithTimeout(context.Background(), dialogTime)
	defer cancel()
	cmd := command(ts, args[3:])
	cmd.Env = append(cmd.Env, "TERM=xterm")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = d.tty, d.tty, d.tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(cmd.Start())
	var after *unix.Termios
	var afterErr error
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		cmd.Wait()
		after, afterErr = unix.IoctlGetTermios(int(d.tty.Fd()), unix.TCGETS)
		d.tty.Close()
	}()
	said := d.hold(ctx, dialog)
	if said != nil {
		cmd.Process.Kill()
	}
	<-exited
	d.close()
	ts.Check(afterErr)
	ts.Check(os.WriteFile(ts.MkAbs("terminal.out"), d.out, 0o644))
	ts.Logf("[terminal]\n%q", d.out)
	switch {
	case said != nil:
		ts.Fatalf("%v", said)
	case cmd.ProcessState.ExitCode() != status:
		ts.Fatalf("the status is %v, not %d", cmd.ProcessState, status)
	case *before != *after:
		ts.Fatalf("the terminal was %+v, and is left as %+v", before, after)
	}
}

// dialog is a terminal with what was shown on it.
type dialog struct {
	ctrl, tty *os.File
	done      chan struct{} // closed when no more can be shown
	close     func()

	mu   sync.Mutex
	out  []byte        // may be read without mu when done is closed
	more chan struct{} // closed and replaced when something is shown
}

func openDialog(size string) (*dialog, error) {
	ws, err := parseSize(size)
	if err != nil {
		return nil, err
	}
	d := &dialog{done: make(chan struct{}), more: make(chan struct{})}
	if d.ctrl, d.tty, err = pty.Open(); err != nil {
		return nil, err
	}
	go d.read()
	d.close = sync.OnceFunc(func() {
		d.tty.Close() // when nobody has it open, the read ends with EIO, after all that was written
		<-d.done
		d.ctrl.Close()
	})
	if err := pty.Setsize(d.tty, ws); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func parseSize(s string) (*pty.Winsize, error) {
	ws := new(pty.Winsize)
	if _, err := fmt.Sscanf(s, "%dx%d", &ws.Rows, &ws.Cols); err != nil {
		return nil, fmt.Errorf("the size %q is not ROWSxCOLS", s)
	}
	return ws, nil
}

func (d *dialog) read() {
	defer close(d.done)
	buf := make([]byte, 4<<10)
	for {
		n, err := d.ctrl.Read(buf)
		if err != nil {
			return
		}
		d.mu.Lock()
		d.out = append(d.out, buf[:n]...)
		close(d.more)
		d.more = make(chan struct{})
		d.mu.Unlock()
	}
}

// hold goes through the steps.
func (d *dialog) hold(ctx context.Context, steps string) error {
	at := 0
	for _, line := range strings.Split(strings.TrimSpace(steps), "\n") {
		verb, arg, _ := strings.Cut(line, " ")
		var err error
		switch verb {
		case "see":
			at, err = d.see(ctx, at, arg)
		case "type":
			_, err = d.ctrl.WriteString(arg + "\r")
		case "key":
			if len(arg) != 2 || arg[0] != '^' {
				return fmt.Errorf("%q is not a key such as ^C", arg)
			}
			_, err = d.ctrl.Write([]byte{arg[1] & 0x1f})
		case "size":
			ws, bad := parseSize(arg)
			if bad != nil {
				return bad
			}
			err = pty.Setsize(d.ctrl, ws)
		default:
			return fmt.Errorf("a dialog has no step %q", verb)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", line, err)
		}
	}
	return nil
}

// see waits until the output from at on has the pattern, and returns where its
// first match ends.
func (d *dialog) see(ctx context.Context, at int, pattern string) (int, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return 0, err
	}
	for {
		d.mu.Lock()
		out, more := d.out[at:], d.more
		d.mu.Unlock()
		if m := re.FindIndex(out); m != nil {
			return at + m[1], nil
		}
		select {
		case <-more:
		case <-d.done:
			if re.Match(d.out[at:]) {
				continue // it was the last that was shown
			}
			return 0, errors.New("the program ended without it")
		case <-ctx.Done():
			return 0, fmt.Errorf("not seen: %w", ctx.Err())
		}
	}
}
