//go:build unix

package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/wire"
)

const (
	// silence is how long the output of a task that has ended may stay quiet
	// before it is taken for finished. It matters only if a process escaped
	// the task and holds a pipe open.
	silence = time.Second
	// leftover is how much such a process may still write, in bytes: more
	// than any pipe holds.
	leftover = 16 << 20
	// dawdle is after how long such a process is not waited for any more, however
	// often it writes a little. What is in the pipe then is still told.
	dawdle = 10 * time.Second
)

// streams are a task's files on both sides.
type streams struct {
	// child are the task's 0, 1 and 2; closed once it has started.
	child []*os.File
	// in is the agent's end of stdin, or nil. out and err are read from; err
	// is nil with a terminal, where all three are the terminal.
	in, out, err *os.File
	tty          bool
}

// open makes a terminal or pipes that belong to the user with this uid, so
// that the task may open /dev/stdout or its terminal by name.
func open(e *wire.Exec, uid int) (_ *streams, err error) {
	s := &streams{tty: e.Tty}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if e.Tty {
		master, slave, err := terminal()
		if err != nil {
			return nil, fmt.Errorf("open a terminal in the guest: %w", err)
		}
		s.in, s.out, s.child = master, master, []*os.File{slave, slave, slave}
		if err := s.resize(e.Rows, e.Cols); err != nil {
			return nil, fmt.Errorf("size the terminal in the guest: %w", err)
		}
		return s, give(slave, uid)
	}
	pipe := func(toChild bool) (ours *os.File, err error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("make a pipe in the guest: %w", err)
		}
		theirs := w
		ours = r
		if toChild {
			theirs, ours = r, w
		}
		s.child = append(s.child, theirs)
		return ours, give(theirs, uid)
	}
	if e.Stdin {
		s.in, err = pipe(true)
	} else {
		var null *os.File
		if null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
			s.child = append(s.child, null)
		}
	}
	if err == nil {
		s.out, err = pipe(false)
	}
	if err == nil {
		s.err, err = pipe(false)
	}
	return s, err
}

func give(f *os.File, uid int) error {
	if uid < 0 {
		return nil
	}
	if err := f.Chown(uid, -1); err != nil && !errors.Is(err, syscall.EPERM) {
		return err
	}
	// EPERM: gVisor's pipes have no owner to change; then the user cannot open
	// /dev/stdout once more.
	return nil
}

func (s *streams) resize(rows, cols uint32) error {
	if !s.tty {
		return nil
	}
	raw, err := s.out.SyscallConn()
	if err != nil {
		return err
	}
	size := &unix.Winsize{Row: uint16(min(rows, maxRows)), Col: uint16(min(cols, maxRows))}
	cerr := raw.Control(func(fd uintptr) { err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) })
	return errors.Join(cerr, err)
}

func (s *streams) closeChild() {
	for _, f := range s.child {
		_ = f.Close()
	}
	s.child = nil
}

func (s *streams) close() {
	s.closeChild()
	for _, f := range []*os.File{s.in, s.out, s.err} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// output sends frames of one call, one at a time. A host that does not read
// stops the task's own writes in the end; nothing piles up here.
type output struct {
	mu   sync.Mutex
	conn net.Conn
}

func (o *output) send(m proto.Message) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return wire.Write(o.conn, m)
}

func (o *output) sendChunk(c *wire.Chunk, n int, isErr bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return c.WriteOutput(o.conn, n, isErr)
}

func (o *output) fail(code int32, message string) {
	f := &wire.Failed{Code: code, Message: text(message, wire.MaxText)}
	_ = o.send(&wire.Output{Kind: &wire.Output_Failed{Failed: f}})
}

// drain ends the pumps of a task that has ended: both together have what is left.
type drain struct {
	begun atomic.Bool // set last
	left  atomic.Int64
	until time.Time
}

// begin is called once, when the task has ended.
func (d *drain) begin(files ...*os.File) {
	d.left.Store(leftover)
	d.until = time.Now().Add(dawdle)
	d.begun.Store(true)
	for _, f := range files {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(silence))
		}
	}
}

// over says whether a pump that has told n bytes of r since has no more to tell.
func (d *drain) over(r *os.File, n int) bool {
	if !d.begun.Load() {
		return false
	}
	if d.left.Add(-int64(n)) <= 0 {
		return true
	}
	if now := time.Now(); now.Before(d.until) {
		_ = r.SetReadDeadline(now.Add(silence))
	}
	return false
}

// pump sends what r gives until its end.
func (o *output) pump(r *os.File, isErr bool, d *drain) error {
	c := wire.NewChunk()
	for {
		n, err := r.Read(c.Room())
		if errors.Is(err, os.ErrDeadlineExceeded) {
			n, err = readNow(r, c.Room())
		}
		if n > 0 {
			if err := o.sendChunk(c, n, isErr); err != nil {
				return err
			}
			if d.over(r, n) {
				return nil
			}
		}
		if err != nil {
			// EIO is how a terminal says that nobody has it open any more.
			if err == io.EOF || errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EAGAIN) {
				return nil
			}
			return err
		}
	}
}

// readNow reads what is there and waits for no more: EAGAIN. Go looks at a deadline
// before it looks at the file, and an agent that did not get to run for so long (a
// guest that was paused, a host that was busy) would lose what its task had said.
func readNow(r *os.File, b []byte) (n int, err error) {
	raw, err := r.SyscallConn()
	if err != nil {
		return 0, err
	}
	// What has deadlines does not block.
	cerr := raw.Control(func(fd uintptr) {
		for {
			if n, err = unix.Read(int(fd), b); err != syscall.EINTR {
				return
			}
		}
	})
	if n, err = max(n, 0), errors.Join(cerr, err); n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// stdin holds what the host sent and the task has not read: at most
// wire.StdinWindow bytes, so that the host's other frames are never held up.
type stdin struct {
	w   *os.File
	tty bool

	mu   sync.Mutex
	cond *sync.Cond
	buf  []byte
	// unread counts buf and what is being written.
	unread  int
	closing bool
	stopped bool
}

func newStdin(s *streams) *stdin {
	i := &stdin{w: s.in, tty: s.tty}
	i.cond = sync.NewCond(&i.mu)
	return i
}

var errWindow = errors.New("more stdin than the window allows")

// add queues p.
func (i *stdin) add(p []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.closing || i.w == nil:
		return errors.New("stdin after its end")
	case i.unread+len(p) > wire.StdinWindow:
		return errWindow
	}
	i.buf = append(i.buf, p...)
	i.unread += len(p)
	i.cond.Signal()
	return nil
}

// finish closes the task's stdin once all was written.
func (i *stdin) finish() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closing = true
	i.cond.Signal()
}

// stop gives up what is queued.
func (i *stdin) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.stopped = true
	i.cond.Signal()
	if i.w != nil {
		_ = i.w.SetWriteDeadline(time.Now())
	}
}

// pump writes to the task until finish or stop. What a task that closed its
// stdin does not take is dropped, as a pipe to a finished program would.
func (i *stdin) pump(o *output) {
	broken := false
	for {
		i.mu.Lock()
		for len(i.buf) == 0 && !i.closing && !i.stopped {
			i.cond.Wait()
		}
		p := i.buf
		i.buf = nil
		done, stopped := len(p) == 0, i.stopped
		i.mu.Unlock()
		if stopped {
			return
		}
		if done {
			if i.tty {
				// End of input as a terminal says it: Ctrl-D.
				_, _ = i.w.Write([]byte{4})
			} else {
				_ = i.w.Close()
			}
			return
		}
		if !broken {
			_, err := i.w.Write(p)
			broken = err != nil
		}
		i.mu.Lock()
		i.unread -= len(p)
		i.mu.Unlock()
		if o.send(&wire.Output{Kind: &wire.Output_StdinTaken{StdinTaken: uint32(len(p))}}) != nil {
			return
		}
	}
}
