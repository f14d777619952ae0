package agent

import (
	"bufio"
	"context"
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

	"github.com/carrel-vm/carrel/guest/wire"
)

// Bounds of a stream of FUSE messages.
const (
	// outHeader is struct fuse_out_header of include/uapi/linux/fuse.h: u32
	// length, i32 error, u64 unique.
	outHeader = 16
	// maxMessage is the longest message either way: 1 MiB of a file, and what
	// goes with it.
	maxMessage = 1<<20 + 8<<10
	// fuseWait bounds how long the host may take until a share is there.
	fuseWait = 10 * time.Second
	// fuseEnd bounds how long the host may take to close a stream after the
	// share was unmounted.
	fuseEnd = 5 * time.Second
	// together is how long what nobody waits for may wait for what comes next,
	// and maxTogether how many bytes of it.
	together    = 5 * time.Millisecond
	maxTogether = 16 << 10
)

const fuseDevice = "/dev/fuse"

// relay carries the messages of one share between the kernel and the host's
// share server. It understands of them their length, which of them nobody waits
// for, and which ask for a name that cannot be there (fresh):
//
//  1. one read of the device is one message, which goes to the host as it is
//  2. one message of the host is one write to the device
//
// A goroutine for each way makes the system calls itself and blocks in them,
// rather than in Go's poller: under emulation the poller and the threads that
// look for work after each of its events cost several times what the message
// does, and keep the processors busy on which the host would answer.
//
// When either side ends, so does the other. If the device stayed open without
// its server, whoever waits for an answer would wait for ever; closed, all get
// ENOTCONN.
//
// The agent itself must not hold up the kernel over a file of a share: it opens
// none with package os, whose poller would ask the share from a thread that Go
// cannot spare, and starts processes in "/" only.
type relay struct {
	dev  int           // nonblocking
	host int           // a stream, blocking
	wake int           // an eventfd that can be read when it ends
	done chan struct{} // closed when nothing of it runs, and all three are closed

	fresh *fresh

	mu    sync.Mutex
	ended bool
}

// openFuse opens the device so that no thread waits for it.
func openFuse() (int, error) {
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("open %s: %w (the kernel needs its fuse module: modprobe fuse)", fuseDevice, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return -1, fmt.Errorf("open %s: %w (whoever starts guests must be allowed to: chmod 0666 %[1]s; or share the folder :plain, or use a VM)", fuseDevice, err)
	}
	return -1, fmt.Errorf("open %s: %w", fuseDevice, err)
}

// mountFuse mounts a share whose server the host runs. When it returns the
// share is there. The caller ends the relay.
func mountFuse(ctx context.Context, dial func(context.Context, uint32) (net.Conn, error), s *wire.Mount, at string, flags uintptr) (*relay, error) {
	if dial == nil {
		return nil, errors.New("there are no streams to the host, over which it would be served")
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, fuseWait)
	defer cancel()
	fd, err := openFuse()
	if err != nil {
		return nil, err
	}
	host, err := dial(ctx, wire.PortShare)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if err := wire.Write(host, &wire.Attach{Tag: s.Tag}); err != nil {
		_, _ = unix.Close(fd), host.Close()
		return nil, fmt.Errorf("ask the host for share %s: %w", s.Tag, err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other,default_permissions", fd, os.Geteuid(), os.Getegid())
	if err := unix.Mount(s.Tag, at, "fuse", flags, options); err != nil {
		_, _ = unix.Close(fd), host.Close()
		if errors.Is(err, unix.ENODEV) {
			return nil, fmt.Errorf("mount share %s at %s: %w (the kernel has no FUSE)", s.Tag, at, err)
		}
		return nil, fmt.Errorf("mount share %s at %s: %w", s.Tag, at, err)
	}
	r, err := newRelay(fd, host)
	if err != nil {
		_ = unix.Unmount(at, unix.MNT_DETACH)
		return nil, fmt.Errorf("carry share %s: %w", s.Tag, err)
	}
	go r.run()
	// It is mounted before the server has said a word. A server that says
	// none is not waited for.
	late := context.AfterFunc(ctx, r.end)
	var st unix.Stat_t
	err = unix.Stat(at, &st)
	if !late() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		r.close()
		_ = unix.Unmount(at, unix.MNT_DETACH)
		return nil, fmt.Errorf("share %s is not served by the host: %w", s.Tag, err)
	}
	return r, nil
}

// newRelay takes over the device and the stream, on an error too.
func newRelay(dev int, host net.Conn) (*relay, error) {
	stream, err := blocking(host)
	if err != nil {
		_ = unix.Close(dev)
		return nil, err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_, _ = unix.Close(dev), unix.Close(stream)
		return nil, err
	}
	return &relay{dev: dev, host: stream, wake: wake, done: make(chan struct{}), fresh: newFresh()}, nil
}

// blocking takes a stream out of Go's poller.
func blocking(c net.Conn) (fd int, err error) {
	defer c.Close()
	s, ok := c.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("a %T has no descriptor", c)
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(cerr, err); err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// run carries until either side ends.
func (r *relay) run() {
	defer close(r.done)
	var up sync.WaitGroup
	up.Go(r.up)
	r.down()
	r.end()
	up.Wait()
	// Last, so that no number of theirs is another's while it is in use.
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _, _ = unix.Close(r.dev), unix.Close(r.host), unix.Close(r.wake)
	r.dev, r.host, r.wake = -1, -1, -1
}

// end ends both ways, and does not wait. It may be called more than once.
func (r *relay) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.ended = true
	_, _ = unix.Write(r.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	_ = unix.Shutdown(r.host, unix.SHUT_RDWR)
}

// close ends the relay and returns when nothing of it runs any more.
func (r *relay) close() {
	r.end()
	<-r.done
}

// up carries what the kernel asks to the host. What nobody waits for waits
// itself for what comes next, and goes along with it: one message to the host
// and one of its wake-ups less for every file that is closed.
func (r *relay) up() {
	b := make([]byte, maxTogether+maxMessage)
	have := 0
	for {
		n, err := r.ask(b[have:have+maxMessage], have > 0)
		if n >= inHeader && r.fresh.asked(b[have:have+n]) {
			if err := r.absent(b[have : have+n]); err != nil {
				r.end()
				return
			}
			continue
		}
		have += n
		idle := err == nil && n > 0 && have <= maxTogether && nobodyWaits(b[have-n:])
		if have > 0 && !idle && (err == nil || errors.Is(err, unix.ENODEV)) {
			if err := sendAll(r.host, b[:have]); err != nil {
				r.end()
				return
			}
			have = 0
		}
		switch {
		case errors.Is(err, unix.ENODEV):
			// Unmounted. The server closes its side when it has let go of
			// the folder.
			if unix.Shutdown(r.host, unix.SHUT_WR) != nil {
				r.end()
				return
			}
			time.AfterFunc(fuseEnd, r.end)
			return
		case err != nil:
			r.end()
			return
		}
	}
}

// ask waits for the kernel's next message; for a moment only, if some is to be
// sent at any rate. Without a message n is 0.
func (r *relay) ask(b []byte, hurry bool) (n int, err error) {
	ready := []unix.PollFd{{Fd: int32(r.dev), Events: unix.POLLIN}, {Fd: int32(r.wake), Events: unix.POLLIN}}
	var limit *unix.Timespec
	if hurry {
		limit = &unix.Timespec{Nsec: int64(together)}
	}
	for {
		n, err := unix.Ppoll(ready, limit, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, nil
		case ready[1].Revents != 0:
			return 0, net.ErrClosed
		}
		n, err = unix.Read(r.dev, b)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			continue // who asked has given up before it was read
		}
		return max(n, 0), err
	}
}

// absent answers a request that the name is not there.
func (r *relay) absent(m []byte) error {
	answer := make([]byte, outHeader)
	binary.LittleEndian.PutUint32(answer, outHeader)
	binary.LittleEndian.PutUint32(answer[4:], ^uint32(unix.ENOENT)+1) // its negative
	copy(answer[8:], m[8:16])
	return r.tell(answer)
}

// tell gives the kernel an answer. Who asked may have been killed meanwhile:
// ENOENT. Anything else means that somebody would wait for ever.
func (r *relay) tell(m []byte) error {
	if _, err := unix.Write(r.dev, m); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// nobodyWaits says whether a message of the kernel's is one after which no task
// waits: a file was closed, or forgotten.
func nobodyWaits(m []byte) bool {
	switch binary.LittleEndian.Uint32(m[4:]) { // opcode of struct fuse_in_header, which a message has at least
	case 2, 18, 29, 42: // FORGET, RELEASE, RELEASEDIR, BATCH_FORGET
		return true
	}
	return false
}

// sendAll writes b to a blocking stream.
func sendAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}

// down carries the host's answers to the kernel.
func (r *relay) down() {
	in := bufio.NewReaderSize(blockingReader(r.host), maxMessage)
	for {
		m, err := nextMessage(in)
		if err != nil {
			return
		}
		r.fresh.answered(m)
		if r.tell(m) != nil {
			return
		}
		if _, err := in.Discard(len(m)); err != nil {
			return
		}
	}
}

// blockingReader reads a descriptor.
type blockingReader int

func (r blockingReader) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(r), b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// nextMessage returns the host's next answer, which stays in the reader's
// buffer. What is no answer (its unique number is 0: a notification) is left
// out: the kernel may have to wait, for a lock that who waits for the next
// answer holds. No server of ours sends any.
func nextMessage(in *bufio.Reader) ([]byte, error) {
	for {
		head, err := in.Peek(outHeader)
		if err != nil {
			return nil, err
		}
		n := binary.LittleEndian.Uint32(head)
		if n < outHeader || n > maxMessage {
			return nil, fmt.Errorf("a FUSE message of %d bytes, %d is the limit", n, maxMessage)
		}
		answer := binary.LittleEndian.Uint64(head[8:]) != 0
		m, err := in.Peek(int(n))
		if err != nil || answer {
			return m, err
		}
		if _, err := in.Discard(len(m)); err != nil {
			return nil, err
		}
	}
}
