package guest

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// bearer takes streams of a guest to the processes that read them, and to it
// those that are for it.
type bearer struct {
	slots   chan struct{} // one for each stream that is carried here
	carried sync.WaitGroup
	dropped atomic.Uint64

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// newBearer returns one that carries at most n streams at once.
func newBearer(n int) *bearer {
	return &bearer{slots: make(chan struct{}, n), conns: map[net.Conn]struct{}{}}
}

// saidOfDropped is how many dropped streams are logged one by one.
const saidOfDropped = 100

// drop counts a stream that was dropped, and says whether it is to be logged: a
// guest can open streams without end, and a log has to have one.
func (b *bearer) drop() (count uint64, say bool) {
	n := b.dropped.Add(1)
	return n, n <= saidOfDropped || n&(n-1) == 0
}

// hand gives a stream away with send: itself, where it is a socket, else one end
// of a pair whose other end is fed from it. c is the caller's after an error
// only.
func (b *bearer) hand(c net.Conn, send func(syscall.Conn) error) error {
	if uc, ok := c.(*net.UnixConn); ok {
		err := send(uc)
		if err == nil {
			c.Close() // the other process has it
		}
		return err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	if !b.carry(c, func() { join(c, ours) }) {
		ours.Close()
		return fmt.Errorf("more than %d connections at once", cap(b.slots))
	}
	if err := send(theirs); err != nil {
		ours.Close()
		return err
	}
	return nil
}

// carry runs f, which ends when c is closed, if there is room for it.
func (b *bearer) carry(c net.Conn, f func()) bool {
	select {
	case b.slots <- struct{}{}:
	default:
		return false
	}
	b.mu.Lock()
	b.conns[c] = struct{}{}
	b.mu.Unlock()
	b.carried.Go(func() {
		defer func() {
			b.mu.Lock()
			delete(b.conns, c)
			b.mu.Unlock()
			<-b.slots
		}()
		f()
	})
	return true
}

// close ends all that is carried, and waits for it. Nothing is carried later.
func (b *bearer) close() {
	b.mu.Lock()
	for c := range b.conns {
		c.Close()
	}
	b.mu.Unlock()
	b.carried.Wait()
}
