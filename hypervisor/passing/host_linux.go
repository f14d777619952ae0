package passing

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

// BootPort is the port of the host that the guest's one boot stream reaches,
// wire.PortBoot. That stream is inherited, so that the guest's first frame
// waits for nothing.
const BootPort = 64

// backlog is how many streams wait for Accept at most; more are refused.
const backlog = 128

// Host is the host's end.
type Host struct {
	calls *net.UnixConn
	done  chan struct{} // closed when receive has returned

	mu        sync.Mutex
	boot      net.Conn // until a listener takes it
	listeners map[uint32]*listener
	closed    bool
}

// Guest are the ends that the guest inherits. The caller closes them after it
// has started the guest.
type Guest struct{ Boot, Calls *os.File }

// Close closes both ends.
func (g Guest) Close() {
	g.Boot.Close()
	g.Calls.Close()
}

// New makes the sockets and serves the host's end until Close, or until nobody
// holds the guest's any more.
func New() (*Host, Guest, error) {
	boot, theirBoot, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, Guest{}, err
	}
	calls, theirCalls, err := pair(unix.SOCK_SEQPACKET)
	if err != nil {
		boot.Close()
		theirBoot.Close()
		return nil, Guest{}, err
	}
	h := &Host{calls: calls, boot: boot, done: make(chan struct{}), listeners: map[uint32]*listener{}}
	go h.receive()
	return h, Guest{theirBoot, theirCalls}, nil
}

// Dial opens a stream to a port of the guest. Whether somebody listens there
// shows on the stream: the guest's end is closed if not.
func (h *Host) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	ours, theirs, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	if err := h.send(binary.BigEndian.AppendUint32(nil, port), theirs); err != nil {
		ours.Close()
		return nil, fmt.Errorf("dial port %d of the guest: %w", port, err)
	}
	return ours, nil
}

// send passes one message without waiting: a guest that takes none fills the
// socket's queue, and is then as good as one that refuses.
func (h *Host) send(message []byte, stream *os.File) error {
	raw, err := h.calls.SyscallConn()
	if err != nil {
		return err
	}
	var rights []byte
	if stream != nil {
		rights = unix.UnixRights(int(stream.Fd()))
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = unix.Sendmsg(int(fd), message, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	switch {
	case errors.Is(err, net.ErrClosed), errors.Is(sent, unix.EPIPE), errors.Is(sent, unix.ECONNRESET), errors.Is(sent, unix.EAGAIN):
		return unix.ECONNREFUSED
	case err != nil:
		return err
	}
	return sent
}

// receive serves the streams that the guest dials.
func (h *Host) receive() {
	defer close(h.done)
	raw, err := h.calls.SyscallConn()
	if err != nil {
		return
	}
	for {
		// One byte more than a request has shows a longer one. Without a
		// buffer for them the kernel drops what files come with it.
		var b [9]byte
		var n int
		var e error
		err := raw.Read(func(fd uintptr) bool {
			n, _, _, _, e = unix.Recvmsg(int(fd), b[:], nil, unix.MSG_DONTWAIT)
			return !errors.Is(e, unix.EAGAIN)
		})
		switch {
		case err != nil || n == 0 && !errors.Is(e, unix.EINTR):
			return // closed, here or there
		case e != nil || n != 8:
			continue
		}
		h.accept(binary.BigEndian.Uint32(b[:4]), b[:8])
	}
}

// accept answers one request, with a stream if somebody listens and has room.
func (h *Host) accept(port uint32, request []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.listeners[port]
	if l == nil || l.ended() || len(l.conns) == cap(l.conns) {
		_ = h.send(request, nil) // who does not read answers hears none
		return
	}
	ours, theirs, err := pair(unix.SOCK_STREAM)
	if err != nil {
		_ = h.send(request, nil)
		return
	}
	defer theirs.Close()
	if err := h.send(request, theirs); err != nil {
		ours.Close()
		return
	}
	l.conns <- ours // it has room: only this function adds, under mu
}

// Listen accepts the streams that the guest dials on port.
func (h *Host) Listen(port uint32) (net.Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, hypervisor.ErrGone
	}
	if l := h.listeners[port]; l != nil && !l.ended() {
		return nil, fmt.Errorf("listen on port %d: %w", port, unix.EADDRINUSE)
	}
	l := &listener{host: h, port: port, conns: make(chan net.Conn, backlog), done: make(chan struct{})}
	h.listeners[port] = l
	if port == BootPort && h.boot != nil {
		l.conns <- h.boot
		h.boot = nil
	}
	return l, nil
}

// Close ends the listeners and the carrier itself; streams stay open.
func (h *Host) Close() {
	h.calls.Close()
	<-h.done
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	if h.boot != nil {
		h.boot.Close()
		h.boot = nil
	}
	for _, l := range h.listeners {
		l.endLocked()
	}
}

// listener takes the streams to one port.
type listener struct {
	host  *Host
	port  uint32
	conns chan net.Conn
	done  chan struct{}
}

// Accept implements net.Listener. Streams that came before the end are given
// out first.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "passing", Err: net.ErrClosed}
	}
}

func (l *listener) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// endLocked needs host.mu held.
func (l *listener) endLocked() {
	if l.ended() {
		return
	}
	close(l.done)
	for {
		select {
		case c := <-l.conns:
			c.Close()
		default:
			return
		}
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.host.mu.Lock()
	defer l.host.mu.Unlock()
	l.endLocked()
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return addr(l.port) }

type addr uint32

func (a addr) Network() string { return "passing" }
func (a addr) String() string  { return fmt.Sprintf("host:%d", uint32(a)) }

// pair makes a connected pair of sockets: ours to use, theirs to pass.
func pair(kind int) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return c.(*net.UnixConn), theirs, nil
}
