package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
)

// follow copies what a keeper says of its guest into the table until the keeper
// is gone, and settles then what it left. It runs once for each keeper.
func (d *Daemon) follow(ctx context.Context, e *entry) {
	_, k, _ := e.get()
	defer k.close()
	dir := filepath.Join(d.guests, e.name)
	killed := false
	for tries := 0; ctx.Err() == nil; tries++ {
		st, err := k.own.Watch(ctx, connect.NewRequest(&api.WatchRequest{}))
		if err == nil {
			for st.Receive() {
				if e.heard(proto.Clone(st.Msg()).(*api.Guest)) {
					d.lookSoon(e)
				}
				tries, killed = 0, false
			}
			err = st.Err()
			st.Close()
		}
		if ctx.Err() != nil {
			return // this daemon ends; the next one adopts
		}
		// A server that ends waits a second for HTTP/2 clients that stay
		// (net/http, goAwayTimeout), so these two do not.
		k.close()
		if out := e.edgeOf(); out != nil {
			out.close()
		}
		if d.settle(ctx, e, dir, killed) || ctx.Err() != nil {
			if !d.isWarm(e) {
				d.refill()
			}
			return
		}
		if tries < 2 {
			continue // it lives: the stream broke, which says nothing of the guest
		}
		d.log.Warn("a keeper does not answer", "guest", e.name, "error", err)
		if err := killKeeper(dir); err != nil {
			d.log.Error("kill keeper", "guest", e.name, "error", err)
		} else {
			killed = true
		}
	}
}

// killKeeper is guest.KillKeeper; where no process is written down there is none,
// since a keeper writes itself down before it has a guest.
func killKeeper(dir string) error {
	if err := guest.KillKeeper(dir); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// settle waits for the keeper's lock, bounded, gives open tasks their ending
// and shows the guest as stopped. It is false if the keeper may still live. killed
// says that its process has ended, whatever becomes of the lock.
func (d *Daemon) settle(ctx context.Context, e *entry, dir string, killed bool) bool {
	lctx, cancel := context.WithTimeout(ctx, guest.StopBound)
	defer cancel()
	measured := e.measure("keeper gone, its guest settled")
	unlock, err := guest.LockWait(lctx, dir)
	if lctx.Err() != nil && err != nil {
		return false
	}
	if err != nil && !killed {
		// It may be ours alone that there is no descriptor for a lock: the keeper has as
		// long as if it held it.
		d.log.Warn("a keeper's lock cannot be looked at", "guest", e.name, "error", err)
		<-lctx.Done()
		return false
	}
	if err != nil {
		err = fmt.Errorf("lock the guest's folder: %w", err)
		unlock = func() {}
	}
	cause := e.why("the guest's keeper was killed")
	if err == nil {
		err = guest.Settle(dir, cause)
	}
	unlock()
	info, hist, lerr := guest.Load(dir)
	if err == nil {
		err = lerr
	}
	if err != nil {
		d.log.Error("settle", "guest", e.name, "error", err)
		info, _, _ = e.get()
		info.State, info.Cause, info.StoppedIdle = api.GuestState_GUEST_STATE_DAMAGED, err.Error(), false
	}
	e.portsClosed(ctx)
	d.removeSockets(e.name)
	d.dropPorts(e.name)
	e.mu.Lock()
	e.info, e.keeper = info, nil
	if e.edge != nil {
		e.edge.close()
	}
	e.edge, e.ports, e.shut = nil, nil, ""
	e.changedLocked()
	e.mu.Unlock()
	d.settled(ctx, info)
	measured()
	d.log.Info("guest ended", "guest", e.name, "cause", info.Cause)
	d.leave(ctx, e, hist != nil && hist.Delivered())
	d.rest.moved()
	return true
}

func (e *entry) why(otherwise string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cause != "" {
		return e.cause
	}
	return otherwise
}

// discard removes a guest without a keeper from the disk and the table.
func (d *Daemon) discard(e *entry) error {
	done, err := e.turn(d.ctx, readers) // whoever looks at its changes does so to the end
	if err != nil {
		return err
	}
	defer done()
	return d.discardMine(e)
}

// discardMine is discard by who has the turn of all readers.
func (d *Daemon) discardMine(e *entry) error {
	d.mu.Lock()
	_, k, _ := e.get()
	mine := d.table[e.name] == e && k == nil
	d.mu.Unlock()
	if !mine { // another guest has the name by now, or this one runs
		return nil
	}
	if err := d.unkept(e); err != nil {
		d.log.Error("remove", "guest", e.name, "error", err)
		return err
	}
	measured := e.measure("guest removed")
	if d.changing(e) && len(d.opts.Review) > 0 { // with its store goes what knows which names of the user's folder are ours
		d.recoverChange(d.ctx, e)
	}
	d.removeSockets(e.name) // of a keeper that was killed before it was ours
	err := d.lastWord(e.name, "the guest was removed", func() error {
		d.keepAudit(e)
		err := guest.Discard(d.guests, e.name)
		if errors.Is(err, guest.ErrLeftOver) {
			d.log.Warn("remove", "guest", e.name, "error", err)
		}
		return err
	})
	if err != nil {
		d.log.Error("remove", "guest", e.name, "error", err)
		return err
	}
	measured()
	d.mu.Lock()
	if d.table[e.name] == e {
		delete(d.table, e.name)
		d.rememberLocked(e)
	}
	d.mu.Unlock()
	d.source.changed(e.name)
	e.settled()
	d.log.Info("removed", "guest", e.name)
	return nil
}

// unkept returns when no keeper has the guest's folder, or why it may have one: a
// guest that was set aside because its state could not be read may run. Nobody but
// this daemon starts another, and not while it removes the guest; so the lock is
// not kept, with which Windows would not let the folder be renamed.
func (d *Daemon) unkept(e *entry) error {
	dir := d.dir(e)
	unlock, free, err := guest.Lock(dir)
	if err == nil && free {
		unlock()
		return nil
	}
	kerr := killKeeper(dir)
	if err != nil && kerr == nil { // there is no lock to be had, and no process
		return nil
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(d.ctx, guest.StopBound)
		defer cancel()
		if unlock, err = guest.LockWait(ctx, dir); err == nil {
			unlock()
			return nil
		}
	}
	return api.NewError(connect.CodeFailedPrecondition, "running", fmt.Sprintf("guest %s is not removed: its keeper still runs (%v)", e.name, errors.Join(kerr, err)),
		"end the process that "+filepath.Join(dir, "keeper.json")+" names, and try again")
}

// end stops a guest and returns when its keeper is gone, within guest.StopBound, or
// what it takes more to go on, to write its last and to import its reviews, and a
// little more. One that boots is stopped when it is up, within guest.BootTimeout, or, if it has no grace, ended
// with its keeper: there is no task in it, and whoever gives its start up waits for
// this with a turn that others wait for.
func (d *Daemon) end(ctx context.Context, e *entry, grace time.Duration) {
	info, k, _ := e.get()
	if k == nil {
		return
	}
	sctx, cancel := context.WithTimeout(ctx, stopBound(info, grace))
	defer cancel()
	stop := func() error {
		_, err := k.own.Stop(sctx, connect.NewRequest(&api.StopGuestRequest{Name: e.name, GraceNanos: int64(grace)}))
		return err
	}
	refused := func(err error) bool { return connect.CodeOf(err) == connect.CodeFailedPrecondition }
	err := stop()
	if refused(err) && info.State == api.GuestState_GUEST_STATE_STARTING {
		if grace <= 0 && guest.KillKeeper(d.dir(e)) == nil {
			return
		}
		// It is asked when it is up: it has time for that, or this is a host where no
		// process is ended by its number.
		bound := guest.StopBound
		if grace > 0 {
			bound = guest.BootTimeout
		}
		bctx, over := context.WithTimeout(ctx, bound)
		defer over()
		var now *keeper
		info, err = e.wait(bctx, func(i *api.Guest, is *keeper) bool {
			now = is
			return is != k || i.State != api.GuestState_GUEST_STATE_STARTING
		})
		if now != k {
			return // its boot failed
		}
		if err == nil {
			sctx, cancel = context.WithTimeout(ctx, stopBound(info, grace))
			defer cancel()
			err = stop()
		}
	}
	if err == nil || refused(err) {
		if _, err = e.wait(sctx, func(_ *api.Guest, now *keeper) bool { return now != k }); err == nil {
			return
		}
	}
	if ctx.Err() != nil {
		return
	}
	if err := guest.KillKeeper(d.dir(e)); err != nil {
		d.log.Error("kill keeper", "guest", e.name, "error", err)
	}
}

// stopBound is how long the stop of a guest takes at most.
func stopBound(info *api.Guest, grace time.Duration) time.Duration {
	bound, spec := guest.StopBound, info.Spec
	if grace <= 0 {
		return bound
	}
	if !spec.GetEphemeral() && info.State != api.GuestState_GUEST_STATE_STARTING { // else it does not stand still
		bound += guest.StopResume
	}
	if inReview(spec) {
		bound += guest.StopImport
	}
	if spec.GetDiskMib() > 0 || len(spec.GetVolumes()) > 0 {
		bound += guest.StopFlush
	}
	return bound
}
