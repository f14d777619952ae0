package daemon

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// quiet is how long nobody has asked for anything, and no guest has ended, before
// this process gives memory back that it only needed for that.
const quiet = 3 * time.Second

// rest gives memory back after work: once for each pause, by one timer that each
// call moves, so that nothing wakes up while nothing happens. The runtime gives heap
// back by itself, but not below what the last collection aimed at, and what a burst
// of calls needed stays with it.
type rest struct {
	mu    sync.Mutex
	timer *time.Timer
	least uint64 // bytes of heap after the last time
}

// moved says that something happens.
func (r *rest) moved() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer == nil {
		r.timer = time.AfterFunc(quiet, r.now)
		return
	}
	r.timer.Reset(quiet)
}

// end stops the timer.
func (r *rest) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
	}
}

// worth is how much more heap than after the last time makes a collection worth it.
const worth = 256 << 10

func (r *rest) now() {
	r.mu.Lock()
	least := r.least
	r.mu.Unlock()
	if heapHeld() >= least+worth {
		runtime.GC() // what a sync.Pool has goes with the second: a piece of output, for one
		debug.FreeOSMemory()
		r.mu.Lock()
		r.least = heapHeld()
		r.mu.Unlock()
	}
}

// heapHeld is what the heap has of the system, in bytes: objects, dead ones too, and
// room for more.
func heapHeld() (n uint64) {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(s)
	for _, x := range s {
		if x.Value.Kind() == metrics.KindUint64 {
			n += x.Value.Uint64()
		}
	}
	return n
}
