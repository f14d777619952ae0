package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// Single calls about a task, for those who do not hold a stream open.

// Bounds of one call.
const (
	maxRead  = 1 << 20 // bytes of output
	maxWrite = wire.StdinWindow
	// cancelGrace is how long a task has between SIGTERM and SIGKILL if its
	// caller does not say, and maxGrace what a caller may say.
	cancelGrace = 5 * time.Second
	maxGrace    = 60 * time.Second
	// killGrace is how long SIGKILL may take before the task's stream is closed,
	// which makes the agent end all that is in its cgroup. What is killed on a busy
	// machine, or in an emulated one, takes seconds to go, and ended by the signal.
	killGrace = 10 * time.Second
)

// called finds the task that a call is about. An ephemeral guest stays while its
// task is called about, as it does for callers who hold a stream.
func (k *Keeper) called(id string) (t *task, done func(), err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if t = k.tasks[id]; t == nil {
		if id == "" {
			return nil, nil, api.NewError(connect.CodeInvalidArgument, "bad_request", "the task is missing", "")
		}
		return nil, nil, NoTask(k.info.Name, id)
	}
	if id != k.main || !k.req.Spec.Ephemeral {
		return t, func() {}, nil
	}
	k.callers++
	k.away.Stop()
	return t, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.callers--; k.callers == 0 && !k.done {
			k.away.Reset(k.absence())
		}
	}, nil
}

// patience is ctx bounded by what a caller is willing to wait: not at all if it
// is negative, as long as the call lasts if it is 0.
func patience(ctx context.Context, nanos int64) (context.Context, context.CancelFunc) {
	switch {
	case nanos < 0:
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return ctx, cancel
	case nanos == 0:
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, time.Duration(nanos))
}

// Wait implements TaskService.
func (k *Keeper) Wait(ctx context.Context, r *connect.Request[api.WaitTaskRequest]) (*connect.Response[api.WaitTaskResponse], error) {
	t, done, err := k.called(r.Msg.Task)
	if err != nil {
		return nil, err
	}
	defer done()
	wctx, cancel := patience(ctx, r.Msg.TimeoutNanos)
	defer cancel()
	select {
	case <-t.done:
	case <-wctx.Done():
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&api.WaitTaskResponse{Task: t.get()}), nil
}

// Read implements TaskService.
func (k *Keeper) Read(ctx context.Context, r *connect.Request[api.ReadTaskRequest]) (*connect.Response[api.ReadTaskResponse], error) {
	t, done, err := k.called(r.Msg.Task)
	if err != nil {
		return nil, err
	}
	defer done()
	var sr *spoolReader
	if t.spool != nil {
		sr = t.spool.tryReader(r.Msg.Offset)
	}
	if sr == nil { // it has ended: its output is on the disk
		sp, err := openSpool(t.dir)
		if err != nil {
			return nil, api.NewError(connect.CodeDataLoss, "damaged", err.Error(), "")
		}
		defer sp.close()
		sr = sp.reader(r.Msg.Offset)
	}
	defer sr.close()
	out, err := page(ctx, sr, r.Msg, t)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// ReadSpool is Read for a task of a guest without a keeper, from its folder.
func ReadSpool(ctx context.Context, dir string, r *api.ReadTaskRequest, t *api.Task) (*api.ReadTaskResponse, error) {
	sp, err := openSpool(filepath.Join(dir, dirTasks, t.Id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, api.NewError(connect.CodeNotFound, "not_found", "guest "+t.Guest+" was removed", "")
	}
	if err != nil {
		return nil, api.NewError(connect.CodeDataLoss, "damaged", err.Error(), "")
	}
	defer sp.close()
	sr := sp.reader(r.Offset)
	defer sr.close()
	return page(ctx, sr, r, endedTask(t, sp.dir))
}

// page reads what fits into one answer. It waits for the first piece alone.
func page(ctx context.Context, sr *spoolReader, r *api.ReadTaskRequest, t *task) (*api.ReadTaskResponse, error) {
	most := int64(maxRead)
	if r.MaxBytes > 0 {
		most = min(most, r.MaxBytes)
	}
	wctx, cancel := patience(ctx, r.TimeoutNanos)
	defer cancel()
	out := &api.ReadTaskResponse{Next: sr.at}
	for total := int64(0); ; {
		over := t.over() // before the look: what comes after it is not missed
		p, err := sr.next(ctx, false)
		if errors.Is(err, io.EOF) && len(out.Pieces) == 0 && !over {
			switch p, err = sr.next(wctx, true); {
			case errors.Is(err, io.EOF): // the output is whole; the end is a moment off
				select {
				case <-t.done:
					out.End = t.get()
				case <-wctx.Done():
				}
				return out, ctx.Err()
			case err != nil && wctx.Err() != nil:
				return out, ctx.Err()
			}
		}
		if errors.Is(err, io.EOF) {
			if over {
				out.End = t.get()
			}
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if total += int64(len(p.data)); total > most && len(out.Pieces) > 0 {
			return out, nil
		}
		out.Pieces = append(out.Pieces, p.message())
		out.Next = p.next
	}
}

// message is the form in which a piece of output is sent.
func (p *piece) message() *api.AttachResponse {
	m := &api.AttachResponse{Next: p.next}
	switch {
	case p.dropped > 0:
		m.Kind = &api.AttachResponse_Dropped{Dropped: p.dropped}
	case p.stream == streamNote:
		m.Kind = &api.AttachResponse_Notice{Notice: strings.ToValidUTF8(string(p.data), "?")}
	case p.stream == streamErr:
		m.Kind = &api.AttachResponse_Stderr{Stderr: p.data}
	default:
		m.Kind = &api.AttachResponse_Stdout{Stdout: p.data}
	}
	return m
}

// Write implements TaskService.
func (k *Keeper) Write(ctx context.Context, r *connect.Request[api.WriteTaskRequest]) (*connect.Response[api.WriteTaskResponse], error) {
	t, done, err := k.called(r.Msg.Task)
	if err != nil {
		return nil, err
	}
	defer done()
	switch {
	case len(r.Msg.Data) > maxWrite:
		return nil, api.NewError(connect.CodeInvalidArgument, "too_large", fmt.Sprintf("%d bytes of input; %d are possible in one call", len(r.Msg.Data), maxWrite), "write them in parts")
	case t.over() || t.in == nil:
		return nil, taskEnded(r.Msg.Task)
	case !t.get().GetSpec().GetStdin():
		return nil, api.NewError(connect.CodeFailedPrecondition, "no_input", "task "+r.Msg.Task+" was started without an input", "set stdin when it is started")
	}
	n, err := t.in.writeAt(ctx, r.Msg.Offset, r.Msg.Data)
	var gap *offsetError
	switch {
	case errors.As(err, &gap):
		return nil, api.NewError(connect.CodeOutOfRange, "bad_offset", err.Error(), "go on at the offset that the last answer told")
	case errors.Is(err, os.ErrClosed) && t.over():
		return nil, taskEnded(r.Msg.Task)
	case errors.Is(err, os.ErrClosed):
		return nil, api.NewError(connect.CodeFailedPrecondition, "no_input", "the input of task "+r.Msg.Task+" has ended", "")
	case err != nil:
		return nil, err
	}
	if r.Msg.Close {
		t.in.closeWrite()
	}
	return connect.NewResponse(&api.WriteTaskResponse{Written: n}), nil
}

func taskEnded(id string) error {
	return api.NewError(connect.CodeFailedPrecondition, "task_ended", fmt.Sprintf("task %.64q has ended", id), "")
}

// Signal implements TaskService.
func (k *Keeper) Signal(_ context.Context, r *connect.Request[api.SignalTaskRequest]) (*connect.Response[api.SignalTaskResponse], error) {
	t, done, err := k.called(r.Msg.Task)
	if err != nil {
		return nil, err
	}
	defer done()
	switch {
	case r.Msg.Signal < 1 || r.Msg.Signal > 64:
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_number", fmt.Sprintf("%d is no signal of Linux: 1 to 64", r.Msg.Signal), "")
	case t.over() || t.in == nil:
		return nil, taskEnded(r.Msg.Task)
	}
	t.in.signal(r.Msg.Signal)
	return connect.NewResponse(&api.SignalTaskResponse{}), nil
}

// Resize implements TaskService.
func (k *Keeper) Resize(_ context.Context, r *connect.Request[api.ResizeTaskRequest]) (*connect.Response[api.ResizeTaskResponse], error) {
	t, done, err := k.called(r.Msg.Task)
	if err != nil {
		return nil, err
	}
	defer done()
	switch {
	case r.Msg.Rows < 1 || r.Msg.Cols < 1 || r.Msg.Rows > 1<<15-1 || r.Msg.Cols > 1<<15-1:
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_number", "a terminal has 1 to 32767 rows and columns", "")
	case t.over() || t.in == nil:
		return nil, taskEnded(r.Msg.Task)
	}
	t.in.resize(r.Msg.Rows, r.Msg.Cols)
	return connect.NewResponse(&api.ResizeTaskResponse{}), nil
}

// Cancel implements TaskService.
//
//  1. SIGTERM goes to the task's process group
//  2. after the grace, SIGKILL
//  3. if that does not end it, its stream is closed: the agent ends the cgroup
//  4. this answers when the task has its ending
func (k *Keeper) Cancel(ctx context.Context, r *connect.Request[api.CancelTaskRequest]) (*connect.Response[api.CancelTaskResponse], error) {
	t, done, err := k.called(r.Msg.Task)
	if err != nil {
		return nil, err
	}
	defer done()
	grace := cancelGrace
	if n := r.Msg.GraceNanos; n != 0 {
		grace = min(time.Duration(max(n, 0)), maxGrace)
	}
	k.mu.Lock()
	// What was begun goes on when the caller leaves. A guest that is ending ends
	// its tasks itself.
	if !t.over() && t.in != nil && k.info.State == api.GuestState_GUEST_STATE_READY {
		k.running.Go(func() { t.cancel(grace) })
	}
	k.mu.Unlock()
	select {
	case <-t.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return connect.NewResponse(&api.CancelTaskResponse{Task: t.get()}), nil
}

// cancel ends a task, by signals as long as they do.
func (t *task) cancel(grace time.Duration) {
	if grace > 0 {
		t.in.signal(int32(syscall.SIGTERM))
		if within(grace, t.ended) {
			return
		}
	}
	t.in.signal(int32(syscall.SIGKILL))
	if !within(killGrace, t.ended) {
		t.stop()
	}
}

// within says whether done is closed within d.
func within(d time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
