package vhostuser

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// What a stream has to tell the guest, besides its data.
const (
	wantRequest = 1 << iota
	wantResponse
	wantCredit
)

// Stream is one connection between the guest and the host. It is a net.Conn
// that can be closed for writing alone.
type Stream struct {
	d *Vsock
	ports
	window uint32

	writing sync.Mutex // one Write at a time; taken before d.mu

	// All below is guarded by d.mu.
	open    bool // both sides agreed
	refused bool // the guest answered a Dial with a reset
	closed  bool // Close was called
	ended   bool // no packet belongs to it any more
	counted bool // it takes one of the places for streams
	err     error

	readable, writable sync.Cond
	readLimit          deadline
	writeLimit         deadline
	closing            *time.Timer

	// From the guest.
	in       inbox
	taken    uint32 // bytes read by the host, in all
	told     uint32 // taken, as the guest last heard it
	peerShut uint32

	// To the guest.
	want       uint8
	queued     bool // in d.turns
	out        []byte
	sent       uint32 // bytes, in all
	peerWindow uint32
	peerTaken  uint32
	shutWanted uint32
	shutSent   uint32
}

var _ net.Conn = (*Stream)(nil)

func (d *Vsock) newStreamLocked(p ports) *Stream {
	c := &Stream{d: d, ports: p, window: smallWindow, counted: true}
	c.readable.L, c.writable.L = &d.mu, &d.mu
	d.count++
	if d.large < largeWindows {
		d.large++
		c.window = window
	}
	d.streams[p] = c
	return c
}

// endLocked takes the stream out of the protocol: the guest has no part in it
// any more. What it had received stays readable.
func (c *Stream) endLocked(err error) {
	if c.ended {
		return
	}
	c.ended = true
	if c.err == nil {
		c.err = err
	}
	delete(c.d.streams, c.ports)
	if c.closing != nil {
		c.closing.Stop()
	}
	c.readable.Broadcast()
	c.writable.Broadcast()
	c.forgetLocked()
}

// forgetLocked gives the stream's place up once neither side has a hold of it.
func (c *Stream) forgetLocked() {
	if !c.counted || !c.ended || !c.closed {
		return
	}
	c.counted = false
	c.d.count--
	if c.window == window {
		c.d.large--
	}
}

// Read reads what the guest sent. io.EOF says that the guest shut its side in
// an orderly way; a reset is syscall.ECONNRESET.
func (c *Stream) Read(p []byte) (int, error) {
	d := c.d
	d.mu.Lock()
	for {
		var err error
		switch {
		case c.closed:
			err = net.ErrClosed
		case c.readLimit.passed():
			err = os.ErrDeadlineExceeded
		case c.in.n > 0 || len(p) == 0:
			n := d.takeLocked(c, p)
			d.flush()
			return n, nil
		case c.peerShut&shutSend != 0:
			d.mu.Unlock()
			return 0, io.EOF
		case c.err != nil:
			err = c.err
		}
		if err != nil {
			d.mu.Unlock()
			return 0, c.opError("read", err)
		}
		c.readable.Wait()
	}
}

// takeLocked moves received bytes to p and gives the guest its credit back.
func (d *Vsock) takeLocked(c *Stream, p []byte) int {
	n := c.in.take(p)
	if c.in.n == 0 && len(c.in.b) > 4<<10 { // an idle stream holds no buffer
		if len(c.in.b) > smallWindow {
			d.spare = c.in.b
		}
		c.in = inbox{}
	}
	c.taken += uint32(n)
	// Linux caps what it has under way at the smaller of our window and its
	// own buffer size, which it sends as its window, and it does not ask for
	// credit when it is stalled. So the step must follow that minimum, or both
	// sides wait for ever.
	if c.taken-c.told >= max(min(c.window, c.peerWindow)/2, 1) && !c.ended {
		c.want |= wantCredit
		c.queueLocked()
	}
	return n
}

// Write sends p; it returns when all of it lies in the guest's memory, or the
// stream, its write deadline or its guest ends.
func (c *Stream) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	d := c.d
	d.mu.Lock()
	if err := c.writeErrorLocked(); err != nil || len(p) == 0 {
		d.mu.Unlock()
		return 0, c.opError("write", err)
	}
	c.out = p
	c.queueLocked()
	d.flush()
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	for len(c.out) > 0 {
		if err = c.writeErrorLocked(); err != nil {
			break
		}
		c.writable.Wait()
	}
	n := len(p) - len(c.out)
	c.out = nil
	return n, c.opError("write", err)
}

func (c *Stream) writeErrorLocked() error {
	switch {
	case c.closed:
		return net.ErrClosed
	case c.writeLimit.passed():
		return os.ErrDeadlineExceeded
	case c.shutWanted&shutSend != 0 || c.peerShut&shutReceive != 0:
		return syscall.EPIPE
	}
	return c.err
}

// CloseWrite tells the guest that no more will come; reading goes on.
func (c *Stream) CloseWrite() error {
	c.d.mu.Lock()
	if c.closed {
		c.d.mu.Unlock()
		return c.opError("close", net.ErrClosed)
	}
	c.shutLocked(shutSend)
	c.d.flush()
	return nil
}

// shutLocked queues a shutdown behind what is in the guest's memory already.
func (c *Stream) shutLocked(flags uint32) {
	c.shutWanted |= flags
	c.writable.Broadcast()
	c.queueLocked()
}

// Close ends the stream. What was written before reaches the guest, also when
// it reads it only later; what was not read is lost.
func (c *Stream) Close() error {
	d := c.d
	d.mu.Lock()
	if c.closed {
		d.mu.Unlock()
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	c.taken += uint32(c.in.n)
	c.in = inbox{}
	c.readLimit.stop()
	c.writeLimit.stop()
	c.readable.Broadcast()
	c.shutLocked(shutBoth)
	if c.ended {
		c.forgetLocked()
	} else {
		c.closing = time.AfterFunc(d.closeWait, func() {
			d.mu.Lock()
			d.resetLocked(c, syscall.ETIMEDOUT)
			d.flush()
		})
	}
	d.flush()
	return nil
}

// LocalAddr is the host's end.
func (c *Stream) LocalAddr() net.Addr { return VsockAddr{hostCID, c.host} }

// RemoteAddr is the guest's end.
func (c *Stream) RemoteAddr() net.Addr { return VsockAddr{c.d.cid, c.guest} }

// SetDeadline sets both deadlines. They hold also while a Write waits for a
// guest that takes nothing.
func (c *Stream) SetDeadline(t time.Time) error {
	return c.setDeadline(t, true, true)
}

// SetReadDeadline is part of net.Conn.
func (c *Stream) SetReadDeadline(t time.Time) error { return c.setDeadline(t, true, false) }

// SetWriteDeadline is part of net.Conn.
func (c *Stream) SetWriteDeadline(t time.Time) error { return c.setDeadline(t, false, true) }

func (c *Stream) setDeadline(t time.Time, read, write bool) error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	if read {
		c.readLimit.set(t, &c.readable)
	}
	if write {
		c.writeLimit.set(t, &c.writable)
	}
	return nil
}

func (c *Stream) opError(op string, err error) error {
	if err == nil {
		return nil
	}
	return &net.OpError{Op: op, Net: "vsock", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// deadline wakes whoever waits on a condition when its time has come.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (l *deadline) set(t time.Time, c *sync.Cond) {
	l.stop()
	l.at = t
	c.Broadcast() // those who wait look at the new deadline
	if d := time.Until(t); !t.IsZero() && d > 0 {
		l.timer = time.AfterFunc(d, func() {
			c.L.Lock()
			defer c.L.Unlock()
			c.Broadcast()
		})
	}
}

func (l *deadline) stop() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}

func (l *deadline) passed() bool { return !l.at.IsZero() && !time.Now().Before(l.at) }

// inbox is a ring of received bytes that grows as it must, by doubling, up to
// the stream's window.
type inbox struct {
	b    []byte // its length is a power of two, or 0
	r, n int    // where the oldest byte is, how many there are
}

// put appends the bytes of parts, total in all. The caller has checked that
// they are within the window.
func (x *inbox) put(parts [][]byte, total int, fresh func(n int) []byte) {
	if x.n+total > len(x.b) {
		size := max(len(x.b), 1<<10)
		for size < x.n+total {
			size *= 2
		}
		b := fresh(size)
		n := copy(b, x.b[x.r:min(x.r+x.n, len(x.b))])
		copy(b[n:], x.b[:x.n-n])
		x.b, x.r = b, 0
	}
	for _, p := range parts {
		for len(p) > 0 {
			w := (x.r + x.n) & (len(x.b) - 1)
			k := copy(x.b[w:min(len(x.b), w+len(x.b)-x.n)], p)
			p = p[k:]
			x.n += k
		}
	}
}

// take moves bytes to p.
func (x *inbox) take(p []byte) (n int) {
	for n < len(p) && x.n > 0 {
		k := copy(p[n:], x.b[x.r:min(x.r+x.n, len(x.b))])
		n += k
		x.n -= k
		x.r = (x.r + k) & (len(x.b) - 1)
	}
	return n
}
