package daemon

import (
	"context"
	"errors"
	"net"
	"os"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
)

// A guest from which nobody wants anything is paused, and then stopped, by its
// keeper, which alone knows that and outlives this daemon. One that is paused is
// let go on by its keeper, too. One that was stopped is started again here:
//
//	ready ── its keeper: idle ──> stopping ──> stopped, stopped_idle
//	  ↑                                          │        └─ carrel stop ──> stopped
//	  └───────────── up, carrel start ───────────┘

// up returns a guest that somebody needs, and its keeper. One that was stopped for
// idleness, or is just being, is started again; several who need it are one start.
// One that is being started by anybody is waited for to the end of that: it is ready
// before it has forgotten what was applied or discarded while it did not run
// (replayDrops), and what a task changed in between would be thrown away with it.
func (d *Daemon) up(ctx context.Context, name string) (*entry, *keeper, error) {
	for {
		e, err := d.find(name)
		if err != nil {
			return nil, nil, err
		}
		info, k, _ := e.get()
		switch {
		case k != nil && info.StoppedIdle && info.State == api.GuestState_GUEST_STATE_STOPPING:
			if _, err := e.wait(ctx, func(_ *api.Guest, now *keeper) bool { return now != k }); err != nil {
				return nil, nil, err
			}
		case k != nil && (info.State == api.GuestState_GUEST_STATE_STARTING || e.starts()):
			_, err := e.wait(ctx, func(i *api.Guest, now *keeper) bool {
				return now != k || i.State != api.GuestState_GUEST_STATE_STARTING && !e.starts()
			})
			if err != nil {
				return nil, nil, err
			}
		case k != nil:
			return e, k, nil
		case !info.StoppedIdle:
			return nil, nil, notRunning(e.name)
		default:
			if err := d.startAgain(ctx, e); err != nil {
				return nil, nil, err
			}
		}
	}
}

// startAgain returns when a guest that was stopped for idleness is up. The start
// goes on when its caller leaves, since others may wait for it.
func (d *Daemon) startAgain(ctx context.Context, e *entry) error {
	who := callerOf(ctx) // who comes first waits for all
	done := d.waking.DoChan(e.name, func() (any, error) {
		end := make(chan error, 1)
		d.mu.Lock() // whoever waits for what is owned has set closing before
		if d.closing {
			d.mu.Unlock()
			return nil, queueError("start guest "+e.name, errClosing, "")
		}
		d.owned.Go(func() { end <- d.restart(d.ctx, e, who) })
		d.mu.Unlock()
		return nil, <-end
	})
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errStays is why a start for whoever needs the guest ends: its user stops it.
var errStays = errors.New("the guest was stopped")

// restart starts a guest that was stopped for idleness, with the same request, on
// which policy decides again. It waits for its turn and is refused like any other
// start.
func (d *Daemon) restart(ctx context.Context, e *entry, who caller) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if e.takeTo("started", cancel) != nil { // somebody starts it, or removes it
		_, err := e.wait(ctx, func(i *api.Guest, k *keeper) bool { return k != nil || !i.StoppedIdle || !e.isBusy() })
		return err
	}
	defer e.release()
	d.mu.Lock()
	mine := d.table[e.name] == e && !d.closing
	d.mu.Unlock()
	if info, k, _ := e.get(); !mine || k != nil || !info.StoppedIdle {
		if !mine {
			return notRunning(e.name)
		}
		return nil
	}
	d.log.Info("started again, since somebody needs it", "guest", e.name)
	err := d.wake(ctx, e, who)
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), errStays):
		return notRunning(e.name)
	}
	return refusal(err)
}

func (d *Daemon) wake(ctx context.Context, e *entry, who caller) error {
	if err := d.grantable(ctx, e); err != nil {
		return err
	}
	host := d.rulesNow().Host
	ctx, leave, err := d.startTurn(ctx, who, host, host.Places(), func(int) error { return nil })
	if err != nil {
		return queueError("start guest "+e.name, err, startsCure)
	}
	defer leave()
	released, err := d.admitFor(ctx, e, host)
	if err != nil {
		return err
	}
	defer released()
	_, err = d.start(ctx, e, false, func(said string) error {
		d.log.Info("started again", "guest", e.name, "notice", said)
		return nil
	})
	return err
}

// wakes returns what ends the guest's start for whoever needs it; nil: there is none.
func (e *entry) wakes() context.CancelCauseFunc {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.waking
}

// needs makes a request of the keeper of a guest that somebody needs, once more if the
// guest was just about to stop.
func needs[A any](ctx context.Context, d *Daemon, name string, make func(*keeper) (A, error)) (none A, err error) {
	for {
		e, k, err := d.up(ctx, name)
		if err != nil {
			return none, err
		}
		out, err := make(k)
		if err == nil {
			return out, nil
		}
		if !d.again(ctx, e, k, err) {
			return none, d.handOn(e, err)
		}
	}
}

// again says whether a request that a keeper did not take is to be made again: its
// guest was just being stopped for idleness, and has stopped when this returns.
func (d *Daemon) again(ctx context.Context, e *entry, k *keeper, err error) bool {
	var ce *connect.Error
	var dial *net.OpError
	var now *keeper
	gone := func(_ *api.Guest, k2 *keeper) bool { now = k2; return k2 != k }
	switch {
	case ctx.Err() != nil:
		return false
	case errors.As(err, &ce) && ce.Code() == connect.CodeFailedPrecondition && wordOf(err) == "not_running": // it stops, or has, for some reason
		info, werr := e.wait(ctx, func(i *api.Guest, k2 *keeper) bool {
			return gone(i, k2) || i.State == api.GuestState_GUEST_STATE_STOPPING
		})
		if werr != nil || now == k && !info.StoppedIdle {
			return false
		}
	case errors.As(err, &ce) && ce.Code() == connect.CodeUnavailable && len(ce.Details()) > 0: // guest.Keeper's word for it
	case errors.As(err, &dial) && dial.Op == "dial", errors.Is(err, os.ErrNotExist): // it has taken nothing
	default:
		return false
	}
	info, werr := e.wait(ctx, gone)
	return werr == nil && (info.StoppedIdle || now != nil) // or it has been started again already
}

// staysStopped has a guest that was stopped for idleness be one that its user
// stopped. A start for whoever needs it is given up for that.
func (d *Daemon) staysStopped(ctx context.Context, e *entry) error {
	for {
		if giveUp := e.wakes(); giveUp != nil {
			giveUp(errStays)
		}
		if _, err := e.wait(ctx, func(*api.Guest, *keeper) bool { return e.wakes() == nil }); err != nil {
			return err
		}
		err := e.take("stopped")
		if err == nil {
			break
		}
		if e.wakes() == nil {
			return err
		}
	}
	defer e.release()
	info, k, _ := e.get()
	if k != nil || !info.StoppedIdle {
		return nil
	}
	if err := guest.StayStopped(d.dir(e)); err != nil {
		return api.NewError(connect.CodeInternal, "disk", "guest "+e.name+" is stopped, and would be started again by whoever needs it: "+err.Error(), "make room on the disk that holds "+d.guests)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.info.StoppedIdle = false
	e.changedLocked()
	return nil
}
