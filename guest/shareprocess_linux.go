package guest

import (
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// shelfNetwork is the kind of socket that shares are handed over on.
const shelfNetwork = "unixpacket"

func shareAttributes(cmd *exec.Cmd, outlive bool) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if outlive {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
}

// duplicate returns another descriptor of the same file.
func duplicate(f *os.File) (*os.File, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var derr error
	if err := rc.Control(func(old uintptr) { fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
