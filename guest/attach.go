package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// Attach implements TaskService.
func (k *Keeper) Attach(ctx context.Context, st *connect.BidiStream[api.AttachRequest, api.AttachResponse]) error {
	first, err := st.Receive()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil {
		return api.NewError(connect.CodeInvalidArgument, "bad_request", "the first message of an attach must be open", "")
	}
	t, isMain := k.attached(open.Task)
	if t == nil {
		return NoTask(k.info.Name, open.Task)
	}
	acked := false
	if isMain {
		defer func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.callers--
			switch {
			case acked:
				k.done = true
				k.finish()
			case k.callers == 0:
				k.away.Reset(k.absence())
			}
		}()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	closed := make(chan struct{}) // the caller has ended its side
	go func() {
		if k.receive(ctx, st, t, open.Input) {
			close(closed)
		} else {
			cancel() // the caller is gone, which says nothing
		}
	}()
	var r *spoolReader
	if t.spool != nil {
		r = t.spool.tryReader(open.Offset)
	}
	if r == nil { // it has ended: its output is on the disk
		sp, err := openSpool(t.dir)
		if err != nil {
			return api.NewError(connect.CodeDataLoss, "damaged", err.Error(), "")
		}
		defer sp.close()
		r = sp.reader(open.Offset)
	}
	defer r.close()
	if err := stream(ctx, r, open, t, st.Send); err != nil {
		return err
	}
	// The caller acknowledges the end by ending its own side.
	select {
	case <-closed:
		acked = ended(t.get())
	case <-time.After(k.absence()):
	case <-ctx.Done():
	}
	return nil
}

// attached finds the task that a caller attaches to, the last one if it names none.
// If isMain, an ephemeral guest ends with it, and one caller more is counted.
func (k *Keeper) attached(id string) (t *task, isMain bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t = k.tasks[id]
	if t == nil && id == "" && len(k.order) > 0 {
		t = k.tasks[k.order[len(k.order)-1]]
	}
	if isMain = t != nil && t.id == k.main && k.req.Spec.Ephemeral; isMain {
		k.callers++
		k.away.Stop()
	}
	return t, isMain
}

// NoTask is the answer to a task that a guest does not have.
func NoTask(guest, id string) error {
	if id == "" {
		return api.NewError(connect.CodeNotFound, "not_found", "guest "+guest+" has had no task", "")
	}
	return api.NewError(connect.CodeNotFound, "not_found", fmt.Sprintf("guest %s has no task %q", guest, id), "carrel inspect "+guest)
}

// receive takes the caller's input until it ends its side; clean says that it
// did so itself, rather than by going away.
func (k *Keeper) receive(ctx context.Context, st *connect.BidiStream[api.AttachRequest, api.AttachResponse], t *task, input bool) (clean bool) {
	for {
		m, err := st.Receive()
		if err != nil {
			return errors.Is(err, io.EOF)
		}
		if !input || t.in == nil {
			continue
		}
		switch m := m.Kind.(type) {
		case *api.AttachRequest_Stdin:
			t.in.write(ctx, m.Stdin) // fails only when the task is over
		case *api.AttachRequest_StdinClose:
			t.in.closeWrite()
		case *api.AttachRequest_Signal:
			if m.Signal > 0 && m.Signal <= 64 {
				t.in.signal(m.Signal)
			}
		case *api.AttachRequest_Resize:
			t.in.resize(m.Resize.Rows, m.Resize.Cols)
		}
	}
}

// attachBite is how much output one message of an attach has at most, in bytes, if the
// task did not write more at once: each wakes three processes up.
const attachBite = 256 << 10

// stream sends a task's spool from an offset to its end, and then the ending.
func stream(ctx context.Context, r *spoolReader, open *api.AttachOpen, t *task, send func(*api.AttachResponse) error) error {
	if err := send(&api.AttachResponse{Kind: &api.AttachResponse_Task{Task: t.get()}, Next: open.Offset}); err != nil {
		return err
	}
	r.bite = attachBite
	for {
		p, err := r.next(ctx, !open.NoFollow)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := send(p.message()); err != nil {
			return err
		}
	}
	if !open.NoFollow {
		select {
		case <-t.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return send(&api.AttachResponse{Kind: &api.AttachResponse_End{End: t.get()}, Next: r.at})
}

// Replay streams a task of a guest without a keeper from its folder.
func Replay(ctx context.Context, dir string, open *api.AttachOpen, t *api.Task, send func(*api.AttachResponse) error) error {
	sp, err := openSpool(filepath.Join(dir, dirTasks, t.Id))
	if errors.Is(err, os.ErrNotExist) {
		return api.NewError(connect.CodeNotFound, "not_found", "guest "+t.Guest+" was removed", "")
	}
	if err != nil {
		return api.NewError(connect.CodeDataLoss, "damaged", err.Error(), "")
	}
	defer sp.close()
	r := sp.reader(open.Offset)
	defer r.close()
	return stream(ctx, r, open, endedTask(t, sp.dir), send)
}
