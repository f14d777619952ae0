//go:build unix

package seatbelt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

// carrier carries the streams between the host and a guest that is a process of
// the same kernel, as package passing does on Linux: one socket that the guest
// inherits, over which connected sockets are passed. macOS has no sockets of
// packets between processes that also tell of the other end's end, so this is a
// stream of messages, 8 bytes each, numbers big endian:
//
//	host to guest    port, 0     with one stream: the host dials that port
//	guest to host    port, id    the guest dials that port, id not 0; no stream comes with it
//	host to guest    port, id    the answer: with one stream, or without: refused
//
//	guest to host    0, 0        a stream has arrived
//
// A stream comes with the first byte of its message. Only the host makes
// streams: it takes no file from the guest, ever.
//
// A socket that is open nowhere but on its way may be taken for garbage by the
// kernel of macOS, and ends (Chromium's issue 298276, and its
// ChannelPosix::QueueCloseFDMessage). So the guest's end of each stream is kept
// open here until the guest says that it has it, or keepSent is over.
type carrier struct {
	calls *net.UnixConn
	done  chan struct{} // closed when receive has returned

	sending sync.Mutex // held over one message
	sent    []onItsWay // oldest first

	mu        sync.Mutex
	boot      net.Conn // until a listener takes it
	listeners map[uint32]*listener
	closed    bool
}

const (
	// bootPort is the port of the host that the guest's one boot stream
	// reaches, wire.PortBoot. That stream is inherited.
	bootPort = 64
	// egressPort is the port of the host for the guest's connections,
	// wire.PortEgress.
	egressPort = 65
	// messageLen is the length of a message.
	messageLen = 8
	// backlog is how many streams wait for Accept at most; more are refused.
	backlog = 128
	// maxSent is how many streams are on their way to the guest at most; more
	// are refused. keepSent is how long the guest may take to say that it has one.
	maxSent  = 256
	keepSent = 10 * time.Second
)

// onItsWay is the guest's end of a stream that was sent and has not arrived.
type onItsWay struct {
	end  *os.File
	late *time.Timer
}

// ends are the two that the guest inherits. The caller closes them after it has
// started the guest.
type ends struct{ boot, calls *os.File }

func (e ends) close() {
	e.boot.Close()
	e.calls.Close()
}

// newCarrier makes the sockets and serves the host's end until close, or until
// nobody holds the guest's any more.
func newCarrier() (*carrier, ends, error) {
	boot, theirBoot, err := pair()
	if err != nil {
		return nil, ends{}, err
	}
	calls, theirCalls, err := pair()
	if err != nil {
		boot.Close()
		theirBoot.Close()
		return nil, ends{}, err
	}
	h := &carrier{calls: calls, boot: boot, done: make(chan struct{}), listeners: map[uint32]*listener{}}
	go h.receive()
	return h, ends{theirBoot, theirCalls}, nil
}

// dial opens a stream to a port of the guest. Whether somebody listens there
// shows on the stream: the guest's end is closed if not.
func (h *carrier) dial(ctx context.Context, port uint32) (net.Conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	if err := h.send(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, port), 0), theirs); err != nil {
		ours.Close()
		return nil, fmt.Errorf("dial port %d of the guest: %w", port, err)
	}
	return ours, nil
}

// send passes one message without waiting: a guest that takes none fills the
// socket's buffer, and is then as good as one that refuses. One that takes half
// of a message has lost the carrier. The stream is send's.
func (h *carrier) send(message []byte, stream *os.File) (err error) {
	h.sending.Lock()
	defer h.sending.Unlock()
	if stream != nil {
		if len(h.sent) >= maxSent {
			stream.Close()
			return unix.ECONNREFUSED
		}
		defer func() {
			if err != nil {
				stream.Close()
				return
			}
			h.sent = append(h.sent, onItsWay{stream, time.AfterFunc(keepSent, func() { stream.Close() })})
		}()
	}
	raw, err := h.calls.SyscallConn()
	if err != nil {
		return err
	}
	var rights []byte
	if stream != nil {
		rights = unix.UnixRights(int(stream.Fd()))
	}
	var n int
	var sent error
	err = raw.Control(func(fd uintptr) {
		n, sent = unix.SendmsgN(int(fd), message, rights, nil, unix.MSG_DONTWAIT)
	})
	switch {
	case errors.Is(err, net.ErrClosed), errors.Is(sent, unix.EPIPE), errors.Is(sent, unix.ECONNRESET), errors.Is(sent, unix.EAGAIN), errors.Is(sent, unix.ENOBUFS):
		return unix.ECONNREFUSED
	case err != nil:
		return err
	case sent == nil && n != len(message):
		h.calls.Close()
		return unix.ECONNREFUSED
	}
	return sent
}

// arrived lets go of the oldest stream that was on its way.
func (h *carrier) arrived() {
	h.sending.Lock()
	defer h.sending.Unlock()
	if len(h.sent) == 0 {
		return // so says a guest that got none
	}
	h.sent[0].late.Stop()
	h.sent[0].end.Close()
	h.sent = h.sent[1:]
}

// receive serves the streams that the guest dials.
func (h *carrier) receive() {
	defer close(h.done)
	raw, err := h.calls.SyscallConn()
	if err != nil {
		return
	}
	var b [messageLen]byte
	for have := 0; ; {
		var n int
		var e error
		// Without a buffer for them the kernel drops what files come with it.
		err := raw.Read(func(fd uintptr) bool {
			n, _, _, _, e = unix.Recvmsg(int(fd), b[have:], nil, unix.MSG_DONTWAIT)
			return !errors.Is(e, unix.EAGAIN)
		})
		switch {
		case err != nil || n == 0 && !errors.Is(e, unix.EINTR):
			return // closed, here or there
		case e != nil:
			continue
		}
		if have += n; have < messageLen {
			continue
		}
		have = 0
		switch port, id := binary.BigEndian.Uint32(b[:4]), binary.BigEndian.Uint32(b[4:]); {
		case id != 0:
			h.accept(port, b[:])
		case port == 0:
			h.arrived()
		}
	}
}

// accept answers one request, with a stream if somebody listens and has room.
func (h *carrier) accept(port uint32, request []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.listeners[port]
	if l == nil || l.ended() || len(l.conns) == cap(l.conns) {
		_ = h.send(request, nil) // who does not read answers hears none
		return
	}
	ours, theirs, err := pair()
	if err != nil {
		_ = h.send(request, nil)
		return
	}
	if err := h.send(request, theirs); err != nil {
		ours.Close()
		return
	}
	l.conns <- ours // it has room: only this function adds, under mu
}

// listens says whether somebody takes streams to a port.
func (h *carrier) listens(port uint32) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.listeners[port]
	return l != nil && !l.ended()
}

// listen accepts the streams that the guest dials on port.
func (h *carrier) listen(port uint32) (net.Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, hypervisor.ErrGone
	}
	if l := h.listeners[port]; l != nil && !l.ended() {
		return nil, fmt.Errorf("listen on port %d: %w", port, unix.EADDRINUSE)
	}
	l := &listener{of: h, port: port, conns: make(chan net.Conn, backlog), done: make(chan struct{})}
	h.listeners[port] = l
	if port == bootPort && h.boot != nil {
		l.conns <- h.boot
		h.boot = nil
	}
	return l, nil
}

// close ends the listeners and the carrier itself; streams stay open.
func (h *carrier) close() {
	h.calls.Close()
	<-h.done
	h.sending.Lock()
	for _, s := range h.sent {
		s.late.Stop()
		s.end.Close()
	}
	h.sent = nil
	h.sending.Unlock()
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
	of    *carrier
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
		return nil, &net.OpError{Op: "accept", Net: "carrier", Err: net.ErrClosed}
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

// endLocked needs the carrier's mu held.
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
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.endLocked()
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return addr(l.port) }

type addr uint32

func (a addr) Network() string { return "carrier" }
func (a addr) String() string  { return fmt.Sprintf("host:%d", uint32(a)) }

// pair makes a connected pair of sockets: ours to use, theirs to pass. macOS
// cannot make them close on exec at once, so no process is started meanwhile.
func pair() (*net.UnixConn, *os.File, error) {
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
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
