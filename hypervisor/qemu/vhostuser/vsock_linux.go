package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Limits of one guest's vsock. What the host can be made to buffer is
// largeWindows*window + (maxStreams-largeWindows)*smallWindow = 60 MiB; nothing
// is buffered in the other direction, Write copies into the guest's own memory.
const (
	// maxStreams bounds the streams that exist: those that the guest has open,
	// and those that it has ended and the host has not closed yet.
	maxStreams = 1024
	// window is what a stream may receive unread. Linux never has more than its
	// own buffer size, 256 KiB by default, under way, so more would buy nothing.
	window       = 256 << 10
	smallWindow  = 32 << 10
	largeWindows = 128
	// backlog bounds the streams that wait for one listener's Accept.
	backlog = 128
	// maxResets bounds the answers to packets that belong to no stream. More are
	// dropped; only a guest that takes none gets there.
	maxResets = 256
	// closeWait is how long a closed stream waits for the guest to agree;
	// VSOCK_CLOSE_TIMEOUT of Linux.
	closeWait = 8 * time.Second

	// The host dials from these ports, one after the other, so that none comes
	// again before a thousand million others did.
	firstDialPort = 1 << 30
	lastDialPort  = 1<<31 - 1

	vsockRx = 0 // the queue to the guest
	vsockTx = 1 // the queue from the guest
)

// Vsock is a virtio socket device (VIRTIO 1.2, 5.10) of one guest: the guest
// and this process open streams to each other, and nobody else on the host can
// reach them. The queue of transport events stays in QEMU.
//
// One lock guards all of it. It is never held while anything blocks: packets
// to the guest wait as flags and slices in their streams (pump), and a Write
// waits for room on a condition of its own.
//
//	down ── driver sets the queues up ──> up <── pause, resume ──> paused
//	                                       ^─── set up anew: all streams fail ──┘
type Vsock struct {
	cid uint64

	mu        sync.Mutex
	rx, tx    *Queue // nil unless the queue runs
	everUp    bool
	failure   error // a broken queue; until the driver sets it up anew
	closed    bool
	streams   map[ports]*Stream
	count     int // streams that exist, see maxStreams
	large     int // of these, those with the large window
	listeners map[uint32]*vsockListener
	nextPort  uint32
	turns     []*Stream // those with something to send, first come first served
	resets    []ports
	rxChain   Chain
	rxQuiet   bool   // the guest was asked not to notify of new buffers
	spare     []byte // a receive buffer for the next stream that needs one

	owed, owedBytes int // buffers of the guest's that are empty, of which it has not heard
	repay           *time.Timer

	closeWait, owedTime time.Duration // the constants, but for a test

	txChain Chain // of the goroutine that calls Kick for the queue
}

var _ Device = (*Vsock)(nil)

// NewVsock makes the device of the guest that calls itself cid. The number
// means nothing outside that guest; it must be 3 or more.
func NewVsock(cid uint64) *Vsock {
	d := &Vsock{
		cid:       cid,
		streams:   map[ports]*Stream{},
		listeners: map[uint32]*vsockListener{},
		nextPort:  firstDialPort,
		closeWait: closeWait,
		owedTime:  owedTime,
	}
	d.repay = time.AfterFunc(owedTime, d.repayAll)
	d.repay.Stop()
	return d
}

// repayAll has the guest hear of all its empty buffers.
func (d *Vsock) repayAll() {
	d.mu.Lock()
	q := d.tx
	d.owed, d.owedBytes = 0, 0
	d.mu.Unlock()
	if q != nil {
		q.Notify()
	}
}

// Serve serves the device on conn until that ends, and then closes the device,
// so that nobody waits for a guest that is gone.
func (d *Vsock) Serve(ctx context.Context, conn *net.UnixConn) error {
	err := Serve(ctx, conn, d)
	d.Close()
	return err
}

// Features is part of Device: streams need no feature bit.
func (d *Vsock) Features() uint64 { return 0 }

// Queues is part of Device.
func (d *Vsock) Queues() int { return 2 }

// Config is part of Device: the guest's own address.
func (d *Vsock) Config() []byte { return u64(d.cid) }

// QueueReady is part of Device.
func (d *Vsock) QueueReady(i int, q *Queue, fresh bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if fresh {
		d.failAllLocked(syscall.ECONNRESET)
		d.failure = nil
	}
	if i == vsockRx {
		d.rx, d.rxQuiet = q, false
	} else {
		d.tx = q
	}
	d.everUp = d.everUp || d.rx != nil && d.tx != nil
}

// QueueStopped is part of Device. The guest may have been paused, so streams
// are kept.
func (d *Vsock) QueueStopped(i int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i == vsockRx {
		d.rx = nil
	} else {
		d.tx = nil
	}
}

// Kick is part of Device.
func (d *Vsock) Kick(i int, q *Queue) {
	if i == vsockTx {
		d.receive(q)
		return
	}
	d.mu.Lock()
	d.flush()
}

// Dial opens a stream to a port on which the guest listens. The error wraps
// hypervisor.ErrNotReady until the guest's driver is up, hypervisor.ErrGone
// after Close, syscall.ECONNREFUSED when nothing listens there, and ctx's error
// when that ends first. While the guest is paused it waits.
func (d *Vsock) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "vsock", Addr: VsockAddr{d.cid, port}, Err: err}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	d.mu.Lock()
	var err error
	switch {
	case d.closed:
		err = hypervisor.ErrGone
	case !d.everUp:
		err = hypervisor.ErrNotReady
	case d.failure != nil:
		err = d.failure
	case d.count >= maxStreams:
		err = fmt.Errorf("%d streams are open, as many as one guest may have: %w", maxStreams, syscall.EAGAIN)
	}
	if err != nil {
		d.mu.Unlock()
		return fail(err)
	}
	c := d.newStreamLocked(ports{host: d.dialPortLocked(port), guest: port})
	c.want |= wantRequest
	c.queueLocked()
	d.flush()

	stop := context.AfterFunc(ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		c.readable.Broadcast()
	})
	defer stop()
	d.mu.Lock()
	for !c.open && c.err == nil && ctx.Err() == nil {
		c.readable.Wait()
	}
	if c.open { // perhaps the guest has written and closed since
		d.mu.Unlock()
		return c, nil
	}
	switch {
	case c.err == nil:
		err = ctx.Err()
		d.resetLocked(c, err)
	case c.refused:
		err = syscall.ECONNREFUSED
	case c.err == syscall.ECONNRESET:
		err = hypervisor.ErrNotReady // the guest has started anew
	default:
		err = c.err
	}
	c.closed = true
	c.forgetLocked()
	d.flush()
	return fail(err)
}

// dialPortLocked gives a host port from which no stream to the guest's port
// exists; there are more ports than streams.
func (d *Vsock) dialPortLocked(guest uint32) uint32 {
	for {
		p := d.nextPort
		if d.nextPort++; d.nextPort > lastDialPort {
			d.nextPort = firstDialPort
		}
		if d.streams[ports{host: p, guest: guest}] == nil {
			return p
		}
	}
}

// Listen accepts streams that the guest opens to a port of the host, below
// 2^30. The listener stays when the guest starts anew.
func (d *Vsock) Listen(port uint32) (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	switch {
	case d.closed:
		err = hypervisor.ErrGone
	case port >= firstDialPort:
		err = errors.New("ports from 2^30 on are those from which the host dials")
	case d.listeners[port] != nil:
		err = syscall.EADDRINUSE
	}
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "vsock", Addr: VsockAddr{hostCID, port}, Err: err}
	}
	l := &vsockListener{d: d, port: port}
	l.arrived.L = &d.mu
	d.listeners[port] = l
	return l, nil
}

// Close fails every stream, listener and Dial, now and later. What a stream
// had received can still be read.
func (d *Vsock) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	d.failAllLocked(hypervisor.ErrGone)
	for _, l := range d.listeners {
		l.closeLocked()
	}
	return nil
}

// failAllLocked ends every stream without telling the guest, which knows none
// of them (any more).
func (d *Vsock) failAllLocked(err error) {
	for _, c := range d.streams {
		c.endLocked(err)
	}
	d.turns, d.resets = nil, nil
}

// breakLocked gives the guest's queues up after one that makes no sense.
func (d *Vsock) breakLocked(err error) {
	d.failure = err
	d.failAllLocked(err)
}

// vsockListener is what Listen returns.
type vsockListener struct {
	d       *Vsock
	port    uint32
	arrived sync.Cond
	waiting []*Stream
	closed  bool
}

// Accept waits for the next stream.
func (l *vsockListener) Accept() (net.Conn, error) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	for len(l.waiting) == 0 {
		if l.closed {
			return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.Addr(), Err: net.ErrClosed}
		}
		l.arrived.Wait()
	}
	c := l.waiting[0]
	l.waiting = l.waiting[1:]
	return c, nil
}

// Close ends the listener and resets the streams that nobody accepted.
func (l *vsockListener) Close() error {
	l.d.mu.Lock()
	l.closeLocked()
	l.d.flush()
	return nil
}

func (l *vsockListener) closeLocked() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.d.listeners, l.port)
	for _, c := range l.waiting {
		l.d.resetLocked(c, net.ErrClosed)
		c.closed = true
		c.forgetLocked()
	}
	l.waiting = nil
	l.arrived.Broadcast()
}

// Addr is the host's end.
func (l *vsockListener) Addr() net.Addr { return VsockAddr{hostCID, l.port} }
