package vhostuser

import (
	"fmt"
	"syscall"
	"time"
)

// receiveBatch is how many packets are taken before the guest gets their
// buffers back and the answers go out.
const receiveBatch = 16

// A guest that waits for an answer has no use for the buffers that it sent with.
// When it hears of them, one of its threads takes them back under the lock that
// the next packet needs, and under emulation that costs more than the packet did.
// So it hears of many at once, or a little later.
const (
	owedPackets = 64 // and never more than an eighth of its queue
	owedBytes   = 64 << 10
	owedTime    = 4 * time.Millisecond
)

// receive takes the packets that the guest has sent.
//
//  1. Ask for no notifications: we are looking anyway.
//  2. Take packets until there are none.
//  3. Ask for notifications, and look once more.
func (d *Vsock) receive(q *Queue) {
	for {
		q.SetNotifications(false)
		for {
			n, err := d.receiveSome(q)
			if err != nil {
				d.mu.Lock()
				d.breakLocked(err)
				d.mu.Unlock()
				return
			}
			if n < receiveBatch {
				break
			}
		}
		q.SetNotifications(true)
		if !q.Has() {
			return
		}
	}
}

func (d *Vsock) receiveSome(q *Queue) (n int, err error) {
	c := &d.txChain
	size := 0
	d.mu.Lock()
	for ; n < receiveBatch; n++ {
		var ok bool
		if ok, err = q.Pop(c); !ok {
			break
		}
		size += c.ReadableLen()
		d.packetLocked(c)
		q.Push(c, 0)
	}
	now := d.oweLocked(q, n, size)
	d.flush()
	if now {
		q.Notify()
	}
	return n, err
}

// oweLocked notes that buffers of the guest's were emptied, and says whether it
// is to hear of them now.
func (d *Vsock) oweLocked(q *Queue, n, size int) bool {
	if n == 0 {
		return false
	}
	d.owed += n
	d.owedBytes += size
	if d.owed >= min(owedPackets, max(1, int(q.size/8))) || d.owedBytes >= owedBytes {
		d.owed, d.owedBytes = 0, 0
		return true
	}
	if d.owed == n {
		d.repay.Reset(d.owedTime)
	}
	return false
}

// packetLocked deals with one packet from the guest. Nothing in it is trusted;
// what concerns no stream, or breaks the rules of its stream, gets a reset.
func (d *Vsock) packetLocked(c *Chain) {
	var h [vsockHeader]byte
	data, ok := cutHeader(&h, c.Readable)
	if !ok {
		return // less than a header: no telling whom to answer
	}
	d.handleLocked(parsePacket(&h), data, segmentsLen(data))
}

// cutHeader copies the first bytes of parts to h, once, and returns the rest.
func cutHeader(h *[vsockHeader]byte, parts [][]byte) (rest [][]byte, ok bool) {
	n := 0
	for i, p := range parts {
		k := copy(h[n:], p)
		if n += k; n == len(h) {
			// The chain's own slice of slices: it is ours, not the guest's.
			parts[i] = p[k:]
			return parts[i:], true
		}
	}
	return nil, false
}

// handleLocked acts on packet p, whose size bytes of data lie in parts.
func (d *Vsock) handleLocked(p packet, parts [][]byte, size int) {
	if d.failure != nil || p.source != d.cid || p.dest != hostCID {
		return // as vhost_vsock of Linux does
	}
	s := d.streams[p.ports]
	if s == nil {
		if p.op == opRequest && p.kind == typeStream && size == 0 && d.acceptLocked(p) {
			return
		}
		if p.op != opReset {
			d.answerResetLocked(p.ports)
		}
		return
	}
	if err := s.checkLocked(p, size); err != nil {
		d.resetLocked(s, err)
		return
	}
	s.creditLocked(p)
	switch p.op {
	case opResponse:
		s.open = true
		s.readable.Broadcast()
	case opReset:
		s.refused = !s.open
		s.endLocked(syscall.ECONNRESET)
	case opShutdown:
		s.peerShut |= p.flags & shutBoth
		s.readable.Broadcast()
		s.writable.Broadcast()
		if s.peerShut == shutBoth {
			// The guest closes and waits for our reset.
			d.resetLocked(s, syscall.EPIPE)
		}
	case opData:
		s.dataLocked(parts, size)
	case opCreditRequest:
		s.want |= wantCredit
		s.queueLocked()
	}
}

// checkLocked says what is wrong with p as the next packet of the stream.
func (s *Stream) checkLocked(p packet, size int) error {
	switch {
	case p.kind != typeStream:
		return fmt.Errorf("the guest sent a packet of type %d: %w", p.kind, syscall.EPROTO)
	case int64(p.size) != int64(size) || size > maxVsockData || size > 0 && p.op != opData:
		return fmt.Errorf("the guest sent %d bytes of data as %d, operation %d: %w", size, p.size, p.op, syscall.EPROTO)
	case int32(s.sent-p.taken) < 0:
		return fmt.Errorf("the guest took %d bytes of %d sent: %w", p.taken, s.sent, syscall.EPROTO)
	}
	switch p.op {
	case opReset, opCreditUpdate, opCreditRequest, opShutdown:
		return nil
	case opResponse:
		if !s.open {
			return nil
		}
	case opData:
		if !s.open || s.peerShut&shutSend != 0 {
			break
		}
		if s.in.n+size > int(s.window) {
			return fmt.Errorf("the guest sent more than the %d bytes that it may: %w", s.window, syscall.EPROTO)
		}
		return nil
	}
	return fmt.Errorf("operation %d of the guest is out of place: %w", p.op, syscall.EPROTO)
}

// creditLocked takes note of what the guest may be sent. Packets of two of its
// processors can overtake each other, so what it has taken never goes back.
func (s *Stream) creditLocked(p packet) {
	s.peerWindow = p.window
	if int32(p.taken-s.peerTaken) > 0 {
		s.peerTaken = p.taken
	}
	s.queueLocked()
}

func (s *Stream) dataLocked(parts [][]byte, size int) {
	if s.closed { // nobody will read it
		s.taken += uint32(size)
		return
	}
	s.in.put(parts, size, s.d.freshBufferLocked)
	s.readable.Broadcast()
}

// freshBufferLocked gives the buffer that the last busy stream to run dry left:
// a bulk transfer would otherwise make one for every burst. It is as large as a
// large window at most, so a stream with a small one gets none.
func (d *Vsock) freshBufferLocked(n int) []byte {
	if b := d.spare; n > smallWindow && len(b) >= n {
		d.spare = nil
		return b
	}
	return make([]byte, n)
}

// acceptLocked makes a stream of the guest's request and hands it to its
// listener; false when there is none or it has enough.
func (d *Vsock) acceptLocked(p packet) bool {
	l := d.listeners[p.host]
	if l == nil || len(l.waiting) >= backlog || d.count >= maxStreams {
		return false
	}
	s := d.newStreamLocked(p.ports)
	s.open = true
	s.creditLocked(p)
	s.want |= wantResponse // goes out before anything that is written
	s.queueLocked()
	l.waiting = append(l.waiting, s)
	l.arrived.Signal()
	return true
}

// resetLocked ends s and tells the guest so.
func (d *Vsock) resetLocked(s *Stream, err error) {
	if !s.ended {
		s.endLocked(err)
		d.answerResetLocked(s.ports)
	}
}

func (d *Vsock) answerResetLocked(p ports) {
	if len(d.resets) < maxResets {
		d.resets = append(d.resets, p)
	}
}
