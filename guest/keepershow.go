package guest

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

// What a keeper shows of its guest, and how it is told to end it.

// update changes what watchers see.
func (k *Keeper) update(f func(*api.Guest)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(k.info)
	k.changedLocked()
}

func (k *Keeper) changedLocked() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// snapshot returns the guest as it is, with the tasks that have not ended, and
// a channel that is closed when that is no longer true.
func (k *Keeper) snapshot() (*api.Guest, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := proto.Clone(k.info).(*api.Guest)
	if i.Timings != nil {
		i.Timings.Spans = k.trace.Spans()
	}
	i.Tasks = nil
	for _, id := range k.order {
		if t := k.tasks[id]; !t.over() {
			i.Tasks = append(i.Tasks, t.get())
		}
	}
	return i, k.changed
}

// Watch implements the keeper's service.
func (k *Keeper) Watch(ctx context.Context, _ *connect.Request[api.WatchRequest], st *connect.ServerStream[api.Guest]) error {
	defer k.watched()()
	for {
		i, changed := k.snapshot()
		if err := st.Send(i); err != nil {
			return err
		}
		if i.State == api.GuestState_GUEST_STATE_STOPPED {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Stop implements the keeper's service.
func (k *Keeper) Stop(_ context.Context, r *connect.Request[api.StopGuestRequest]) (*connect.Response[api.StopGuestResponse], error) {
	k.mu.Lock()
	g := k.g
	k.mu.Unlock()
	if g == nil {
		return nil, api.NewError(connect.CodeFailedPrecondition, "not_running", "the guest is not running", "")
	}
	grace := StopGrace
	if n := r.Msg.GraceNanos; n > 0 {
		grace = min(time.Duration(n), StopBound)
	}
	k.stop(g, grace)
	i, _ := k.snapshot()
	return connect.NewResponse(&api.StopGuestResponse{Guest: i}), nil
}
