//go:build linux || darwin

package place

import (
	"net"

	"golang.org/x/sys/unix"
)

// PeerSession is the session (setsid(2)) of the process at the other end of a unix
// socket: all that was started from one terminal, or by one service. 0: it cannot
// be told.
func PeerSession(c net.Conn) int {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	raw.Control(func(fd uintptr) { pid = peerPID(int(fd)) })
	if pid <= 0 { // unknown, or of another PID namespace
		return 0
	}
	s, err := unix.Getsid(pid)
	if err != nil {
		return 0
	}
	return s
}
