package daemon

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/daemon/store"
)

// taskService implements TaskService by handing streams on to keepers. Their
// payloads are not looked into.
type taskService struct{ d *Daemon }

func notRunning(name string) error {
	return api.NewError(connect.CodeFailedPrecondition, "not_running", "guest "+name+" is not running", "carrel start "+name)
}

// Start implements TaskService.
func (s *taskService) Start(ctx context.Context, r *connect.Request[api.StartTaskRequest]) (*connect.Response[api.StartTaskResponse], error) {
	wait := r.Msg.Wait
	if wait { // how to ask is no part of what is asked for
		r = connect.NewRequest(proto.Clone(r.Msg).(*api.StartTaskRequest))
		r.Msg.Wait = false
	}
	key := r.Msg.IdempotencyKey
	var sum [32]byte
	if key != "" {
		if err := checkKey(key); err != nil {
			return nil, err
		}
		bare := proto.Clone(r.Msg).(*api.StartTaskRequest)
		bare.IdempotencyKey = ""
		var err error
		if sum, err = guest.Digest(bare); err != nil {
			return nil, err
		}
		done, err := s.d.turn(ctx, key)
		if err != nil {
			return nil, err
		}
		defer done()
		if t, err := s.d.earlierTask(ctx, r.Msg, sum); err != nil {
			return nil, err
		} else if t != nil {
			return connect.NewResponse(&api.StartTaskResponse{Task: t}), nil
		}
	}
	e, err := s.d.find(r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	out, err := s.d.startTask(ctx, e, r.Msg, wait)
	if err != nil {
		return nil, err
	}
	s.d.source.accepted(out.Msg.Task)
	// The keeper has it on the disk, with its key; the index is not waited for.
	seen := store.Known{Guest: e.name, Tasks: []store.Task{row(out.Msg.Task)}}
	if key != "" {
		seen.Keys = []store.Answered{answered(key, sum[:], len(r.Msg.GetSpec().GetArgv()) > 0, out.Msg.Task)}
	}
	s.d.index.Later(ctx, seen)
	guest.Crash("task: before the daemon's acknowledgement")
	return connect.NewResponse(out.Msg), nil
}

// handOn passes a keeper's error on; one that says only that the connection
// broke becomes what it means.
func (d *Daemon) handOn(e *entry, err error) error {
	var ce *connect.Error
	if errors.As(err, &ce) && len(ce.Details()) > 0 {
		if ce.Code() == connect.CodeUnavailable { // it was about to stop: see again
			return notRunning(e.name)
		}
		return ce
	}
	switch code := connect.CodeOf(err); {
	case code == connect.CodeUnavailable:
		return notRunning(e.name)
	case (code == connect.CodeUnknown || code == connect.CodeCanceled) && !connect.IsWireError(err):
		// Nobody said that: it is connect's word for half an answer, or for a
		// connection that was reset, of a keeper that died within its call.
		return notRunning(e.name)
	}
	return err
}

// List implements TaskService.
func (s *taskService) List(ctx context.Context, r *connect.Request[api.ListTasksRequest]) (*connect.Response[api.ListTasksResponse], error) {
	if r.Msg.Guest == "" {
		ts, err := s.d.allTasks(ctx)
		if err != nil {
			return nil, err
		}
		return connect.NewResponse(&api.ListTasksResponse{Tasks: ts}), nil
	}
	e, err := s.d.find(r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	ts, err := s.d.tasks(ctx, e)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.ListTasksResponse{Tasks: ts}), nil
}

// tasks asks the keeper for all its tasks; without one the disk has them.
func (d *Daemon) tasks(ctx context.Context, e *entry) ([]*api.Task, error) {
	for {
		info, k, _ := e.get()
		if k == nil {
			return info.Tasks, nil
		}
		r, err := k.tasks.List(ctx, connect.NewRequest(&api.ListTasksRequest{Guest: e.name}))
		if err == nil {
			return r.Msg.Tasks, nil
		}
		// It goes; what it left is known when it is gone.
		if _, werr := e.wait(ctx, func(_ *api.Guest, now *keeper) bool { return now != k }); werr != nil {
			return nil, err
		}
	}
}

// Attach implements TaskService. While the keeper lives it has the word; when
// it is gone the rest comes from the disk, so that every task has its ending.
func (s *taskService) Attach(ctx context.Context, st *connect.BidiStream[api.AttachRequest, api.AttachResponse]) error {
	first, err := st.Receive()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil {
		return api.NewError(connect.CodeInvalidArgument, "bad_request", "the first message of an attach must be open", "")
	}
	e, err := s.d.find(open.Guest)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	input := make(chan *api.AttachRequest) // closed when the caller ends its side
	go func() {
		for {
			m, err := st.Receive()
			switch {
			case errors.Is(err, io.EOF): // the caller has ended its side, which says that it has the result
				close(input)
				return
			case err != nil: // the caller is gone, which says nothing
				cancel()
				return
			}
			select {
			case input <- m:
			case <-ctx.Done():
				return
			}
		}
	}()

	if _, k, _ := e.get(); k != nil {
		over, err := relay(ctx, k, open, input, st)
		if over || ctx.Err() != nil {
			return err
		}
		var ce *connect.Error
		if errors.As(err, &ce) && len(ce.Details()) > 0 {
			return ce
		}
		// The keeper is gone, or goes.
		if _, err := e.wait(ctx, func(_ *api.Guest, now *keeper) bool { return now != k }); err != nil {
			return err
		}
	}
	info, _, _ := e.get()
	var t *api.Task
	for _, x := range info.Tasks {
		if x.Id == open.Task || open.Task == "" {
			t = x
		}
	}
	if t == nil {
		return guest.NoTask(e.name, open.Task)
	}
	if err := guest.Replay(ctx, filepath.Join(s.d.guests, e.name), open, t, st.Send); err != nil {
		return err
	}
	for { // the caller acknowledges the end by ending its side
		select {
		case _, ok := <-input:
			if !ok {
				s.d.leave(s.d.ctx, e, true)
				return nil
			}
		case <-time.After(expiry):
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// takesPieces says whether a stream of this type has the codec that knows pieces. A
// type is written in more than one way: what is not known gets messages, as any codec
// takes them.
func takesPieces(contentType string) bool {
	switch contentType {
	case "application/connect+proto", "application/grpc", "application/grpc+proto", "application/grpc-web", "application/grpc-web+proto":
		return true
	}
	return false
}

// relay hands one attach on to a keeper; over says that the task's end was
// handed on. open.Offset follows what was, so that a replay goes on there.
func relay(ctx context.Context, k *keeper, open *api.AttachOpen, input <-chan *api.AttachRequest, st *connect.BidiStream[api.AttachRequest, api.AttachResponse]) (over bool, err error) {
	up := k.tasks.Attach(ctx)
	defer up.CloseResponse()
	// The HTTP/2 transport looks at a request's context only while it writes,
	// and an idle stream writes nothing.
	defer context.AfterFunc(ctx, func() { up.CloseResponse() })()
	if err := up.Send(&api.AttachRequest{Kind: &api.AttachRequest_Open{Open: open}}); err != nil {
		return false, err
	}
	uctx, cancel := context.WithCancel(ctx)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for {
			select {
			case m, ok := <-input:
				if !ok {
					up.CloseRequest()
					return
				}
				if up.Send(m) != nil {
					return
				}
			case <-uctx.Done():
				return
			}
		}
	}()
	defer func() { cancel(); <-sent }()
	from, err := up.Conn()
	if err != nil {
		return false, err
	}
	send := func(p *api.Piece) error { return st.Send(p.Message()) }
	if to := st.Conn(); takesPieces(to.RequestHeader().Get("Content-Type")) {
		send = func(p *api.Piece) error {
			if p.Other == nil {
				return to.Send(p) // of the form that it would have again
			}
			return st.Send(p.Other)
		}
	}
	for m := new(api.Piece); ; {
		err := from.Receive(m)
		if err != nil {
			if over && errors.Is(err, io.EOF) {
				err = nil
			}
			return over, err
		}
		if err := send(m); err != nil {
			return true, err // the caller is gone
		}
		open.Offset = m.Next
		over = over || m.Other.GetEnd() != nil
	}
}
