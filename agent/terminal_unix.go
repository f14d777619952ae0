//go:build unix

package agent

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// terminal opens a terminal whose master never blocks a thread. Package pty
// leaves it blocking, where no deadline counts and Close wakes no reader: a
// process that keeps the other end, or a task that reads nothing, would then
// hold its call for ever.
func terminal() (master, slave *os.File, err error) {
	blocking, slave, err := pty.Open()
	if err != nil {
		return nil, nil, err
	}
	master, err = pollable(blocking)
	if err = errors.Join(err, blocking.Close()); err != nil {
		_ = slave.Close()
		if master != nil {
			_ = master.Close()
		}
		return nil, nil, err
	}
	return master, slave, nil
}

// pollable returns a copy of f that takes deadlines. Both share the mode.
func pollable(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := raw.Control(func(old uintptr) {
		if fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, true)
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, err
	}
	c := os.NewFile(uintptr(fd), f.Name())
	if err := c.SetDeadline(time.Time{}); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("%s cannot be waited for: %w", f.Name(), err)
	}
	return c, nil
}
