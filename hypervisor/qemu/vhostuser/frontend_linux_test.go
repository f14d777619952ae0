package vhostuser

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience bounds every wait in the tests; a pass never takes so long.
const patience = 5 * time.Minute // a test that passes does not wait so long

// frontEnd plays QEMU and the guest's driver together: it speaks vhost-user
// over a socket pair and works the rings in a memfd.
type frontEnd struct {
	t      testing.TB
	conn   *net.UnixConn
	memfd  int
	ram    []byte
	queues []*driverQueue
	next   uint64 // first free byte of ram
	served chan error
	cancel context.CancelFunc
}

const (
	guestBase = 0x4000_0000      // guest-physical address of ram
	userBase  = 0x7f00_0000_0000 // QEMU's address of ram
)

// newFrontEnd serves dev and does what QEMU does before the guest runs.
func newFrontEnd(t testing.TB, dev Device, ram int) *frontEnd {
	t.Helper()
	ours, theirs := socketPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	f := &frontEnd{t: t, conn: ours, served: make(chan error, 1), cancel: cancel}
	go func() { f.served <- Serve(ctx, theirs, dev) }()
	f.memfd = sealedMemory(t, ram)
	var err error
	if f.ram, err = unix.Mmap(f.memfd, 0, ram, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	want := dev.Features() | featureVersion1 | featureProtocolFeatures
	if got := le.Uint64(f.ask(reqGetFeatures, nil)); got != want {
		t.Fatalf("features %#x, want %#x", got, want)
	}
	f.send(reqSetProtocolFeatures, f.ask(reqGetProtocolFeatures, nil))
	f.send(reqSetOwner, nil)
	return f
}

func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var c [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		nc, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		c[i] = nc.(*net.UnixConn)
	}
	return c[0], c[1]
}

func sealedMemory(t testing.TB, size int) int {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		t.Fatal(err)
	}
	return fd
}

func (f *frontEnd) close() {
	f.conn.Close()
	f.wait()
	f.cancel()
	for _, q := range f.queues {
		unix.Close(q.kickFD)
		unix.Close(q.callFD)
	}
	unix.Munmap(f.ram)
	unix.Close(f.memfd)
}

// wait returns what Serve returned.
func (f *frontEnd) wait() error {
	select {
	case err := <-f.served:
		f.served <- err
		return err
	case <-time.After(patience):
		f.t.Error("Serve has not returned")
		return errors.New("Serve has not returned")
	}
}

func (f *frontEnd) send(req uint32, payload []byte, fds ...int) {
	f.t.Helper()
	b := make([]byte, headerSize, headerSize+len(payload))
	le.PutUint32(b, req)
	le.PutUint32(b[4:], flagVersion)
	le.PutUint32(b[8:], uint32(len(payload)))
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := f.conn.WriteMsgUnix(append(b, payload...), oob, nil); err != nil {
		f.t.Fatalf("send %s: %v", requestName(req), err)
	}
}

func (f *frontEnd) ask(req uint32, payload []byte) []byte {
	f.t.Helper()
	f.send(req, payload)
	f.conn.SetReadDeadline(time.Now().Add(patience))
	h := make([]byte, headerSize)
	if _, err := io.ReadFull(f.conn, h); err != nil {
		f.t.Fatalf("answer to %s: %v", requestName(req), err)
	}
	if got := le.Uint32(h); got != req || le.Uint32(h[4:]) != flagVersion|flagReply {
		f.t.Fatalf("answer %x to %s", h, requestName(req))
	}
	p := make([]byte, le.Uint32(h[8:]))
	if _, err := io.ReadFull(f.conn, p); err != nil {
		f.t.Fatal(err)
	}
	return p
}

// alloc returns the offset in ram of n fresh bytes.
func (f *frontEnd) alloc(n int) uint64 {
	f.t.Helper()
	o := (f.next + 63) &^ 63
	f.next = o + uint64(n)
	if f.next > uint64(len(f.ram)) {
		f.t.Fatal("the test's guest is out of memory")
	}
	return o
}

// driverQueue is a virtqueue from the driver's side.
type driverQueue struct {
	f                 *frontEnd
	index, size       int
	desc, avail, used uint64 // offsets in ram
	availIdx, usedIdx uint16
	free              []uint16 // descriptors
	chain             [maxQueueSize]int
	kickFD, callFD    int
	base              uint16
	kicksSuppressed   int
}

// addQueue lays out queue number len(f.queues).
func (f *frontEnd) addQueue(size int) *driverQueue {
	f.t.Helper()
	q := &driverQueue{f: f, index: len(f.queues), size: size}
	q.desc, q.avail, q.used = f.alloc(16*size), f.alloc(6+2*size), f.alloc(6+8*size)
	f.queues = append(f.queues, q)
	for _, fd := range []*int{&q.kickFD, &q.callFD} {
		var err error
		if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			f.t.Fatal(err)
		}
	}
	q.clear()
	return q
}

// clear is what a driver does when it sets a queue up.
func (q *driverQueue) clear() {
	clear(q.f.ram[q.desc : q.desc+uint64(16*q.size)])
	clear(q.f.ram[q.avail : q.avail+uint64(6+2*q.size)])
	clear(q.f.ram[q.used : q.used+uint64(6+8*q.size)])
	q.availIdx, q.usedIdx, q.base = 0, 0, 0
	q.free = q.free[:0]
	for i := range q.size {
		q.free = append(q.free, uint16(q.size-1-i))
	}
}

func pair(a, b uint32) []byte { return le.AppendUint32(le.AppendUint32(nil, a), b) }

func (f *frontEnd) sendMemory() {
	p := pair(1, 0)
	for _, v := range []uint64{guestBase, uint64(len(f.ram)), userBase, 0} {
		p = le.AppendUint64(p, v)
	}
	f.send(reqSetMemTable, p, f.memfd)
}

// start is what QEMU does at DRIVER_OK and when a paused guest goes on.
func (f *frontEnd) start() {
	f.t.Helper()
	f.send(reqSetFeatures, u64(featureVersion1|featureProtocolFeatures))
	f.sendMemory()
	for _, q := range f.queues {
		i := uint32(q.index)
		f.send(reqSetVringNum, pair(i, uint32(q.size)))
		f.send(reqSetVringBase, pair(i, uint32(q.base)))
		p := pair(i, 0)
		for _, v := range []uint64{q.desc, q.used, q.avail} {
			p = le.AppendUint64(p, userBase+v)
		}
		f.send(reqSetVringAddr, le.AppendUint64(p, 0))
		f.send(reqSetVringKick, u64(uint64(i)), q.kickFD)
		f.send(reqSetVringCall, u64(uint64(i)), q.callFD)
	}
	for _, q := range f.queues {
		f.send(reqSetVringEnable, pair(uint32(q.index), 1))
	}
	f.sync()
}

// sync returns when everything sent before has been dealt with.
func (f *frontEnd) sync() { f.ask(reqGetFeatures, nil) }

// stop is what QEMU does at a pause and at a reset.
func (f *frontEnd) stop() {
	f.t.Helper()
	for _, q := range f.queues {
		f.send(reqSetVringEnable, pair(uint32(q.index), 0))
	}
	for _, q := range f.queues {
		p := f.ask(reqGetVringBase, pair(uint32(q.index), 0))
		q.base = uint16(le.Uint32(p[4:]))
	}
}

// reset stops the device and sets it up as a driver that has just booted.
func (f *frontEnd) reset() {
	f.t.Helper()
	f.stop()
	for _, q := range f.queues {
		q.clear()
	}
	f.start()
}

// part is a piece of a chain: n bytes at offset at of ram.
type part struct {
	at uint64
	n  int
}

// add makes a chain available and returns its head; no kick yet. ok is false
// when there are too few descriptors.
func (q *driverQueue) add(readable, writable []part) (head uint16, ok bool) {
	n := len(readable) + len(writable)
	if n == 0 || len(q.free) < n {
		return 0, false
	}
	ids := append([]uint16(nil), q.free[len(q.free)-n:]...)
	q.free = q.free[:len(q.free)-n]
	for k, id := range ids {
		var p part
		var flags uint16
		if k < len(readable) {
			p = readable[k]
		} else {
			p, flags = writable[k-len(readable)], descWrite
		}
		next := uint16(0)
		if k+1 < n {
			flags, next = flags|descNext, ids[k+1]
		}
		q.setDesc(int(id), guestBase+p.at, uint32(p.n), flags, next)
	}
	q.chain[ids[0]] = n
	q.offer(ids[0])
	return ids[0], true
}

func (q *driverQueue) setDesc(i int, addr uint64, n uint32, flags, next uint16) {
	d := q.f.ram[q.desc+uint64(16*i):]
	le.PutUint64(d, addr)
	le.PutUint32(d[8:], n)
	le.PutUint16(d[12:], flags)
	le.PutUint16(d[14:], next)
}

// offer puts head into the available ring and moves its index.
func (q *driverQueue) offer(head uint16) {
	le.PutUint16(q.f.ram[q.avail+4+2*uint64(int(q.availIdx)&(q.size-1)):], head)
	q.availIdx++
	q.setAvail(0, q.availIdx)
}

func (q *driverQueue) word(off uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(&q.f.ram[off]))
}

func (q *driverQueue) setAvail(flags, idx uint16) {
	atomic.StoreUint32(q.word(q.avail), uint32(flags)|uint32(idx)<<16)
}

// kick notifies the device unless it asked not to be.
func (q *driverQueue) kick() {
	if atomic.LoadUint32(q.word(q.used))&usedNoNotify != 0 {
		q.kicksSuppressed++
		return
	}
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], 1)
	unix.Write(q.kickFD, b[:])
}

// completed takes the next completion, if there is one.
func (q *driverQueue) completed() (head uint16, written uint32, ok bool) {
	if uint16(atomic.LoadUint32(q.word(q.used))>>16) == q.usedIdx {
		return 0, 0, false
	}
	u := q.f.ram[q.used+4+8*uint64(int(q.usedIdx)&(q.size-1)):]
	head, written = uint16(le.Uint32(u)), le.Uint32(u[4:])
	q.usedIdx++
	// Descriptors go back to the free list in any order.
	for i, n := head, q.chain[head]; n > 0; n-- {
		q.free = append(q.free, i)
		i = le.Uint16(q.f.ram[q.desc+16*uint64(i)+14:])
	}
	return head, written, true
}

// wait takes the next completion and waits for it if need be.
func (q *driverQueue) wait() (head uint16, written uint32) {
	q.f.t.Helper()
	end := time.Now().Add(patience)
	for {
		if h, w, ok := q.completed(); ok {
			return h, w
		}
		if !q.interrupted(time.Until(end)) {
			q.f.t.Fatalf("queue %d: no completion within %v", q.index, patience)
		}
	}
}

// interrupted waits for an interrupt, at most d.
func (q *driverQueue) interrupted(d time.Duration) bool {
	p := []unix.PollFd{{Fd: int32(q.callFD), Events: unix.POLLIN}}
	for end := time.Now().Add(d); ; {
		n, err := unix.Poll(p, int(max(time.Until(end), 0).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n == 0 {
			return false
		}
		var b [8]byte
		unix.Read(q.callFD, b[:])
		return true
	}
}
