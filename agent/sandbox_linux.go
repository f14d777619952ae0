package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// SandboxOptions say in what kind of gVisor sandbox an agent is.
type SandboxOptions struct {
	// Boot is the boot stream, Calls the socket that carries all others.
	Boot, Calls *os.File
	// OneUser says that the sandbox has a single user of the host, whom it
	// calls root: all files are that user's, so tasks run as root, without
	// root's rights.
	OneUser bool
}

// Sandbox is an agent as the first process of a gVisor sandbox, whose root file
// system is there and takes changes. It returns at the guest's end.
//
//  1. the sockets to the host get numbers of their own, so that what is
//     printed goes to the console
//  2. what programs expect beside their files is written
//  3. nobody that the agent starts gets a capability that reaches beyond files
//     and users
//  4. serve the host
func Sandbox(ctx context.Context, o SandboxOptions) error {
	unix.Umask(0o022)
	stream, err := fileConn(o.Boot)
	if err != nil {
		return fmt.Errorf("boot stream: %w", err)
	}
	host, err := newPassed(o.Calls)
	if err != nil {
		_ = stream.Close()
		return fmt.Errorf("socket for streams: %w", err)
	}
	defer host.wait()
	if err := errors.Join(standardFiles(), settleSandbox()); err != nil {
		return err
	}
	if err := taskRights(); err != nil {
		return err
	}
	// As in Wall: heard and not listened to, no signal of a task ends the guest.
	signal.Notify(make(chan os.Signal, 1))
	m := mounter{lower: bound}
	opts := Options{
		Boot: stream, Listener: host, DialHost: host.dial,
		Limitless: true, User: defaultUser, Mount: m.mount, Name: setName,
	}
	if o.OneUser {
		opts.User = "0"
	}
	return New(opts).Run(ctx)
}

// standardFiles makes the console the error output too, and the input empty:
// their numbers were the host's streams'.
func standardFiles() error {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	if null != 0 {
		err = errors.Join(unix.Dup3(null, 0, 0), unix.Close(null))
	}
	return errors.Join(err, unix.Dup3(1, 2, 0))
}

// settleSandbox makes and writes what is the agent's or what programs expect.
func settleSandbox() error {
	for _, d := range []string{scratchDir, lowerDir, upperDir} {
		// runsc has made some of them, for what it mounts there.
		if err := errors.Join(os.MkdirAll(d, 0o700), os.Chmod(d, 0o700)); err != nil {
			return err
		}
	}
	if err := os.Chmod(carrelDir, 0o755); err != nil {
		return err
	}
	for _, l := range [][2]string{{"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"}, {"fd/2", "/dev/stderr"}} {
		if err := os.Symlink(l[0], filepath.Clean(l[1])); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := replace("/etc/resolv.conf", resolver); err != nil {
		complain(err)
	}
	return nil
}
