package daemon

import (
	"context"

	"github.com/carrel-vm/carrel/guest/daemon/store"
)

// indexEvents keeps events in the daemon's index.
type indexEvents struct{ *store.Store }

// Events implements eventLog.
func (x indexEvents) Events(ctx context.Context, after uint64, limit int) ([]keptEvent, uint64, error) {
	list, first, err := x.Store.Events(ctx, after, limit)
	out := make([]keptEvent, len(list))
	for i, e := range list {
		out[i] = keptEvent{seq: e.Seq, time: e.Time, payload: e.Payload}
	}
	return out, first, err
}

// eventLog is where this daemon keeps its events. Without an index, as on a disk
// that was full at the start, they last as long as the daemon.
func (d *Daemon) eventLog() eventLog {
	if d.index == nil {
		return &memoryEvents{max: maxEvents / 50, own: maxEvents / 50 / 20}
	}
	return indexEvents{d.index}
}
