//go:build !carrelmac

package packet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Pair returns the two ends of a new socket, close-on-exec, for two processes
// that are to be started.
func Pair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket of packets: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link"), nil
}

// Conn is one end. One goroutine may receive while others send.
type Conn struct {
	c    *net.UnixConn
	mu   sync.Mutex // one packet at a time
	buf  []byte     // the receiver's
	oob  []byte
	once sync.Once
}

// New takes an end. f is closed, also on an error.
func New(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("the link: %w", err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok || uc.LocalAddr().Network() != "unixpacket" {
		c.Close()
		return nil, errors.New("the link is not a socket of packets")
	}
	return From(uc)
}

// From takes a connection to a socket of packets.
func From(c *net.UnixConn) (*Conn, error) {
	return &Conn{c: c, buf: make([]byte, Max+1), oob: make([]byte, unix.CmsgSpace(4*4))}, nil
}

// Close ends it. It may be called twice.
func (c *Conn) Close() error {
	c.once.Do(func() { c.c.Close() })
	return nil
}

// SyscallConn implements syscall.Conn, so that this end can be handed on.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.c.SyscallConn() }

// CloseWrite tells the other end that no more comes; it may go on sending.
func (c *Conn) CloseWrite() error { return c.c.CloseWrite() }

// SetReadDeadline bounds Receive.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.c.SetReadDeadline(t) }

// Send sends a packet, with file's descriptor if file is not nil. file stays
// the caller's. It waits at most SendTimeout for the other end.
func (c *Conn) Send(b []byte, file syscall.Conn) error {
	if len(b) > Max {
		return bad("%d bytes; %d are possible", len(b), Max)
	}
	if file == nil {
		return c.write(b, nil)
	}
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	// Control rather than File: a duplicate's Fd would make the socket block.
	cerr := rc.Control(func(fd uintptr) { err = c.write(b, unix.UnixRights(int(fd))) })
	return errors.Join(cerr, err)
}

func (c *Conn) write(b, oob []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.c.SetWriteDeadline(time.Now().Add(SendTimeout))
	_, _, err := c.c.WriteMsgUnix(b, oob, nil)
	return err
}

// Receive returns the next packet, until the next call, and the file that came
// with it or nil, which is then the caller's. io.EOF says that the other end is
// gone.
func (c *Conn) Receive() ([]byte, *os.File, error) {
	n, oobn, flags, _, err := c.c.ReadMsgUnix(c.buf, c.oob)
	if err != nil {
		return nil, nil, err
	}
	fds, err := rights(c.oob[:oobn])
	if err == nil {
		switch {
		case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || n > Max:
			err = bad("longer than %d bytes, or with many descriptors", Max)
		case len(fds) > 1:
			err = bad("%d descriptors", len(fds))
		case len(fds) == 1:
			return c.buf[:n], os.NewFile(uintptr(fds[0]), "passed"), nil
		default:
			return c.buf[:n], nil, nil
		}
	}
	for _, fd := range fds { // what is not handed on is closed
		unix.Close(fd)
	}
	return nil, nil, err
}
