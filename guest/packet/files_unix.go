//go:build unix

package packet

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// rights returns the descriptors of a control message; also with an error, so
// that they can be closed.
func rights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	cms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, bad("%v", err)
	}
	for _, cm := range cms {
		more, perr := unix.ParseUnixRights(&cm)
		if perr != nil {
			err = bad("%v", perr)
			continue
		}
		fds = append(fds, more...)
	}
	return fds, err
}

// Stream makes a connection of a file that came, which it closes. Only a stream
// socket is one.
func Stream(f *os.File) (net.Conn, error) {
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var kind int
	var kerr error
	if err := rc.Control(func(fd uintptr) { kind, kerr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE) }); err != nil {
		return nil, err
	}
	if kerr != nil || kind != unix.SOCK_STREAM {
		return nil, bad("a descriptor that is no stream")
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, bad("%v", err)
	}
	return c, nil
}
