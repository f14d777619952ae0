package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sendTimeout bounds a message to an end that does not read: that end is
// broken, and nobody may wait for it.
const sendTimeout = 2 * time.Second

// Pair returns the two ends of a new link, close-on-exec, for two processes
// that are to be started.
func Pair() (keeper, edge *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a link: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link"), nil
}

// Conn is one end of a link. One goroutine may receive while others send.
type Conn struct {
	c    *net.UnixConn
	mu   sync.Mutex // one message at a time
	buf  []byte     // the receiver's
	oob  []byte
	once sync.Once
}

// New takes an end of a link. f is closed, also on an error.
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
	return &Conn{c: uc, buf: make([]byte, MaxMessage+1), oob: make([]byte, unix.CmsgSpace(4*4))}, nil
}

// Close ends the link. It may be called twice.
func (c *Conn) Close() error {
	c.once.Do(func() { c.c.Close() })
	return nil
}

// Send sends a message, with conn's descriptor if conn is not nil. conn stays
// the caller's. It waits at most 2 s for the other end.
func (c *Conn) Send(m *Message, conn syscall.Conn) error {
	if err := m.check(); err != nil {
		return err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if conn == nil {
		return c.write(b, nil)
	}
	rc, err := conn.SyscallConn()
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
	c.c.SetWriteDeadline(time.Now().Add(sendTimeout))
	_, _, err := c.c.WriteMsgUnix(b, oob, nil)
	return err
}

// SendTrust says hello.
func (c *Conn) SendTrust(pem []byte) error {
	if len(pem) > MaxTrust {
		return bad("certificates of %d bytes; %d are possible", len(pem), MaxTrust)
	}
	for more := true; more; {
		n := min(len(pem), trustBit)
		more = n < len(pem)
		if err := c.Send(&Message{Kind: Hello, Trust: pem[:n], More: more}, nil); err != nil {
			return err
		}
		pem = pem[n:]
	}
	return nil
}

// Receive returns the next message and the connection that came with it, which
// is then the caller's. io.EOF says that the other end is gone.
func (c *Conn) Receive() (*Message, net.Conn, error) {
	n, oobn, flags, _, err := c.c.ReadMsgUnix(c.buf, c.oob)
	if err != nil {
		return nil, nil, err
	}
	fds, err := rights(c.oob[:oobn])
	defer func() { // what is not handed on is closed
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	switch {
	case err != nil:
		return nil, nil, err
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		return nil, nil, bad("longer than %d bytes, or with many descriptors", MaxMessage)
	case len(fds) > 1:
		return nil, nil, bad("%d descriptors", len(fds))
	}
	m, err := decode(c.buf[:n], len(fds) == 1)
	if err != nil || len(fds) == 0 {
		return m, nil, err
	}
	conn, err := stream(fds[0])
	fds = nil
	return m, conn, err
}

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

// stream makes a connection of a descriptor, which it takes. Only a stream
// socket is one.
func stream(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "stream")
	defer f.Close()
	if t, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || t != unix.SOCK_STREAM {
		return nil, bad("a descriptor that is no stream")
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, bad("%v", err)
	}
	return c, nil
}
