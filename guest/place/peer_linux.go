package place

import (
	"fmt"
	"net"
	"syscall"
)

// PeerUID returns the user at the other end of c, as the kernel noted it when
// the connection was made (SO_PEERCRED, unix(7)).
func PeerUID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("peer of %s: %w", c.RemoteAddr(), err)
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return -1, fmt.Errorf("peer of %s: %w", c.RemoteAddr(), err)
	}
	if credErr != nil {
		return -1, fmt.Errorf("peer of %s: %w", c.RemoteAddr(), credErr)
	}
	return int(cred.Uid), nil
}
