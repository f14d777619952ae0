package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
)

// startsCure is what helps where too many starts wait.
const startsCure = "ask again when some of them have started, or raise limits.waiting in policy.yaml"

// Bounds of a start.
const (
	// startBound is how long one may take once it is its turn, its boot and what it is
	// to forget included (guest.BootTimeout, importTime).
	startBound = 5 * time.Minute
	// turnBound is how long it keeps its turn at most: it may wait for what does not
	// end with its context, as a lock or a file system.
	turnBound = startBound + time.Minute
	// lookBound is how long policy may take to decide, which looks at shared folders.
	lookBound = 30 * time.Second
)

// poolCaller is who starts the guests of the pool: in the order of turns it is one
// more client.
var poolCaller = caller{session: "the pool", conn: "the pool"}

// inTurn starts a guest for a request when it is its turn, if the host has the
// memory for it then.
func (s *guestService) inTurn(ctx context.Context, e *entry, fresh bool, notice func(string) error, st *connect.ServerStream[api.StartGuestEvent]) (*api.Guest, error) {
	d, host, came := s.d, s.d.rulesNow().Host, time.Now()
	if err := d.grantable(ctx, e); err != nil {
		return nil, err
	}
	ctx, leave, err := d.startTurn(ctx, callerOf(ctx), host, host.Places(), func(ahead int) error {
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

// startTurn returns when it is a start's turn, with the context in which it is to be
// done.
func (d *Daemon) startTurn(ctx context.Context, who caller, host policy.HostLimits, places int, tell func(ahead int) error) (_ context.Context, leave func(), err error) {
	left, err := d.starts.enter(ctx, who, host.AtOnce(), places, tell)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startBound, fmt.Errorf("it was not ready within %v of its turn", startBound))
	late := time.AfterFunc(turnBound, left)
	return ctx, func() {
		cancel()
		late.Stop()
		left()
	}, nil
}

// grantable refuses the start of a guest with shared folders that would not be
// granted, or whose folders do not answer, before it takes anybody's turn.
func (d *Daemon) grantable(ctx context.Context, e *entry) error {
	info, _, _ := e.get()
	if len(info.Spec.GetShares()) == 0 {
		return nil
	}
	_, err := d.decideSoon(ctx, info.Spec)
	return err
}

// decideSoon is decide, and does not wait for a file system that does not answer.
func (d *Daemon) decideSoon(ctx context.Context, spec *api.GuestSpec) (*decision, error) {
	late := &hypervisor.Error{Op: "look at the guest's shared folders", Err: fmt.Errorf("they do not answer within %v", lookBound),
		Cure: "see whether the network file systems that they are on do"}
	return within(ctx, lookBound, late, func() (*decision, error) { return d.decide(spec) })
}

// within returns what f does, or late after the bound; f goes on then, and what comes
// of it is nobody's.
func within[T any](ctx context.Context, bound time.Duration, late error, f func() (T, error)) (out T, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bound, late)
	defer cancel()
	done := make(chan struct{})
	var it T
	var ferr error
	go func() {
		defer close(done)
		it, ferr = f()
	}()
	select {
	case <-done:
		return it, ferr
	case <-ctx.Done():
		return out, context.Cause(ctx)
	}
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
	ctx, leave, err := d.startTurn(ctx, poolCaller, host, maxGuests, func(int) error { return nil })
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
