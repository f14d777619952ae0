package vhostuser

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How the server sets a queue up, starts and stops it. All of it but serveKicks
// runs in the server's own goroutine.

func (s *server) handleRing(m *message, q *Queue) (reply []byte, err error) {
	v := le.Uint32(m.payload[4:])
	if m.request != reqGetVringBase && m.request != reqSetVringEnable && q.running {
		return nil, fmt.Errorf("queue %d runs", q.index)
	}
	switch m.request {
	case reqSetVringNum:
		if v == 0 || v > maxQueueSize || v&(v-1) != 0 {
			return nil, fmt.Errorf("%d entries; a power of two up to %d is possible", v, maxQueueSize)
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		q.unmapLocked() // its slices have the old size
		q.size = v
	case reqSetVringBase:
		if v > 0xffff {
			return nil, fmt.Errorf("base %d is not an index of 16 bits", v)
		}
		q.base = uint16(v)
	case reqSetVringAddr:
		if v != 0 {
			return nil, fmt.Errorf("flags %#x (logging was not offered)", v)
		}
		if s.mem == nil {
			return nil, errors.New("SET_MEM_TABLE has not been sent")
		}
		p := m.payload
		q.mu.Lock()
		defer q.mu.Unlock()
		return nil, q.mapLocked(s.mem, ringAddr{desc: le.Uint64(p[8:]), used: le.Uint64(p[16:]), avail: le.Uint64(p[24:])})
	case reqSetVringEnable:
		q.enabled = v == 1
		if !q.enabled {
			s.stop(q)
			return nil, nil
		}
		s.start()
	case reqGetVringBase:
		s.stop(q)
		q.started = false
		q.closeKick()
		q.mu.Lock()
		defer q.mu.Unlock()
		q.unmapLocked()
		reply = make([]byte, 8)
		copy(reply, m.payload[:4])
		le.PutUint32(reply[4:], uint32(q.base))
	}
	return reply, nil
}

func (s *server) setEventFD(m *message, q *Queue, none bool) error {
	fd := -1
	if !none {
		var err error
		if fd, err = m.take(); err != nil {
			return err
		}
	}
	switch m.request {
	case reqSetVringCall:
		return q.setCall(fd)
	case reqSetVringErr: // errors are told by closing the socket
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil
	}
	switch {
	case none:
		return errors.New("polling in place of an eventfd is not offered")
	case q.running:
		unix.Close(fd)
		return fmt.Errorf("queue %d runs", q.index)
	}
	if err := q.setKick(fd); err != nil {
		return err
	}
	s.start()
	return nil
}

// start runs the queues that can run, once every queue that was given a kick
// eventfd is enabled: QEMU sets all of them up and enables them last, and only
// all of them together tell whether the driver is a fresh one. A queue that
// the driver left out is enabled without ever being started.
func (s *server) start() {
	var ready []*Queue
	for _, q := range s.queues {
		switch {
		case q.running || !q.started:
		case q.enabled && q.mem != nil:
			ready = append(ready, q)
		default:
			return
		}
	}
	fresh := false
	for _, q := range ready {
		fresh = q.look() || fresh
	}
	for _, q := range ready {
		q.run(fresh)
		s.dev.QueueReady(q.index, q, fresh)
	}
	for _, q := range ready {
		// It fails only for a file that cannot be polled; setKick looked.
		_ = q.kick.SetReadDeadline(time.Time{})
		q.done = make(chan struct{})
		go q.serveKicks(s.dev, q.kick, q.done)
	}
}

// stop ends the use of q and notes how it was left. When it returns no
// goroutine of the server's touches q, and the device had its chance to finish
// what it had begun.
func (s *server) stop(q *Queue) {
	if !q.running {
		return
	}
	q.drain()
	_ = q.kick.SetReadDeadline(time.Unix(1, 0)) // see start
	s.dev.QueueStopped(q.index)
	<-q.done
	q.done = nil
	q.halt()
}

// setKick takes fd as the eventfd with which the guest notifies q.
func (q *Queue) setKick(fd int) error {
	f, err := eventFile(fd, "kick")
	if err != nil {
		return err
	}
	q.closeKick()
	q.kick, q.started = f, true
	return nil
}

func (q *Queue) closeKick() {
	if q.kick != nil {
		q.kick.Close()
		q.kick = nil
	}
}

// setCall takes fd, or -1 for none, as the eventfd that interrupts the guest.
func (q *Queue) setCall(fd int) error {
	if fd >= 0 {
		if err := unix.SetNonblock(fd, true); err != nil {
			unix.Close(fd)
			return fmt.Errorf("call eventfd: %w", err)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.call >= 0 {
		unix.Close(q.call)
	}
	q.call = fd
	if q.running {
		// QEMU sends its real eventfd after it has started the queue; what was
		// signalled on the one before reached nobody.
		q.interruptLocked()
	}
	return nil
}

// eventFile wraps fd so that a read of it can be interrupted. It takes fd over
// in any case.
func eventFile(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%s eventfd: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	// What cannot be polled (a regular file) has no deadline, and a read of it
	// could keep a goroutine for ever.
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s descriptor is not an eventfd: %w", name, err)
	}
	return f, nil
}

// look compares the ring with the way it was left. fresh is false when
// everything is as it was at the last stop: QEMU was paused and goes on.
// A driver that sets its device up anew starts with indices of 0 in zeroed
// rings, and QEMU then starts from base 0. (When every index had wrapped to
// exactly 0 the two look alike; one queue of the device is then likely to
// tell, and a wrong guess costs only that guest's own connections.) A broken
// queue gets the benefit of that doubt: it may have broken at its first chain.
func (q *Queue) look() (fresh bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.stopped
	used := uint16(atomic.LoadUint32((*uint32)(unsafe.Pointer(&q.used[0]))) >> 16)
	return s == nil || *s != stopState{q.addr, q.size, q.base, used} || q.broken && q.base == 0 && used == 0
}

// run lets q be used; fresh forgets the chains of a driver that is gone.
func (q *Queue) run(fresh bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running, q.broken = true, q.broken && !fresh
	if fresh {
		q.generation++
		q.inFlight, q.late = 0, nil
		q.usedIdx = uint16(atomic.LoadUint32((*uint32)(unsafe.Pointer(&q.used[0]))) >> 16)
	}
	q.lastAvail, q.usedFlags, q.stopped = q.base, 0, nil
	for _, e := range q.late {
		q.putLocked(e)
	}
	q.late = nil
	q.publishLocked()
	// An interrupt may have been lost with the old eventfd; one too many does
	// no harm.
	q.interruptLocked()
}

// drain makes Pop find nothing more; what is under way may be completed.
func (q *Queue) drain() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.draining = true
}

// halt makes Push and Notify leave the ring alone, and notes how it was left.
func (q *Queue) halt() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.publishLocked() // what was pushed and not yet notified
	q.interruptLocked()
	q.running, q.draining = false, false
	q.base = q.lastAvail
	q.stopped = &stopState{q.addr, q.size, q.lastAvail, q.usedIdx}
}

// serveKicks calls Kick once, for what was there before, and then for each
// notification, until the read is interrupted or the eventfd ends.
func (q *Queue) serveKicks(d Device, f *os.File, done chan struct{}) {
	defer close(done)
	var b [8]byte
	for {
		d.Kick(q.index, q)
		if n, err := f.Read(b[:]); err != nil || n != len(b) {
			return
		}
	}
}
