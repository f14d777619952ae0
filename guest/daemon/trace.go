package daemon

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
)

// maxPast is of how many removed guests the trace is kept.
const maxPast = 16

// Trace implements GuestService.
func (s *guestService) Trace(ctx context.Context, r *connect.Request[api.TraceGuestRequest]) (*connect.Response[api.TraceGuestResponse], error) {
	e := s.d.removed(r.Msg.Name)
	if e == nil {
		var err error
		if e, err = s.d.find(r.Msg.Name); err != nil {
			return nil, err
		}
	}
	for r.Msg.Ended {
		e.mu.Lock()
		over, changed := e.over, e.changed
		e.mu.Unlock()
		if over {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	spans := e.trace.Spans()
	for _, s := range e.theirs {
		if s.BeginNanos >= e.since {
			spans = append(spans, s)
		}
	}
	return connect.NewResponse(&api.TraceGuestResponse{Spans: spans}), nil
}

// removed returns a guest that was removed a moment ago, unless another has its
// name by now.
func (d *Daemon) removed(name string) *entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.table[name] != nil {
		return nil
	}
	for _, e := range d.past {
		if e.name == name {
			return e
		}
	}
	return nil
}

// rememberLocked keeps the trace of a guest that is removed; d.mu is held.
func (d *Daemon) rememberLocked(e *entry) {
	d.past = append([]*entry{e}, d.past[:min(len(d.past), maxPast-1)]...)
}

// begins starts the trace of a start.
func (e *entry) begins() *guest.Trace {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.trace, e.theirs, e.over = guest.NewTrace("daemon"), nil, false
	if e.cold != "" {
		now := time.Now()
		e.trace.Add("cold start: "+e.cold, now, now)
	}
	if !e.queued.IsZero() {
		e.trace.Add("waited for its turn", e.queued, time.Now())
	}
	e.cold, e.queued = "", time.Time{}
	return e.trace
}

// measure begins a part of the guest's trace.
func (e *entry) measure(name string) (end func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.trace.Begin(name)
}

// settled says that the guest has ended, and what became of it then.
func (e *entry) settled() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.over = true
	e.changedLocked()
}

// isOver says whether that was said.
func (e *entry) isOver() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.over
}
