package uevent

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// kernelGroup is the multicast group of the kernel's own messages; another is
// udev's (lib/kobject_uevent.c).
const kernelGroup = 1

// Socket hears of every device from Open on. It is one goroutine's.
type Socket struct{ fd int }

// Open begins to listen. What was there before is not told again: look for
// it after Open.
func Open() (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("hear of devices: %w", os.NewSyscallError("socket", err))
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("hear of devices: %w", os.NewSyscallError("bind", err))
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
		tv := unix.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
		if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		_, _, err := unix.Recvfrom(s.fd, word[:], 0)
		switch {
		case err == nil || errors.Is(err, unix.ENOBUFS):
			return nil
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
		default:
			return os.NewSyscallError("recvfrom", err)
		}
	}
}

// Close ends it.
func (s *Socket) Close() error { return unix.Close(s.fd) }
