package vhostuser

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxQueueSize is QEMU's VIRTQUEUE_MAX_SIZE.
	maxQueueSize = 1024
	// maxChainBytes bounds what one chain may describe; the largest honest one
	// is a FUSE request or reply of a little over 1 MiB.
	maxChainBytes = 4 << 20

	descSize      = 16
	usedElemSize  = 8
	descNext      = 1
	descWrite     = 2
	availNoNotify = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	usedNoNotify  = 1 // VIRTQ_USED_F_NO_NOTIFY
)

// ErrBroken marks a queue whose contents make no sense. It stays stopped until
// the driver sets it up anew.
var ErrBroken = errors.New("the guest's queue makes no sense")

// Queue is one split virtqueue (VIRTIO 1.2, 2.7). Its methods may be called
// from several goroutines.
//
//	stopped ── SET_VRING_KICK and SET_VRING_ENABLE 1 ──> running ── broken chain ──> broken
//	   ^────────── GET_VRING_BASE, SET_VRING_ENABLE 0, end ─┴───────────────────────────┘
type Queue struct {
	index int

	mu       sync.Mutex
	running  bool // the ring may be written
	draining bool // running still, but no chain is taken any more
	broken   bool
	size     uint32 // entries, a power of two
	addr     ringAddr
	mem      *memory

	desc, avail, used []byte // nil unless the ring is mapped

	lastAvail uint16 // index of the next chain to take
	usedIdx   uint16 // index of the next used element, perhaps ahead of what the guest sees
	shownIdx  uint16 // usedIdx, as the guest last saw it
	usedFlags uint16

	// generation tells chains of this driver's set-up from older ones.
	generation uint64
	inFlight   uint32
	late       []usedElem // completions that arrived while the queue was stopped

	call int // eventfd that interrupts the guest, or -1

	// What the server's goroutine alone uses.
	started, enabled bool
	base             uint16 // of SET_VRING_BASE
	kick             *os.File
	done             chan struct{} // closed when the kick goroutine has ended
	stopped          *stopState
}

// ringAddr are the front end's addresses of a ring's three parts.
type ringAddr struct{ desc, used, avail uint64 }

type usedElem struct{ head, written uint32 }

// stopState is what a ring looked like when it was last stopped. A ring that
// is found the same again has merely been paused.
type stopState struct {
	addr      ringAddr
	size      uint32
	lastAvail uint16
	usedIdx   uint16
}

// Chain is one request of the driver's. Its slices are the guest's memory, so
// their contents can change between two looks: copy what is to be checked.
// They are valid until Push. A Chain may be used again with Pop.
type Chain struct {
	// Head names the chain to the driver.
	Head uint16
	// Readable are the parts that the driver filled.
	Readable [][]byte
	// Writable are the parts that the device may fill.
	Writable [][]byte

	mem        *memory
	generation uint64
	writable   uint64
}

// ReadableLen is the number of bytes in Readable.
func (c *Chain) ReadableLen() int { return segmentsLen(c.Readable) }

// WritableLen is the number of bytes in Writable.
func (c *Chain) WritableLen() int { return int(c.writable) }

func segmentsLen(s [][]byte) (n int) {
	for _, b := range s {
		n += len(b)
	}
	return n
}

// Index is the queue's number in its device.
func (q *Queue) Index() int { return q.index }

// Pop takes the next chain. ok is false when there is none, or the queue does
// not run. An error wraps ErrBroken: the queue is stopped until the driver
// sets it up anew, and chains under way may still be pushed (to no effect).
// Every chain that Pop gave must be given to Push, once.
func (q *Queue) Pop(c *Chain) (ok bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
	if !q.running || q.draining || q.broken {
		return false, nil
	}
	_, idx := q.availWord()
	waiting := uint32(idx - q.lastAvail)
	if waiting == 0 {
		return false, nil
	}
	if waiting > q.size {
		return false, q.breakLocked("%d chains offered in %d entries", waiting, q.size)
	}
	if q.inFlight >= q.size {
		return false, q.breakLocked("more chains are under way than the %d that fit", q.size)
	}
	head := le.Uint16(q.avail[4+2*(uint32(q.lastAvail)&(q.size-1)):])
	if err := q.walkLocked(c, head); err != nil {
		return false, err
	}
	q.lastAvail++
	q.inFlight++
	c.Head, c.mem, c.generation = head, q.mem.acquire(), q.generation
	return true, nil
}

// walkLocked collects the segments of the chain that starts at head.
func (q *Queue) walkLocked(c *Chain, head uint16) error {
	var readable, writable uint64
	i := uint32(head)
	for k := uint32(0); ; k++ {
		if i >= q.size || k >= q.size {
			return q.breakLocked("descriptor %d, the chain's number %d, with %d in all", i, k, q.size)
		}
		// One copy of the descriptor: the guest may change it under us.
		var d [descSize]byte
		copy(d[:], q.desc[descSize*i:])
		addr, n, flags, next := le.Uint64(d[:]), uint64(le.Uint32(d[8:])), le.Uint16(d[12:]), le.Uint16(d[14:])
		if flags&^(descNext|descWrite) != 0 {
			return q.breakLocked("descriptor flags %#x (indirect ones are not offered)", flags)
		}
		write := flags&descWrite != 0
		if !write && len(c.Writable) > 0 {
			return q.breakLocked("a readable descriptor after a writable one")
		}
		if readable+writable+n > maxChainBytes {
			return q.breakLocked("a chain of more than %d bytes", maxChainBytes)
		}
		if n > 0 {
			b := q.mem.atGuest(addr, n)
			if b == nil {
				return q.breakLocked("%d bytes at %#x are not memory", n, addr)
			}
			if write {
				writable += n
				c.Writable = append(c.Writable, b)
			} else {
				readable += n
				c.Readable = append(c.Readable, b)
			}
		}
		if flags&descNext == 0 {
			c.writable = writable
			return nil
		}
		i = uint32(next)
	}
}

// fail marks the queue as broken when its chains are sound but make no sense to
// the device, and returns the error for that.
func (q *Queue) fail(format string, args ...any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.breakLocked(format, args...)
}

func (q *Queue) breakLocked(format string, args ...any) error {
	q.broken = true
	return fmt.Errorf("queue %d: %w: %s", q.index, ErrBroken, fmt.Sprintf(format, args...))
}

// Push completes c: the driver is told that its first written writable bytes
// are filled, once Notify is called. Chains may be completed in any order.
// While the queue is paused a completion is kept until it runs again; one of
// a driver that is gone is forgotten.
func (q *Queue) Push(c *Chain, written uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if c.mem == nil {
		return // nothing popped, or completed already
	}
	c.mem.release()
	c.mem = nil
	if c.generation != q.generation {
		return
	}
	q.inFlight--
	e := usedElem{uint32(c.Head), uint32(min(uint64(written), c.writable))}
	switch {
	case q.broken:
	case q.running:
		q.putLocked(e)
	default:
		q.late = append(q.late, e) // at most size: inFlight is
	}
}

func (q *Queue) putLocked(e usedElem) {
	u := q.used[4+usedElemSize*(uint32(q.usedIdx)&(q.size-1)):]
	le.PutUint32(u, e.head)
	le.PutUint32(u[4:], e.written)
	q.usedIdx++
}

// Notify shows the guest what was pushed and interrupts it, unless it asked
// not to be.
func (q *Queue) Notify() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running && !q.broken {
		q.publishLocked()
		if flags, _ := q.availWord(); flags&availNoNotify == 0 {
			q.interruptLocked()
		}
	}
}

func (q *Queue) publishLocked() {
	// Flags and index share an aligned word: Go has no atomic of 16 bits. The
	// store is sequentially consistent, so the elements written before it are
	// seen first, and the driver's flags are read after it.
	q.shownIdx = q.usedIdx
	q.showLocked()
}

func (q *Queue) showLocked() {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&q.used[0])), uint32(q.usedFlags)|uint32(q.shownIdx)<<16)
}

// interruptLocked writes to a nonblocking eventfd: EAGAIN means that an
// interrupt is pending anyway, and a front end that is gone needs none.
func (q *Queue) interruptLocked() {
	if q.call >= 0 {
		_, _ = unix.Write(q.call, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

func (q *Queue) availWord() (flags, idx uint16) {
	w := atomic.LoadUint32((*uint32)(unsafe.Pointer(&q.avail[0])))
	return uint16(w), uint16(w >> 16)
}

// Has says whether a chain is waiting.
func (q *Queue) Has() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.running || q.draining || q.broken {
		return false
	}
	_, idx := q.availWord()
	return idx != q.lastAvail
}

// SetNotifications asks the driver for kicks, or for none. It is a hint: kicks
// may come all the same. After asking for them look at Has once more, for the
// driver may have added a chain just before.
func (q *Queue) SetNotifications(on bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	flags := uint16(usedNoNotify)
	if on {
		flags = 0
	}
	if !q.running || q.broken || q.usedFlags == flags {
		return
	}
	q.usedFlags = flags
	q.showLocked()
}

// mapLocked finds the ring's parts in m and makes m the queue's memory.
func (q *Queue) mapLocked(m *memory, a ringAddr) error {
	n := uint64(q.size)
	if n == 0 {
		return errors.New("SET_VRING_NUM has not been sent")
	}
	desc, avail, used := m.atUser(a.desc, descSize*n), m.atUser(a.avail, 6+2*n), m.atUser(a.used, 6+usedElemSize*n)
	// VIRTIO asks for 2 bytes of the available ring; we need 4 to read its
	// flags and index at once, and drivers align it so because a descriptor
	// table comes before it.
	if desc == nil || avail == nil || used == nil || a.desc%16 != 0 || a.avail%4 != 0 || a.used%4 != 0 {
		return fmt.Errorf("queue %d: a ring of %d entries at %#x, %#x, %#x is not in the guest's memory, or not aligned", q.index, n, a.desc, a.avail, a.used)
	}
	if q.mem != nil {
		q.mem.release()
	}
	q.mem, q.addr, q.desc, q.avail, q.used = m.acquire(), a, desc, avail, used
	return nil
}

func (q *Queue) unmapLocked() {
	if q.mem != nil {
		q.mem.release()
	}
	q.mem, q.desc, q.avail, q.used = nil, nil, nil, nil
}
