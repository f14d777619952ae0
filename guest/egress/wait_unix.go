//go:build unix

package egress

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// readable waits until a read of c would not block, so that an idle connection
// holds no buffer. It says nothing of an end or an error: the read will.
func readable(c net.Conn) error {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err != unix.EAGAIN && err != unix.EINTR
	})
}
