package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// Serve runs an agent as an ordinary process, as the test driver starts it:
// boot is the boot stream, and over calls, a Unix socket, come the host's calls:
// each message is a port, 4 bytes big endian, with one connected stream socket
// (SCM_RIGHTS). Shares are not mounted, control
// groups not used, and neither clock nor name is changed.
func Serve(ctx context.Context, boot, calls *os.File) error {
	// What a task leaves behind becomes this process's to reap, as with PID 1.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("become a reaper", err)
	}
	stream, err := fileConn(boot)
	if err != nil {
		return fmt.Errorf("boot stream: %w", err)
	}
	control, err := fileConn(calls)
	if err != nil {
		_ = stream.Close()
		return fmt.Errorf("socket for calls: %w", err)
	}
	return New(Options{Boot: stream, Listener: passed{control}, Mount: mountNone}).Run(ctx)
}

func mountNone(_ int, m *wire.Mount) error {
	if m.Type != "none" {
		return fmt.Errorf("an agent that is not a guest's PID 1 mounts nothing, least of all a %.20q", m.Type)
	}
	return nil
}

func fileConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("a %T is no Unix socket", c)
	}
	return u, nil
}

// passed is a listener whose connections come over a Unix socket.
type passed struct{ *net.UnixConn }

// Addr is that of the socket over which connections come.
func (p passed) Addr() net.Addr { return p.LocalAddr() }

// Accept waits for the next connection. The other side's end is ErrClosed.
func (p passed) Accept() (net.Conn, error) {
	for {
		conn, port, err := p.receive()
		if err != nil || port == wire.PortAgent {
			return conn, err
		}
		// As a guest's kernel would: nobody listens there.
		_ = conn.Close()
	}
}

func (p passed) receive() (net.Conn, uint32, error) {
	var b [4]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := p.ReadMsgUnix(b[:], oob)
	if err != nil {
		return nil, 0, err
	}
	if n == 0 && oobn == 0 {
		return nil, 0, net.ErrClosed
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || n != len(b) || len(msgs) != 1 {
		return nil, 0, errors.New("a message came without a port or a connection")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, 0, errors.New("a message came without a connection")
	}
	unix.CloseOnExec(fds[0])
	conn, err := fileConn(os.NewFile(uintptr(fds[0]), "call"))
	return conn, binary.BigEndian.Uint32(b[:]), err
}

var _ net.Listener = passed{}
