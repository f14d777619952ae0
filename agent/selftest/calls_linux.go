package selftest

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// closing closes the descriptor that a call returned.
func closing(fd int, err error) error {
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func memfd() (string, error) { return "", closing(unix.MemfdCreate("selftest", unix.MFD_CLOEXEC)) }

func pidfd() (string, error) { return "", closing(unix.PidfdOpen(os.Getpid(), 0)) }

func events() (string, error) {
	return "", errors.Join(
		closing(unix.EpollCreate1(unix.EPOLL_CLOEXEC)),
		closing(unix.Eventfd(0, unix.EFD_CLOEXEC)),
		closing(unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)),
		closing(unix.Signalfd(-1, new(unix.Sigset_t), unix.SFD_CLOEXEC)),
	)
}

func aio() (string, error) {
	var ctx uintptr
	if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&ctx)), 0); e != 0 {
		return "", e
	}
	if _, _, e := unix.Syscall(unix.SYS_IO_DESTROY, ctx, 0, 0); e != 0 {
		return "", e
	}
	return "", nil
}

func sysv() (string, error) {
	id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, 0o600)
	if err != nil {
		return "", err
	}
	_, err = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	return "", err
}

// rseq is asked for something that it must refuse: a thread may have registered, and must not lose it.
func rseq() (string, error) {
	if _, _, e := unix.Syscall6(unix.SYS_RSEQ, 1, 1, 0, 0, 0, 0); e == unix.ENOSYS {
		return "", e
	}
	return "", nil
}

func processVM() (string, error) {
	from, to := []byte("x"), make([]byte, 1)
	local := []unix.Iovec{{Base: &to[0], Len: 1}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&from[0])), Len: 1}}
	_, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0)
	if err == nil && to[0] != 'x' {
		err = errors.New("it read something else")
	}
	return "", err
}

func random() (string, error) {
	var b [16]byte
	_, err := unix.Getrandom(b[:], unix.GRND_NONBLOCK)
	return "", err
}

// noBPF: 1 cannot be undone until the next boot, 2 can, by root.
func noBPF() (string, error) { return holds("/proc/sys/kernel/unprivileged_bpf_disabled", "1", "2")() }
