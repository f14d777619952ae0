package client

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/guest/inherit"
)

const (
	exeSuffix = ".exe"
	noFollow  = 0
	nonBlock  = 0
)

func lookPath(name string) (string, error) { return exec.LookPath(name) }

// startAlone starts a command without a console, so that neither Ctrl-C nor the
// end of the terminal reaches it, with ready as its descriptor 3. Where this
// process is in a job (a terminal's, an editor's or a CI's, which may end all
// that is in it), the command leaves that if the job lets it.
func startAlone(command func() *exec.Cmd, ready *os.File) (*exec.Cmd, error) {
	const alone = windows.CREATE_NO_WINDOW | windows.CREATE_NEW_PROCESS_GROUP
	cmd := command()
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: alone | windows.CREATE_BREAKAWAY_FROM_JOB}
	err := inherit.Start(cmd, ready)
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		cmd = command()
		cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: alone}
		err = inherit.Start(cmd, ready)
	}
	return cmd, err
}

// lockFile waits for the lock on name and returns what releases it.
func lockFile(ctx context.Context, name string) (func(), error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// Whoever holds it does so for a bounded time, so the goroutine ends by itself
	// also where ctx ends first.
	got := make(chan error, 1)
	go func() {
		got <- windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK, 0, 1, 0, new(windows.Overlapped))
	}()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, err
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() { <-got; f.Close() }()
		return nil, ctx.Err()
	}
}
