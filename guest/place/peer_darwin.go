package place

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// PeerUID returns the effective user at the other end of c, as the kernel noted
// it when the connection was made (LOCAL_PEERCRED, unix(4)).
func PeerUID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("peer of %s: %w", c.RemoteAddr(), err)
	}
	var cred *unix.Xucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	}); err != nil {
		return -1, fmt.Errorf("peer of %s: %w", c.RemoteAddr(), err)
	}
	if credErr != nil {
		return -1, fmt.Errorf("peer of %s: %w", c.RemoteAddr(), credErr)
	}
	return int(cred.Uid), nil
}
