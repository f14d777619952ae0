package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/term"
)

// paged calls f with where its output goes: through the user's pager on a
// terminal, else as it is. A pager that is left early ends f without an error.
func (a *app) paged(no bool, f func(w io.Writer) error) error {
	cmd := a.pager(no)
	if cmd == nil {
		return f(a.out)
	}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil { // there is none: what it would have shown is shown
		return f(a.out)
	}
	w := &left{w: in}
	err = f(w)
	in.Close()
	cmd.Wait() // also after a signal: the terminal is the pager's until it ends
	if w.gone && errors.Is(err, errDone) {
		return nil
	}
	return err
}

// pager is $PAGER, or less, which shows colours; nil: none is wanted or there.
func (a *app) pager(no bool) *exec.Cmd {
	if no || !term.IsTerminal(int(a.out.Fd())) || os.Getenv("TERM") == "dumb" {
		return nil
	}
	var cmd *exec.Cmd
	switch words, set := os.LookupEnv("PAGER"); {
	case set && (strings.TrimSpace(words) == "" || words == "cat"):
		return nil
	case set && runtime.GOOS != "windows":
		cmd = exec.Command("/bin/sh", "-c", words) // it may have flags
	default:
		path, err := exec.LookPath("less")
		if err != nil {
			return nil
		}
		cmd = exec.Command(path, "-R")
	}
	cmd.Stdout, cmd.Stderr = a.out, a.err
	if _, set := os.LookupEnv("LESS"); !set {
		cmd.Env = append(os.Environ(), "LESS=FRX") // as git does: a short text needs no key to leave
	}
	return cmd
}

// left notices that nobody reads any more.
type left struct {
	w    io.Writer
	gone bool
}

func (l *left) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
		l.gone = true
		return n, errDone
	}
	return n, err
}
