package place

import "golang.org/x/sys/unix"

// peerPID is the process at the other end of a unix socket; 0: unknown.
func peerPID(fd int) int {
	pid, err := unix.GetsockoptInt(fd, unix.SOL_LOCAL, unix.LOCAL_PEERPID)
	if err != nil {
		return 0
	}
	return pid
}
