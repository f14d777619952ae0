//go:build unix

package client

import (
	"context"
	"os"
	"os/exec"
	"syscall"
)

const (
	exeSuffix = ""
	noFollow  = syscall.O_NOFOLLOW
	// nonBlock keeps an open of a FIFO from waiting for its other end.
	nonBlock = syscall.O_NONBLOCK
)

func lookPath(name string) (string, error) { return exec.LookPath(name) }

// detach gives cmd a session of its own, so that the terminal's signals do not
// reach it, and ready as its descriptor 3.
func detach(cmd *exec.Cmd, ready *os.File) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles = []*os.File{ready}
	return nil
}

// lockFile waits for the lock on name and returns what releases it.
func lockFile(ctx context.Context, name string) (func(), error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|noFollow, 0o600)
	if err != nil {
		return nil, err
	}
	// Whoever holds it does so for readyTimeout at most, so the goroutine
	// ends by itself also where ctx ends first.
	got := make(chan error, 1)
	go func() {
		for {
			err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
			if err != syscall.EINTR {
				got <- err
				return
			}
		}
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
