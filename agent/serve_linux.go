package agent

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// Serve runs an agent as an ordinary process, as the test driver starts it:
// boot is the boot stream, and calls a Unix socket that carries all others (see
// [passed]). Shares are not mounted, control groups not used, and neither clock
// nor name is changed.
func Serve(ctx context.Context, boot, calls *os.File) error {
	// What a task leaves behind becomes this process's to reap, as with PID 1.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("become a reaper", err)
	}
	stream, err := fileConn(boot)
	if err != nil {
		return fmt.Errorf("boot stream: %w", err)
	}
	host, err := newPassed(calls)
	if err != nil {
		_ = stream.Close()
		return fmt.Errorf("socket for streams: %w", err)
	}
	defer host.wait()
	return New(Options{Boot: stream, Listener: host, DialHost: host.dial, Mount: mountNone}).Run(ctx)
}

func mountNone(_ int, m *wire.Mount) error {
	if m.Type != "none" {
		return fmt.Errorf("an agent that is not a guest's PID 1 mounts nothing, least of all a %.20q", m.Type)
	}
	return nil
}
