package guest

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
)

// StopImport is how much longer than StopBound the stop of a guest with reviews
// takes at most: what it has changed is brought over before the machine ends,
// since without a disk it would be lost.
const StopImport = 10 * time.Second

// windDown ends the tasks of a guest that is about to be stopped as a power-off
// would, and then brings over what was changed in its reviews. A guest without
// reviews, or one that is to end at once, is left to the power-off.
func (k *Keeper) windDown(g *Guest, grace time.Duration) {
	if grace <= 0 || !k.shares.hasReviews() {
		return
	}
	grace = min(grace, StopBound-2*time.Second)
	ctx, cancel := context.WithTimeoutCause(context.Background(), grace+StopImport, errors.New("the guest is being stopped"))
	defer cancel()
	live := k.live()
	for _, t := range live {
		t.in.signal(int32(syscall.SIGTERM))
	}
	late, stop := context.WithTimeout(ctx, grace)
	defer stop()
	for _, t := range live {
		wait(late, g, t.ended)
	}
	for _, t := range live {
		select {
		case <-t.ended:
		default:
			t.in.signal(int32(syscall.SIGKILL))
		}
	}
	for _, t := range live { // its own import included
		wait(ctx, g, t.done)
	}
	select {
	case <-g.Gone():
		return
	default:
	}
	if err := k.shares.imports.all(ctx, g, "", false); err != nil {
		k.log.Warn("import before the stop", "error", err)
	}
}

func wait(ctx context.Context, g *Guest, done <-chan struct{}) {
	select {
	case <-done:
	case <-g.Gone():
	case <-ctx.Done():
	}
}

// live are the tasks that have not ended.
func (k *Keeper) live() (list []*task) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range k.tasks {
		if !t.over() {
			list = append(list, t)
		}
	}
	return list
}

// stop ends the guest in order: its tasks, its reviews, its machine.
func (k *Keeper) stop(g *Guest, grace time.Duration) {
	k.update(func(i *api.Guest) { i.State, i.Paused = api.GuestState_GUEST_STATE_STOPPING, nil })
	g.rest.leave()
	k.windDown(g, grace)
	g.Stop(grace)
}
