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
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/guest/inherit"
)

// Windows has no sockets that bring files. A packet is a frame on a stream of
// pipes:
//
//	length (4 bytes, big endian) | kind (1) | handles of a stream (2 × 8) | the packet
//
// A stream's handles are numbers that mean something in one process. One end
// leads: it knows the other's process by its first frame, puts handles into it
// and takes them out of it. The other end, which may be taken over by what it
// reads, opens nothing of the leader's: it says which handles of its own are to be
// taken. So no number that it says is ever looked up among the leader's handles.
const (
	framePacket = iota
	frameHello  // the packet is the sender's process number, and comes first
	framePut    // the handles are the receiver's, which follows
	frameTake   // the handles are the sender's, which the receiver, who leads, takes
)

const frameHead = 4 + 1

// Pair returns the two ends of a new link for two processes that are to be
// started; a leads, and b is for the process that may be taken over.
func Pair() (a, b *inherit.End, err error) {
	if a, b, err = pipes("link"); err == nil {
		a.Leads = true
	}
	return a, b, err
}

// Conn is one end. One goroutine may receive while others send.
type Conn struct {
	r, w  *os.File
	leads bool
	mu    sync.Mutex // one packet at a time
	buf   []byte     // the receiver's
	once  sync.Once

	known chan struct{} // closed when peer is set, or never will be
	learn sync.Once
	peer  windows.Handle // the other end's process, if this one leads
}

// New takes an end. e is closed, also on an error.
func New(e *inherit.End) (*Conn, error) {
	if e == nil {
		return nil, errors.New("the link is missing")
	}
	r, w, err := e.Files()
	if err != nil {
		return nil, err
	}
	c := &Conn{r: r, w: w, leads: e.Leads, buf: make([]byte, Max), known: make(chan struct{})}
	if !c.leads {
		close(c.known)
		c.learn.Do(func() {})
		if err := c.write(frameHello, nil, binary.BigEndian.AppendUint32(nil, windows.GetCurrentProcessId())); err != nil {
			c.Close()
			return nil, fmt.Errorf("the link: %w", err)
		}
	}
	return c, nil
}

// From is for the sockets of Unix.
func From(*net.UnixConn) (*Conn, error) { return nil, errors.ErrUnsupported }

// SyscallConn is for Unix: a link that is in use stays with its process here.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return nil, errors.ErrUnsupported }

// Close ends it. It may be called twice.
func (c *Conn) Close() error {
	c.once.Do(func() {
		c.r.Close()
		c.w.Close()
		c.learn.Do(func() { close(c.known) })
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.peer != 0 {
			windows.CloseHandle(c.peer)
			c.peer = 0
		}
	})
	return nil
}

// CloseWrite tells the other end that no more comes; it may go on sending.
func (c *Conn) CloseWrite() error { return c.w.Close() }

// SetReadDeadline bounds Receive, which then ends the connection if it was in the
// middle of a packet.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.r.SetReadDeadline(t) }

// Send sends a packet, with a stream if file, an *inherit.End, is not nil. It
// stays the caller's. It waits at most SendTimeout for the other end.
func (c *Conn) Send(b []byte, file syscall.Conn) error {
	if len(b) == 0 || len(b) > Max {
		return bad("%d bytes; 1 to %d are possible", len(b), Max)
	}
	if file == nil {
		return c.write(framePacket, nil, b)
	}
	e, is := file.(*inherit.End)
	if !is {
		return fmt.Errorf("a %T cannot be handed to another process", file)
	}
	select {
	case <-c.known:
	case <-time.After(SendTimeout):
		return errors.New("the other process has not said which it is")
	}
	kind, to := byte(frameTake), windows.CurrentProcess()
	if c.leads {
		c.mu.Lock()
		defer c.mu.Unlock() // peer is not closed meanwhile
		if c.peer == 0 {
			return net.ErrClosed
		}
		kind, to = framePut, c.peer
	}
	r, w, err := e.Duplicate(to, false)
	if err != nil {
		return err
	}
	handles := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(r)), uint64(w))
	if c.leads {
		err = c.writeLocked(kind, handles, b)
	} else {
		err = c.write(kind, handles, b)
	}
	if err != nil {
		inherit.CloseIn(to, r)
		inherit.CloseIn(to, w)
	}
	return err
}

func (c *Conn) write(kind byte, handles, b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writeLocked(kind, handles, b)
}

func (c *Conn) writeLocked(kind byte, handles, b []byte) error {
	p := make([]byte, 0, frameHead+len(handles)+len(b))
	p = append(binary.BigEndian.AppendUint32(p, uint32(len(b))), kind)
	p = append(append(p, handles...), b...)
	c.w.SetWriteDeadline(time.Now().Add(SendTimeout))
	n, err := c.w.Write(p)
	if err != nil && n > 0 {
		c.w.Close() // the other end is in the middle of a packet
	}
	return err
}

// Receive returns the next packet, until the next call, and the stream that came
// with it or nil, which is then the caller's. io.EOF says that the other end is
// gone.
func (c *Conn) Receive() ([]byte, *inherit.End, error) {
	for {
		var head [frameHead]byte
		if _, err := io.ReadFull(c.r, head[:]); err != nil {
			return nil, nil, c.ended(err)
		}
		b, e, err := c.frame(binary.BigEndian.Uint32(head[:]), head[4])
		if err != nil {
			c.Close()
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, nil, err
		}
		if b != nil {
			return b, e, nil
		}
	}
}

// ended is what the end of a link between two packets means.
func (c *Conn) ended(err error) error {
	c.learn.Do(func() { close(c.known) })
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		c.Close()
	}
	return err
}

// frame reads what follows the head of one; a hello has no packet.
func (c *Conn) frame(n uint32, kind byte) (b []byte, e *inherit.End, err error) {
	if n == 0 || n > Max {
		return nil, nil, bad("%d bytes; 1 to %d are possible", n, Max)
	}
	var handles [16]byte
	switch {
	case kind == framePacket:
	case kind == frameHello && c.leads, kind == framePut && !c.leads, kind == frameTake && c.leads:
		if kind == frameHello {
			break
		}
		if _, err := io.ReadFull(c.r, handles[:]); err != nil {
			return nil, nil, err
		}
	default:
		return nil, nil, bad("a frame of kind %d", kind)
	}
	b = c.buf[:n]
	if _, err := io.ReadFull(c.r, b); err != nil {
		return nil, nil, err
	}
	r, w := windows.Handle(binary.BigEndian.Uint64(handles[:])), windows.Handle(binary.BigEndian.Uint64(handles[8:]))
	switch kind {
	case frameHello:
		return nil, nil, c.hello(b)
	case framePut:
		return b, inherit.NewEnd("passed", r, w), nil
	case frameTake:
		e, err = c.take(r, w)
	}
	return b, e, err
}

// hello opens the other end's process, once: what it says later may be said by who
// has taken it over.
func (c *Conn) hello(b []byte) error {
	first, err := false, error(nil)
	c.learn.Do(func() {
		first = true
		defer close(c.known)
		if len(b) != 4 {
			err = bad("a hello of %d bytes", len(b))
			return
		}
		var h windows.Handle
		if h, err = windows.OpenProcess(windows.PROCESS_DUP_HANDLE, false, binary.BigEndian.Uint32(b)); err != nil {
			err = fmt.Errorf("the process at the other end of the link: %w", err)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.peer = h
	})
	if !first {
		return bad("a second hello")
	}
	return err
}

// take moves two handles of the other process into this one. Whatever they are
// there, here they have to be pipes that somebody can wait for.
func (c *Conn) take(r, w windows.Handle) (*inherit.End, error) {
	own, err := c.move(r, w)
	if err == nil {
		// A file whose reads are not overlapped answers no question while one is under
		// way, which the other process can see to.
		judged := make(chan error, 1)
		go func() { judged <- errors.Join(overlappedPipe(own[0]), overlappedPipe(own[1])) }()
		select {
		case err = <-judged:
		case <-time.After(SendTimeout):
			go func() { // its process ends with the link, and then it answers
				<-judged
				closeAll(own)
			}()
			return nil, bad("a handle that does not say what it is")
		}
	}
	if err != nil {
		closeAll(own)
		return nil, bad("a handle that cannot be taken: %v", err)
	}
	return inherit.NewEnd("passed", own[0], own[1]), nil
}

// move duplicates handles of the other process, which then has them no more.
func (c *Conn) move(from ...windows.Handle) (own [2]windows.Handle, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peer == 0 {
		return own, errors.New("its process has not said which it is")
	}
	for i, h := range from {
		if err := windows.DuplicateHandle(c.peer, h, windows.CurrentProcess(), &own[i], 0, false, windows.DUPLICATE_SAME_ACCESS|windows.DUPLICATE_CLOSE_SOURCE); err != nil {
			return own, err
		}
	}
	return own, nil
}

func closeAll(own [2]windows.Handle) {
	for _, h := range own {
		if h != 0 {
			windows.CloseHandle(h)
		}
	}
}

// fileModeInformation is a file's flags, by wdm.h.
const fileModeInformation = 16

// overlappedPipe returns an error unless h is a pipe whose calls do not wait for
// one another. It may not return while a call is under way.
func overlappedPipe(h windows.Handle) error {
	if kind, err := windows.GetFileType(h); err != nil || kind != windows.FILE_TYPE_PIPE {
		return errors.New("no pipe")
	}
	var status windows.IO_STATUS_BLOCK
	var mode uint32
	err := windows.NtQueryInformationFile(h, &status, (*byte)(unsafe.Pointer(&mode)), uint32(unsafe.Sizeof(mode)), fileModeInformation)
	if err == nil && mode&(windows.FILE_SYNCHRONOUS_IO_ALERT|windows.FILE_SYNCHRONOUS_IO_NONALERT) != 0 {
		return errors.New("a pipe whose reads and writes wait for one another")
	}
	return nil
}
