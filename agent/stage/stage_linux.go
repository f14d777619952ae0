package stage

import (
	"errors"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// closeOthers closes, when this becomes the task, every file that it shall not
// have.
func closeOthers() error {
	err := unix.CloseRange(StatusFD+1, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	if err != unix.EINVAL && err != unix.ENOSYS {
		return err
	}
	// gVisor of 2022 knows no such flag.
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, f := range files {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > StatusFD {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// restrict sets what holds whoever the task runs as.
func restrict(s *Spec) error {
	if err := limit(s); err != nil {
		return err
	}
	// The agent is exempt from the out-of-memory killer; its tasks are not.
	if f, err := os.OpenFile("/proc/self/oom_score_adj", os.O_WRONLY, 0); err == nil {
		_, err = f.WriteString("0")
		_ = f.Close()
		if err != nil && s.User {
			return err
		}
	} else if s.User {
		return err
	}
	if s.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("set no_new_privs", err)
		}
	}
	if s.Seccomp != FilterNone {
		return install(program(s.Seccomp))
	}
	return nil
}

// become takes on the task's user, and the agent's end as its own.
func become(s *Spec) error {
	if s.User {
		if err := identify(s.UID, s.GID, s.Groups); err != nil {
			return err
		}
	}
	if s.Parent != 0 {
		// Set after the user changes, which clears it (prctl(2)).
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return os.NewSyscallError("ask to end with the agent", err)
		}
		if os.Getppid() != s.Parent {
			return errors.New("the agent is gone")
		}
	}
	return nil
}

// identify changes this thread's identity. The raw calls are wanted: Go's own
// would first stop every other thread, only for exec to end them.
func identify(uid, gid uint32, groups []uint32) error {
	var p unsafe.Pointer
	if len(groups) > 0 {
		p = unsafe.Pointer(&groups[0])
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(p), 0); e != 0 {
		return os.NewSyscallError("set groups", e)
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
		return os.NewSyscallError("set group", e)
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
		return os.NewSyscallError("set user", e)
	}
	return nil
}
