package daemon

import (
	"context"
	"errors"
	"path/filepath"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
)

// Single calls about a task: while the keeper lives it has the word, and when it
// is gone the disk has it.

// about makes one call about a task. ask is the keeper's answer; left, which may
// be nil, is that of what the keeper left of the task.
func about[A any](ctx context.Context, d *Daemon, name, id string, ask func(*keeper) (*connect.Response[A], error), left func(*entry, *api.Task) (*A, error)) (*connect.Response[A], error) {
	e, err := d.find(name)
	if err != nil {
		return nil, err
	}
	for {
		info, k, _ := e.get()
		if k == nil {
			if left == nil {
				return nil, notRunning(e.name)
			}
			for _, t := range info.Tasks {
				if t.Id == id {
					out, err := left(e, t)
					if err != nil {
						return nil, err
					}
					return connect.NewResponse(out), nil
				}
			}
			return nil, guest.NoTask(e.name, id)
		}
		out, err := ask(k)
		if err == nil {
			return connect.NewResponse(out.Msg), nil
		}
		var ce *connect.Error
		if ctx.Err() != nil || left == nil || errors.As(err, &ce) && len(ce.Details()) > 0 {
			return nil, d.handOn(e, err)
		}
		// The keeper is gone, or goes.
		if _, werr := e.wait(ctx, func(_ *api.Guest, now *keeper) bool { return now != k }); werr != nil {
			return nil, werr
		}
	}
}

// Wait implements TaskService.
func (s *taskService) Wait(ctx context.Context, r *connect.Request[api.WaitTaskRequest]) (*connect.Response[api.WaitTaskResponse], error) {
	return about(ctx, s.d, r.Msg.Guest, r.Msg.Task,
		func(k *keeper) (*connect.Response[api.WaitTaskResponse], error) {
			return k.tasks.Wait(ctx, connect.NewRequest(r.Msg))
		},
		func(_ *entry, t *api.Task) (*api.WaitTaskResponse, error) { return &api.WaitTaskResponse{Task: t}, nil })
}

// Read implements TaskService.
func (s *taskService) Read(ctx context.Context, r *connect.Request[api.ReadTaskRequest]) (*connect.Response[api.ReadTaskResponse], error) {
	return about(ctx, s.d, r.Msg.Guest, r.Msg.Task,
		func(k *keeper) (*connect.Response[api.ReadTaskResponse], error) {
			return k.tasks.Read(ctx, connect.NewRequest(r.Msg))
		},
		func(e *entry, t *api.Task) (*api.ReadTaskResponse, error) {
			return guest.ReadSpool(ctx, filepath.Join(s.d.guests, e.name), r.Msg, t)
		})
}

// Write implements TaskService.
func (s *taskService) Write(ctx context.Context, r *connect.Request[api.WriteTaskRequest]) (*connect.Response[api.WriteTaskResponse], error) {
	return about(ctx, s.d, r.Msg.Guest, r.Msg.Task, func(k *keeper) (*connect.Response[api.WriteTaskResponse], error) {
		return k.tasks.Write(ctx, connect.NewRequest(r.Msg))
	}, nil)
}

// Signal implements TaskService.
func (s *taskService) Signal(ctx context.Context, r *connect.Request[api.SignalTaskRequest]) (*connect.Response[api.SignalTaskResponse], error) {
	return about(ctx, s.d, r.Msg.Guest, r.Msg.Task, func(k *keeper) (*connect.Response[api.SignalTaskResponse], error) {
		return k.tasks.Signal(ctx, connect.NewRequest(r.Msg))
	}, nil)
}

// Resize implements TaskService.
func (s *taskService) Resize(ctx context.Context, r *connect.Request[api.ResizeTaskRequest]) (*connect.Response[api.ResizeTaskResponse], error) {
	return about(ctx, s.d, r.Msg.Guest, r.Msg.Task, func(k *keeper) (*connect.Response[api.ResizeTaskResponse], error) {
		return k.tasks.Resize(ctx, connect.NewRequest(r.Msg))
	}, nil)
}

// Cancel implements TaskService.
func (s *taskService) Cancel(ctx context.Context, r *connect.Request[api.CancelTaskRequest]) (*connect.Response[api.CancelTaskResponse], error) {
	return about(ctx, s.d, r.Msg.Guest, r.Msg.Task,
		func(k *keeper) (*connect.Response[api.CancelTaskResponse], error) {
			return k.tasks.Cancel(ctx, connect.NewRequest(r.Msg))
		},
		func(_ *entry, t *api.Task) (*api.CancelTaskResponse, error) {
			return &api.CancelTaskResponse{Task: t}, nil
		})
}
