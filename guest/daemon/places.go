package daemon

import (
	"context"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// maxTasksWaiting bounds the starts of tasks that wait in one guest: each holds its
// request, of 2 MiB at most.
const maxTasksWaiting = 128

// startTask hands a task on to the guest's keeper. Where as many run as may, one that
// is to wait does: the first in turn asks whenever something of the guest has changed,
// the others wait for their turn. While somebody waits nobody else gets a place.
func (d *Daemon) startTask(ctx context.Context, e *entry, r *api.StartTaskRequest, wait bool) (*connect.Response[api.StartTaskResponse], error) {
	ask := func() (out *connect.Response[api.StartTaskResponse], full bool, changed <-chan struct{}, err error) {
		for {
			at, k, err := d.up(ctx, e.name)
			if err != nil {
				return nil, false, nil, err
			}
			_, _, changed = at.get()
			if out, err = k.tasks.Start(ctx, connect.NewRequest(r)); err == nil {
				return out, false, changed, nil
			}
			if !d.again(ctx, at, k, err) {
				err = d.handOn(at, err)
				return nil, wordOf(err) == "too_many_tasks", changed, err
			}
		}
	}
	if e.places.idle() {
		if out, full, _, err := ask(); !full || !wait {
			return out, err
		}
	} else if !wait {
		return nil, api.NewError(connect.CodeResourceExhausted, "too_many_tasks", "as many tasks run in guest "+e.name+" as may, and others wait for a place", "wait for a place, too, or for tasks to end")
	}
	leave, err := e.places.enter(ctx, callerOf(ctx), 1, maxTasksWaiting, func(int) error { return nil })
	if err != nil {
		return nil, queueError("start a task in guest "+e.name, err, "ask again when some of them run")
	}
	defer leave()
	for {
		out, full, changed, err := ask()
		if !full {
			return out, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
