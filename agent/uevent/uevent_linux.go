package uevent

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// kernelGroup is the multicast group of the kernel's own messages; another is
// udev's (lib/kobject_uevent.c).
const kernelGroup = 1

// Socket hears of every device from Open on. It is one goroutine's.
type Socket struct{ fd int }

// Open begins to listen. What was there before is not told again: look for
// it after Open.
func Open() (*Socket, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, syscall.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, deaf("socket", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: kernelGroup}); err != nil {
		syscall.Close(fd)
		return nil, deaf("bind", err)
	}
	return &Socket{fd}, nil
}

// Next waits for the next word, whatever device it is about; at end it gives up
// with os.ErrDeadlineExceeded. Words that came too fast to be kept count as one.
func (s *Socket) Next(end time.Time) error {
	var word [8 << 10]byte // BUFFER_SIZE there, and the kernel's header before it
	for {
		left := time.Until(end)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		// A time of zero would be none.
		tv := syscall.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
		if err := syscall.SetsockoptTimeval(s.fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		_, _, err := syscall.Recvfrom(s.fd, word[:], 0)
		switch {
		case err == nil || errors.Is(err, syscall.ENOBUFS):
			return nil
		case errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.EAGAIN):
		default:
			return os.NewSyscallError("recvfrom", err)
		}
	}
}

// Close ends it.
func (s *Socket) Close() error { return syscall.Close(s.fd) }

// deaf names the call that kept this from hearing anything. It is no fmt.Errorf
// because a machine's first process needs this package early: see package machine.
func deaf(call string, err error) error {
	return &os.PathError{Op: "hear of devices", Path: call, Err: err}
}
