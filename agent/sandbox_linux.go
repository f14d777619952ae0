package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/names"
	"github.com/carrel-vm/carrel/agent/steer"
	"github.com/carrel-vm/carrel/guest/wire"
)

// SandboxOptions say in what kind of gVisor sandbox an agent is.
type SandboxOptions struct {
	// Boot is the boot stream, Calls the socket that carries all others.
	Boot, Calls *os.File
	// OneUser says that the sandbox has a single user of the host, whom it
	// calls root: all files are that user's, so tasks run as root, without
	// root's rights.
	OneUser bool
	// MemoryMiB is the guest's size: what it writes to memory is a part of it.
	MemoryMiB int
}

// Sandbox is an agent as the first process of a gVisor sandbox, whose root file
// system is there and takes changes. It returns at the guest's end.
//
//  1. the sockets to the host get numbers of their own, so that what is
//     printed goes to the console
//  2. what programs expect beside their files is written
//  3. serve the host; nobody that the agent starts gets a capability that
//     reaches beyond files and users
func Sandbox(ctx context.Context, o SandboxOptions) error {
	unix.Umask(0o022)
	boot, calls, err := ownNumbers(o.Boot, o.Calls)
	if err != nil {
		return err
	}
	if err := settleSandbox(); err != nil {
		return err
	}
	// As in Wall: heard and not listened to, no signal of a task ends the guest.
	signal.Notify(make(chan os.Signal, 1))
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
	m := mounter{lower: boundOnce, memoryMiB: o.MemoryMiB} // gVisor knows no percents
	opts := Options{
		Boot: stream, Listener: host, DialHost: host.dial,
		Limitless: true, User: defaultUser, Name: setName, Restrict: taskRights,
	}
	opts.shares = newShares(m, opts.DialHost)
	if o.OneUser {
		opts.User = "0"
	}
	opts.network(func() (*steer.Steering, error) {
		return steer.StartLocal(netip.PrefixFrom(names.Own, names.Synthetic.Bits()))
	})
	return New(opts).Run(ctx)
}

// ownNumbers moves the sockets away from the numbers of a program's standard
// files, and makes the console the error output too, and the input empty.
func ownNumbers(boot, calls *os.File) (_, _ *os.File, err error) {
	const past = 3
	b, err := unix.FcntlInt(boot.Fd(), unix.F_DUPFD_CLOEXEC, past)
	if err != nil {
		return nil, nil, fmt.Errorf("boot stream: %w", err)
	}
	c, err := unix.FcntlInt(calls.Fd(), unix.F_DUPFD_CLOEXEC, past)
	if err != nil {
		return nil, nil, fmt.Errorf("socket for streams: %w", err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	err = errors.Join(unix.Dup3(null, 0, 0), unix.Close(null), unix.Dup3(1, 2, 0))
	runtime.KeepAlive(boot)
	runtime.KeepAlive(calls)
	return os.NewFile(uintptr(b), "boot"), os.NewFile(uintptr(c), "calls"), err
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
	return askAgent(resolver)
}

// boundOnce is bound for gVisor, which knows no recursive bind: a share is one
// mount, whatever lies beneath on the host.
func boundOnce(i int, s *wire.Mount, at string) error {
	if s.Type != bindType {
		return fmt.Errorf("a share of type %.20q is unknown to this agent", s.Type)
	}
	from := filepath.Join(lowerDir, strconv.Itoa(i))
	if at == from {
		return nil // it is there
	}
	return mnt(from, at, "", unix.MS_BIND, "").Do()
}
