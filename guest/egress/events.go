package egress

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
)

// events keeps the last verdicts and hands them to watchers. Who adds never
// waits for who watches: a watcher has a place in the ring, and if the ring
// has gone round, it is told how much it missed.
type events struct {
	record func(*api.EgressEvent)

	mu     sync.Mutex
	ring   [keptEvents]*api.EgressEvent // event n is at n % keptEvents
	last   uint64                       // number of the newest event; the first is 1
	more   chan struct{}                // closed at the next event
	closed bool
}

func (e *events) init(record func(*api.EgressEvent)) {
	e.record, e.more = record, make(chan struct{})
}

// add numbers, dates and keeps an event, which must not be changed after.
func (e *events) add(ev *api.EgressEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	e.last++
	ev.Sequence, ev.Time = e.last, timestamppb.Now()
	if e.record != nil {
		e.record(ev)
	}
	e.ring[e.last%keptEvents] = ev
	close(e.more)
	e.more = make(chan struct{})
}

// close ends watchers once they have had what is kept. Later events are lost.
func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.closed = true
		close(e.more)
	}
}

func (e *events) watch(ctx context.Context, last int, follow bool, fn func(*api.EgressEvent) error) error {
	e.mu.Lock()
	next := e.oldestLocked()
	if last > 0 && uint64(last) < e.last+1-next {
		next = e.last + 1 - uint64(last)
	}
	e.mu.Unlock()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		ev, missed, more := e.get(next)
		switch {
		case missed > 0:
			next += missed
			ev = &api.EgressEvent{Time: timestamppb.Now(), Verdict: &api.EgressVerdict{
				Reason: fmt.Sprintf("%d events are not shown: they came faster than they were taken", missed)}}
		case ev != nil:
			next++
		case more == nil || !follow:
			return nil
		default:
			select {
			case <-more:
			case <-ctx.Done():
			}
			continue
		}
		if err := fn(ev); err != nil {
			return err
		}
	}
}

// oldestLocked is the number of the oldest event that is kept.
func (e *events) oldestLocked() uint64 {
	if e.last < keptEvents {
		return 1
	}
	return e.last - keptEvents + 1
}

// get returns event n, or how many from n on are lost, or a channel that is
// closed when it is there; none of them: it never will be.
func (e *events) get(n uint64) (ev *api.EgressEvent, missed uint64, more chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch old := e.oldestLocked(); {
	case n < old:
		return nil, old - n, nil
	case n <= e.last:
		return e.ring[n%keptEvents], 0, nil
	case e.closed:
		return nil, 0, nil
	}
	return nil, 0, e.more
}
