package vhostuser

import (
	"errors"
	"log/slog"
	"sync"
	"time"
)

// FileServer answers FUSE messages; guest/share has one. Its methods are called from several goroutines.
type FileServer interface {
	// ServeSegments answers one message: it reads readable, fills writable from its start and says how far. Both are
	// the guest's memory.
	ServeSegments(readable, writable [][]byte) (written int)
	// ServeUrgent takes a message that has no reply and asks nothing of the host's file system (FORGET, INTERRUPT), so
	// that it returns at once; any other is dropped.
	ServeUrgent(readable [][]byte)
	// Reset forgets the session: the guest's driver has started anew.
	Reset()
}

const (
	// fsWorkers requests are served at once: enough for two cores and a disk, few enough that a guest cannot fill the
	// host's threads.
	fsWorkers = 8
	// fsDrain is how long a pause or a reset waits for requests under way, such as one at a network drive that does not
	// answer. QEMU stands still meanwhile. Those that take longer are completed when the queue runs again.
	fsDrain = 2 * time.Second
	// fsWarnEvery is how often one device may log what its guest can bring about.
	fsWarnEvery = 10 * time.Second
)

// FS is a virtio-fs device (VIRTIO 1.2, 5.11): queue 0 is for FORGET and INTERRUPT, queue 1 for everything else.
type FS struct {
	tag   string
	files FileServer

	slots chan struct{} // one for each request that may be under way

	mu     sync.Mutex
	ready  chan struct{} // closed once the last reset is done
	queues [2]fsQueue
	resets inFlight
	warned time.Time
}

type fsQueue struct {
	stop chan struct{} // closed when the queue stops
	busy inFlight
}

// inFlight counts requests under way. It is a sync.WaitGroup that can be waited for with a bound, and whose waiters may give up.
type inFlight struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed at 0; nil unless somebody waits
}

func (f *inFlight) add(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n += n
	if f.n == 0 && f.idle != nil {
		close(f.idle)
		f.idle = nil
	}
}

// wait says whether everything was done within the limit.
func (f *inFlight) wait(limit time.Duration) bool {
	f.mu.Lock()
	if f.n == 0 {
		f.mu.Unlock()
		return true
	}
	if f.idle == nil {
		f.idle = make(chan struct{})
	}
	idle := f.idle
	f.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-idle:
		return true
	case <-timer.C:
		return false
	}
}

// NewFS makes the device that serves files. tag is the name that the guest mounts and that QEMU tells it; here it only stands in
// messages.
func NewFS(tag string, files FileServer) *FS {
	d := &FS{tag: tag, files: files, slots: make(chan struct{}, fsWorkers), ready: make(chan struct{})}
	close(d.ready)
	return d
}

// Features: none of virtio-fs's own.
func (d *FS) Features() uint64 { return 0 }

// Queues are hiprio and one for requests.
func (d *FS) Queues() int { return len(d.queues) }

// Config is nil: QEMU fills the configuration space in from its own command line (tag=, num-request-queues=), and warns when a
// back end offers to.
func (d *FS) Config() []byte { return nil }

// QueueReady starts the session over if the driver did. That may have to wait for requests of the old session, so it is not
// done here: new requests wait for it.
func (d *FS) QueueReady(i int, _ *Queue, fresh bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queues[i].stop = make(chan struct{})
	if !fresh {
		return
	}
	before, done := d.ready, make(chan struct{})
	d.ready = done
	d.resets.add(1)
	go func() {
		<-before
		d.files.Reset()
		close(done)
		d.resets.add(-1)
	}()
}

// Kick takes what is there. What is urgent is done at once; each request is served in a goroutine of its own, as long as there
// are slots: one that blocks in the host holds up nobody else.
func (d *FS) Kick(i int, q *Queue) {
	d.mu.Lock()
	stop, ready := d.queues[i].stop, d.ready
	d.mu.Unlock()
	if i == 0 {
		select {
		case <-ready:
			d.kickUrgent(q)
		case <-stop:
		}
		return
	}
	for {
		q.SetNotifications(false)
		for {
			select {
			case d.slots <- struct{}{}:
			case <-stop:
				return
			}
			c := chains.Get().(*Chain)
			found, err := q.Pop(c)
			if !found {
				<-d.slots
				chains.Put(c)
				if err != nil {
					d.warn("the share's device is stopped until the guest's driver starts anew", "queue", i, "reason", err)
					return
				}
				break
			}
			d.queues[i].busy.add(1)
			go d.serve(i, q, c, ready)
		}
		q.SetNotifications(true)
		if !q.Has() {
			return
		}
	}
}

// kickUrgent empties the queue, with one interrupt for all: a guest whose caches shrink forgets thousands at a time.
func (d *FS) kickUrgent(q *Queue) {
	c := chains.Get().(*Chain)
	defer chains.Put(c)
	for {
		q.SetNotifications(false)
		done := false
		for {
			found, err := q.Pop(c)
			if err != nil {
				d.warn("the share's device is stopped until the guest's driver starts anew", "queue", q.Index(), "reason", err)
			}
			if !found {
				break
			}
			d.files.ServeUrgent(c.Readable)
			q.Push(c, 0)
			done = true
		}
		if done {
			q.Notify()
		}
		q.SetNotifications(true)
		if !q.Has() {
			return
		}
	}
}

// chains are used again, with the room that their slices have.
var chains = sync.Pool{New: func() any { return new(Chain) }}

func (d *FS) serve(i int, q *Queue, c *Chain, ready <-chan struct{}) {
	<-ready
	n := d.files.ServeSegments(c.Readable, c.Writable)
	q.Push(c, uint32(n))
	q.Notify()
	clear(c.Readable)
	clear(c.Writable)
	chains.Put(c)
	<-d.slots
	d.queues[i].busy.add(-1)
}

// QueueStopped waits for the requests under way, for fsDrain at most.
func (d *FS) QueueStopped(i int) {
	d.mu.Lock()
	close(d.queues[i].stop)
	d.mu.Unlock()
	if !d.queues[i].busy.wait(fsDrain) {
		d.warn("requests are still at the host's file system", "queue", i, "waited", fsDrain)
	}
}

// warn logs, but not as often as a guest likes.
func (d *FS) warn(what string, details ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.warned) < fsWarnEvery {
		return
	}
	d.warned = time.Now()
	slog.Warn(what, append([]any{"tag", d.tag}, details...)...)
}

// Close waits, after Serve has returned, for requests that QueueStopped has left behind; what is still at the host's file
// system after the time given is an error.
func (d *FS) Close(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for _, f := range []*inFlight{&d.queues[0].busy, &d.queues[1].busy, &d.resets} {
		if !f.wait(time.Until(deadline)) {
			return errors.New("virtio-fs " + d.tag + ": the host's file system does not answer a request; it is left to itself")
		}
	}
	return nil
}
