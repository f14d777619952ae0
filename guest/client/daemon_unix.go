//go:build unix

package client

import (
	"context"
	"os"
	"os/exec"
	"syscall"

	"github.com/carrel-vm/carrel/guest/inherit"
)

const (
	exeSuffix = ""
	noFollow  = syscall.O_NOFOLLOW
	// nonBlock keeps an open of a FIFO from waiting for its other end.
	nonBlock = syscall.O_NONBLOCK
)

func lookPath(name string) (string, error) { return exec.LookPath(name) }

// startAlone starts a command in a session of its own, so that the terminal's
// signals do not reach it, with ready as its descriptor 3.
func startAlone(command func() *exec.Cmd, ready *os.File) (*exec.Cmd, error) {
	cmd := command()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, inherit.Start(cmd, ready)
}

// lockFile waits for the lock on name and returns what releases it.
func lockFile(ctx context.Context, name string) (func(), error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|noFollow, 0o600)
	if err != nil {
		return nil, err
	}
	// Whoever holds it does so for a bounded time, so the goroutine ends by itself
	// also where ctx ends first.
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
