//go:build !carrelmac

package guest

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// copyHalf copies one direction until src has ended; an error says that the
// connection as a whole has.
func copyHalf(dst, src net.Conn) error {
	sc, ok := src.(syscall.Conn)
	if !ok {
		return copyPatient(dst, src)
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var n int
		var rerr error
		b := copyBuffers.Get().(*[]byte)
		err := rc.Read(func(fd uintptr) bool {
			if b == nil { // it waited, and held nothing
				b = copyBuffers.Get().(*[]byte)
			}
			for {
				if n, rerr = unix.Read(int(fd), *b); rerr != unix.EINTR {
					break
				}
			}
			if rerr == unix.EAGAIN {
				copyBuffers.Put(b)
				b = nil
				return false
			}
			return true
		})
		if err == nil {
			err = rerr
		}
		if err == nil && n > 0 {
			_, err = dst.Write((*b)[:n])
		}
		if b != nil {
			copyBuffers.Put(b)
		}
		switch {
		case err != nil:
			return err
		case n == 0:
			return hungUp(rc)
		}
	}
}

// errHungUp says that the other end is gone, and not just done with sending.
var errHungUp = errors.New("the connection was given up")

// hungUp tells an end that was closed from one that only sends no more: a unix
// socket whose other end is gone polls as hung up (net/unix/af_unix.c).
func hungUp(rc syscall.RawConn) error {
	var gone bool
	err := rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, perr := unix.Poll(p, 0)
		gone = perr == nil && n == 1 && p[0].Revents&unix.POLLHUP != 0
	})
	if err == nil && gone {
		err = errHungUp
	}
	return err
}
