package vhostuser

// sendBatch is how many packets go out before the guest is told, and before
// the lock is free for others for a moment.
const sendBatch = 32

// flush sends what can be sent and releases d.mu, which the caller holds.
func (d *Vsock) flush() {
	for {
		q := d.rx
		n := d.pumpLocked(sendBatch)
		d.mu.Unlock()
		if n > 0 {
			q.Notify()
		}
		if n < sendBatch {
			return
		}
		d.mu.Lock()
	}
}

// pumpLocked sends at most limit packets and returns how many.
//
//  1. Resets of packets that belong to no stream go first: there are few.
//  2. Then streams take turns, a packet each, so that none holds up another.
//  3. Without a buffer of the guest's, ask to be told of the next one; Kick
//     then comes here again.
func (d *Vsock) pumpLocked(limit int) (n int) {
	for n < limit {
		s := d.nextTurnLocked()
		if s == nil && len(d.resets) == 0 || d.rx == nil || d.failure != nil {
			return n
		}
		c := &d.rxChain
		ok, err := d.rx.Pop(c)
		switch {
		case err != nil:
			d.breakLocked(err)
			return n
		case !ok && !d.rxQuiet:
			return n
		case !ok:
			d.rx.SetNotifications(true)
			d.rxQuiet = false
			continue
		case !d.rxQuiet:
			d.rx.SetNotifications(false)
			d.rxQuiet = true
		}
		if c.WritableLen() <= vsockHeader || len(c.Readable) > 0 {
			d.rx.Push(c, 0)
			d.breakLocked(d.rx.fail("a receive buffer of %d bytes", c.WritableLen()))
			return n
		}
		d.rx.Push(c, d.fillLocked(c, s))
		n++
	}
	return n
}

// nextTurnLocked returns the first stream that has a packet to send.
func (d *Vsock) nextTurnLocked() *Stream {
	for len(d.turns) > 0 {
		if s := d.turns[0]; s.sendableLocked() {
			return s
		}
		d.endTurnLocked()
	}
	return nil
}

func (d *Vsock) endTurnLocked() {
	d.turns[0].queued = false
	d.turns[0] = nil
	d.turns = d.turns[1:]
}

// queueLocked gives the stream a turn if it has a packet to send.
func (s *Stream) queueLocked() {
	if !s.queued && s.sendableLocked() {
		s.queued = true
		s.d.turns = append(s.d.turns, s)
	}
}

func (s *Stream) sendableLocked() bool {
	if s.ended {
		return false
	}
	return s.want != 0 || s.open && (s.shutWanted != s.shutSent || s.roomLocked() > 0)
}

// roomLocked is how many bytes of the Write under way the guest is ready for.
func (s *Stream) roomLocked() int {
	if s.shutWanted&shutSend != 0 || s.peerShut&shutReceive != 0 {
		return 0
	}
	used := s.sent - s.peerTaken
	if used >= s.peerWindow {
		return 0
	}
	return min(len(s.out), int(s.peerWindow-used), maxVsockData)
}

// fillLocked writes one packet to the guest's buffer c: a reset if one is
// due, else the next packet of s. It returns the number of bytes written.
func (d *Vsock) fillLocked(c *Chain, s *Stream) uint32 {
	p := packet{source: hostCID, dest: d.cid, kind: typeStream}
	var data []byte
	if len(d.resets) > 0 {
		p.op, p.ports = opReset, d.resets[0]
		d.resets = d.resets[1:]
	} else {
		data = s.nextLocked(&p, c.WritableLen()-vsockHeader)
	}
	var h [vsockHeader]byte
	putPacket(&h, p)
	scatter(c.Writable, h[:], data)
	if s != nil && p.op != opReset {
		d.endTurnLocked()
		s.queueLocked() // at the end of the line, if there is more
	}
	return vsockHeader + uint32(len(data))
}

// nextLocked makes the stream's next packet, with at most space bytes of data,
// and takes note that it was sent.
func (s *Stream) nextLocked(p *packet, space int) (data []byte) {
	p.ports, p.window, p.taken = s.ports, s.window, s.taken
	s.told = s.taken
	room := s.roomLocked()
	switch {
	case s.want&wantRequest != 0:
		p.op = opRequest
		s.want &^= wantRequest
	case s.want&wantResponse != 0:
		p.op = opResponse
		s.want &^= wantResponse
	case s.open && room > 0:
		p.op = opData
		n := min(room, space)
		data, s.out = s.out[:n], s.out[n:]
		p.size = uint32(n)
		s.sent += uint32(n)
		if len(s.out) == 0 {
			s.writable.Broadcast()
		}
	case s.open && s.shutWanted != s.shutSent:
		p.op, p.flags = opShutdown, s.shutWanted
		s.shutSent = s.shutWanted
	default:
		p.op = opCreditUpdate
	}
	s.want &^= wantCredit // every packet carries it
	return data
}

// scatter copies the parts, one after the other, to the segments.
func scatter(segments [][]byte, parts ...[]byte) {
	for _, p := range parts {
		for len(p) > 0 && len(segments) > 0 {
			n := copy(segments[0], p)
			p = p[n:]
			if segments[0] = segments[0][n:]; len(segments[0]) == 0 {
				segments = segments[1:]
			}
		}
	}
}
