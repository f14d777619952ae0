package packet

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/guest/inherit"
)

// pipeBuffer is what one direction holds, in bytes.
const pipeBuffer = 64 << 10

// pipes makes the two ends of a stream: two named pipes, one for each direction,
// so that one can end before the other. Only a named pipe can be waited for
// without holding a thread of the system. The name is nobody's to guess, its one
// instance is taken at once, and the client is this process or the making fails.
func pipes(name string) (a, b *inherit.End, err error) {
	fromB, toA, err := pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make a stream between processes: %w", err)
	}
	fromA, toB, err := pipe()
	if err != nil {
		windows.CloseHandle(fromB)
		windows.CloseHandle(toA)
		return nil, nil, fmt.Errorf("make a stream between processes: %w", err)
	}
	return inherit.NewEnd(name, fromB, toB), inherit.NewEnd(name, fromA, toA), nil
}

// pipe makes one direction. Neither handle is inherited by who is started.
func pipe() (r, w windows.Handle, err error) {
	security, err := ownersOnly()
	if err != nil {
		return 0, 0, err
	}
	name, err := windows.UTF16PtrFromString(`\\.\pipe\carrel-` + rand.Text())
	if err != nil {
		return 0, 0, err
	}
	r, err = windows.CreateNamedPipe(name, windows.PIPE_ACCESS_INBOUND|windows.FILE_FLAG_OVERLAPPED|windows.FILE_FLAG_FIRST_PIPE_INSTANCE,
		windows.PIPE_TYPE_BYTE|windows.PIPE_REJECT_REMOTE_CLIENTS, 1, pipeBuffer, pipeBuffer, 0, security)
	if err != nil {
		return 0, 0, err
	}
	w, err = windows.CreateFile(name, windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING, windows.FILE_FLAG_OVERLAPPED|windows.SECURITY_SQOS_PRESENT|windows.SECURITY_ANONYMOUS, 0)
	if err != nil {
		windows.CloseHandle(r)
		return 0, 0, err
	}
	var client uint32
	if err = windows.GetNamedPipeClientProcessId(r, &client); err == nil && client != windows.GetCurrentProcessId() {
		err = errors.New("another process was at the pipe before us")
	}
	if err != nil {
		windows.CloseHandle(r)
		windows.CloseHandle(w)
	}
	return r, w, err
}

// ownersOnly lets in the user of this process, and nobody else.
func ownersOnly() (*windows.SecurityAttributes, error) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, err
	}
	sid := user.User.Sid.String()
	d, err := windows.SecurityDescriptorFromString("O:" + sid + "D:P(A;;FA;;;" + sid + ")")
	if err != nil {
		return nil, err
	}
	sa := &windows.SecurityAttributes{SecurityDescriptor: d}
	sa.Length = uint32(unsafe.Sizeof(*sa))
	return sa, nil
}

// Streams returns two connected ends: a connection of ours, and what is handed to
// another process.
func Streams() (ours net.Conn, theirs *inherit.End, err error) {
	a, b, err := pipes("stream")
	if err != nil {
		return nil, nil, err
	}
	c, err := Stream(a)
	if err != nil {
		b.Close()
		return nil, nil, err
	}
	return c, b, nil
}

// Stream makes a connection of an end that came, which it closes.
func Stream(e *inherit.End) (net.Conn, error) {
	r, w, err := e.Files()
	if err != nil {
		return nil, err
	}
	return &stream{r: r, w: w}, nil
}

// stream is a connection of two pipes.
type stream struct{ r, w *os.File }

// asNet gives a closed connection the error that those of net have.
func asNet(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	return n, asNet(err)
}

func (s *stream) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	return n, asNet(err)
}

func (s *stream) Close() error {
	return asNet(errors.Join(s.r.Close(), s.w.Close()))
}

// CloseWrite ends one direction.
func (s *stream) CloseWrite() error { return asNet(s.w.Close()) }

func (s *stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}
func (s *stream) SetReadDeadline(t time.Time) error  { return asNet(s.r.SetReadDeadline(t)) }
func (s *stream) SetWriteDeadline(t time.Time) error { return asNet(s.w.SetWriteDeadline(t)) }
func (s *stream) LocalAddr() net.Addr                { return pipeAddr{} }
func (s *stream) RemoteAddr() net.Addr               { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
