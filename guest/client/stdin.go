package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

const (
	// stdinChunk is how much input goes into one message, in bytes: half of
	// what a keeper queues.
	stdinChunk = 32 << 10
	// beyondOutput is an offset that no spool reaches: the stream that carries
	// input wants no output.
	beyondOutput = 1 << 62
)

// ErrInputLost says that the stream broke after input had been sent, so that
// nobody can say how much of it the task has seen. The task goes on; nothing
// is sent twice.
var ErrInputLost = errors.New("the connection broke while input was on its way: how much of it the task has seen is unknown")

func (p *Process) inputLost(err error) error {
	return fmt.Errorf("task %s in guest %s: %w (%w)", p.ID, p.Guest, ErrInputLost, err)
}

type inputStream = connect.BidiStreamForClient[api.AttachRequest, api.AttachResponse]

// sendStdin copies r to the task and says its end. After a break it goes on
// only where nothing was sent before, or where a person types.
func (p *Process) sendStdin(ctx context.Context, r io.Reader) {
	// The stream stays until ctx ends, when the task is over: the end of a
	// caller's side says that the caller has the result.
	var st *inputStream
	buf := make([]byte, stdinChunk)
	for {
		n, err := r.Read(buf)
		if n > 0 && !p.sendInput(ctx, &st, &api.AttachRequest{Kind: &api.AttachRequest_Stdin{Stdin: buf[:n]}}) {
			return
		}
		if err != nil {
			// A reader that fails looks to the task like one that ends.
			p.sendInput(ctx, &st, &api.AttachRequest{Kind: &api.AttachRequest_StdinClose{StdinClose: &api.StdinClose{}}})
			return
		}
	}
}

// sendInput sends one message, on a new stream where there is none. It returns
// false when no more input is wanted.
func (p *Process) sendInput(ctx context.Context, st **inputStream, m *api.AttachRequest) bool {
	for {
		p.mu.Lock()
		main := p.currentLocked() // input begins, and begins again, after the output's stream
		if main != nil && p.wrote && *st == nil && !p.tty {
			main = nil // what was sent before the break may be lost
		}
		p.mu.Unlock()
		if main == nil || ctx.Err() != nil {
			return false
		}
		var err error
		if *st == nil {
			*st = p.c.tasks.Attach(ctx)
			abortWith(ctx, *st)
			err = (*st).Send(&api.AttachRequest{Kind: &api.AttachRequest_Open{Open: &api.AttachOpen{Guest: p.Guest, Task: p.ID, Offset: beyondOutput, Input: true}}})
		}
		if err == nil {
			p.mu.Lock()
			p.wrote = true
			p.mu.Unlock()
			if err = (*st).Send(m); err == nil {
				return true
			}
		}
		over, err := whyEnded(*st, err)
		*st = nil // it has ended
		switch {
		case over || ctx.Err() != nil || !broken(ctx, err):
			return false // the output's stream says how it ended
		case !p.tty:
			p.cancel(p.inputLost(err))
			return false
		}
		// What was typed is sent again when the output's stream stands again.
		p.mu.Lock()
		for p.stream == main && !p.over {
			p.cond.Wait()
		}
		p.mu.Unlock()
	}
}

// whyEnded returns why an input stream takes no more: the task is over, or an
// error.
func whyEnded(st *inputStream, err error) (over bool, why error) {
	for {
		m, rerr := st.Receive()
		switch {
		case rerr == nil && m.GetEnd() != nil:
			return true, nil
		case rerr == nil:
		case errors.Is(rerr, io.EOF):
			return false, err
		default:
			return false, rerr
		}
	}
}
