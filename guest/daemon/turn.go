package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// startsCure is what helps where too many starts wait.
const startsCure = "ask again when some of them have started, or raise limits.waiting in policy.yaml"

// poolCaller is who starts the guests of the pool: in the order of turns it is one
// more client.
var poolCaller = caller{session: "the pool", conn: "the pool"}

// inTurn starts a guest for a request when it is its turn, if the host has the
// memory for it then.
func (s *guestService) inTurn(ctx context.Context, e *entry, fresh bool, notice func(string) error, st *connect.ServerStream[api.StartGuestEvent]) (*api.Guest, error) {
	d, host, came := s.d, s.d.rulesNow().Host, time.Now()
	leave, err := d.starts.enter(ctx, callerOf(ctx), host.AtOnce(), host.Places(), func(ahead int) error {
		e.waited(came)
		return st.Send(&api.StartGuestEvent{Kind: &api.StartGuestEvent_Progress{Progress: waitingFor(ahead)}})
	})
	if err != nil {
		return nil, queueError("start guest "+e.name, err, startsCure)
	}
	defer leave()
	released, err := d.admitFor(ctx, e, host)
	if err != nil {
		return nil, err
	}
	defer released()
	return d.start(ctx, e, fresh, notice)
}

// waited notes for the trace since when the guest waits for its turn.
func (e *entry) waited(since time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queued = since
}

// warmStart is the start of a guest of the pool. It waits for its turn and is
// refused like any other.
func (d *Daemon) warmStart(ctx context.Context, e *entry) error {
	host := d.rulesNow().Host
	leave, err := d.starts.enter(ctx, poolCaller, host.AtOnce(), maxGuests, func(int) error { return nil })
	if err != nil {
		return err
	}
	defer leave()
	released, err := d.admit(e, host)
	if err != nil {
		return err
	}
	defer released()
	_, err = d.start(ctx, e, true, func(string) error { return nil })
	return err
}

// mayWait refuses a start at once that would find no place to wait, before
// anything is done for it.
func (d *Daemon) mayWait(ctx context.Context) error {
	host := d.rulesNow().Host
	if err := d.starts.full(callerOf(ctx), host.AtOnce(), host.Places()); err != nil {
		return queueError("start a guest", err, startsCure)
	}
	return nil
}

func waitingFor(ahead int) *api.Progress {
	line := fmt.Sprintf("for %d others", ahead)
	if ahead == 1 {
		line = "for 1 other"
	}
	return &api.Progress{Stage: "waiting", Line: line, Ahead: int64(ahead)}
}

// queueError is a queue's error in the API's words.
func queueError(what string, err error, cure string) error {
	var full *fullError
	switch {
	case errors.As(err, &full):
		return api.NewRetryError(connect.CodeResourceExhausted, "queue_full", fmt.Sprintf("%s: %d wait already, %d of them of this session", what, full.waiting, full.mine), cure, full.retry)
	case errors.Is(err, errClosing):
		return api.NewError(connect.CodeUnavailable, "closing", what+": "+err.Error(), "try again")
	}
	return err
}
