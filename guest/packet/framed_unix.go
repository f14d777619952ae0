//go:build unix

package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// framed is a Conn for systems whose Unix sockets have no packets that also tell
// of the other end's end, such as macOS: packets on a stream, each after its
// length (4 bytes, big endian). A file comes with the first byte of a packet.
//
// A packet of no bytes says that a file has arrived. Until then its sender keeps
// it open, since the kernel of macOS may take a socket for garbage that is open
// nowhere but on its way (Chromium's issue 298276).
type framed struct {
	c    *net.UnixConn
	mu   sync.Mutex // one packet at a time
	sent []*os.File // on their way, oldest first
	buf  []byte     // the receiver's
	oob  []byte
	once sync.Once
}

// maxSent is how many files may be on their way at once.
const maxSent = 1024

func newFramed(c *net.UnixConn) *framed {
	return &framed{c: c, buf: make([]byte, Max), oob: make([]byte, unix.CmsgSpace(4*4))}
}

// framedPair makes the two ends of a stream. macOS cannot make them close on
// exec at once, so no process is started meanwhile.
func framedPair() (a, b *os.File, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket of packets: %w", err)
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		err = errors.Join(err, unix.SetNonblock(fd, true))
	}
	return os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link"), err
}

// Close ends it. It may be called twice.
func (f *framed) Close() error {
	f.once.Do(func() {
		f.c.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, s := range f.sent {
			s.Close()
		}
		f.sent = nil
	})
	return nil
}

// SyscallConn implements syscall.Conn, so that this end can be handed on.
func (f *framed) SyscallConn() (syscall.RawConn, error) { return f.c.SyscallConn() }

// CloseWrite tells the other end that no more comes; it may go on sending.
func (f *framed) CloseWrite() error { return f.c.CloseWrite() }

// SetReadDeadline bounds Receive, which then ends the connection if it was in the
// middle of a packet.
func (f *framed) SetReadDeadline(t time.Time) error { return f.c.SetReadDeadline(t) }

// Send sends a packet, with file's descriptor if file is not nil. file stays
// the caller's. It waits at most SendTimeout for the other end.
func (f *framed) Send(b []byte, file syscall.Conn) error {
	if len(b) == 0 || len(b) > Max {
		return bad("%d bytes; 1 to %d are possible", len(b), Max)
	}
	var keep *os.File
	if file != nil {
		rc, err := file.SyscallConn()
		if err != nil {
			return err
		}
		fd := -1
		cerr := rc.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
		if err := errors.Join(cerr, err); err != nil {
			return err
		}
		keep = os.NewFile(uintptr(fd), "passed")
	}
	return f.write(b, keep)
}

// write sends one packet; keep is its file, or nil, and becomes write's.
func (f *framed) write(b []byte, keep *os.File) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var oob []byte
	if keep != nil {
		defer func() {
			if err != nil {
				keep.Close()
			} else {
				f.sent = append(f.sent, keep)
			}
		}()
		if len(f.sent) >= maxSent {
			return fmt.Errorf("%d files are on their way, which is the limit", maxSent)
		}
		raw, err := keep.SyscallConn()
		if err != nil {
			return err
		}
		if err := raw.Control(func(fd uintptr) { oob = unix.UnixRights(int(fd)) }); err != nil {
			return err
		}
	}
	f.c.SetWriteDeadline(time.Now().Add(SendTimeout))
	p := append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
	n, _, err := f.c.WriteMsgUnix(p, oob, nil)
	if err == nil && n < len(p) {
		if _, err = f.c.Write(p[n:]); err != nil {
			f.c.Close() // the other end is in the middle of a packet
		}
	}
	return err
}

// arrived lets go of the file that is longest on its way.
func (f *framed) arrived() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.sent) == 0 {
		return bad("a file has arrived that was not sent")
	}
	f.sent[0].Close()
	f.sent = f.sent[1:]
	return nil
}

// Receive returns the next packet, until the next call, and the file that came
// with it or nil, which is then the caller's. io.EOF says that the other end is
// gone.
func (f *framed) Receive() ([]byte, *os.File, error) {
	for {
		var head [4]byte
		file, err := f.fill(head[:], true)
		if err != nil {
			return nil, nil, err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n == 0 && file == nil {
			if err := f.arrived(); err != nil {
				return nil, nil, err
			}
			continue
		}
		if n == 0 || n > Max {
			err = bad("%d bytes; 1 to %d are possible", n, Max)
		} else {
			_, err = f.fill(f.buf[:n], false)
		}
		if err == nil && file != nil {
			err = f.write(nil, nil)
		}
		if err != nil {
			if file != nil {
				file.Close()
			}
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			f.c.Close()
			return nil, nil, err
		}
		return f.buf[:n], file, nil
	}
}

// fill reads to the end of p. A file may come with the first byte of a packet.
func (f *framed) fill(p []byte, first bool) (file *os.File, err error) {
	for have := 0; have < len(p) && err == nil; {
		var n, oobn, flags int
		if n, oobn, flags, _, err = f.c.ReadMsgUnix(p[have:], f.oob); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.EOF
				if have > 0 {
					err = io.ErrUnexpectedEOF
				}
			}
			break
		}
		fds, rerr := rights(f.oob[:oobn])
		switch {
		case rerr != nil:
			err = rerr
		case flags&unix.MSG_CTRUNC != 0 || len(fds) > 1 || len(fds) == 1 && (have > 0 || !first):
			err = bad("descriptors where none should be")
		case len(fds) == 1:
			file, fds = os.NewFile(uintptr(fds[0]), "passed"), nil
		}
		for _, fd := range fds { // what is not handed on is closed
			unix.Close(fd)
		}
		have += n
	}
	if err != nil && file != nil {
		file.Close()
		file = nil
	}
	return file, err
}
