package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/daemon/store"
	"github.com/carrel-vm/carrel/guest/policy"
)

// claim makes a guest of the pool that of a request:
//
//  1. one that is warm, or comes up, is taken; no other request gets it
//  2. policy decides on the request, as for any start
//  3. what cannot change in a guest that runs must be what was granted
//  4. its keeper decides again and tells its agent; its shares are attached, its
//     egress process gets the rules and the secrets
//  5. it is written down that the guest is the request's
//
// Up to 3 nothing has happened, and the guest stays in the pool. A fault in 4 or
// 5, or the end of this daemon there, is the guest's end: what has seen a part of
// one grant is nobody else's. Without a guest the request starts a cold one, and
// cold says why, if there is a pool.
func (d *Daemon) claim(ctx context.Context, spec *api.GuestSpec, by guest.Making, notice func(string) error) (info *api.Guest, cold string, err error) {
	want, err := d.wanted()
	if err != nil || want.Size == 0 {
		return nil, "", nil // a file that cannot be read is refused where it counts
	}
	if spec.Name != "" {
		return nil, "a name of its own", nil
	}
	e := d.takeWarm(want)
	if e == nil {
		return nil, "no guest is warm", nil
	}
	c, cold, err := d.fitting(ctx, e, spec)
	if c == nil {
		d.giveBack(e)
		return nil, cold, err
	}
	e.take("started") // nobody else does anything with it
	trace := e.begins()
	e.mu.Lock()
	e.since = time.Now().UnixNano()
	e.mu.Unlock()
	claimed := trace.Begin("claimed from the pool")
	info, err = d.give(ctx, e, c, by)
	if err != nil {
		d.log.Warn("a claim failed", "guest", e.name, "error", err)
		d.owned.Go(func() {
			d.giveUp(d.ctx, e)
			e.release()
		})
		return nil, "the claim failed", ctx.Err()
	}
	claimed()
	defer d.refill()
	defer e.release()
	if err := c.x.announce(notice); err != nil {
		return nil, "", err
	}
	if info.Spec.DiskMib == 0 {
		if err := d.startsEmpty(ctx, e, true, info.Spec, notice); err != nil {
			return nil, "", err
		}
	}
	d.saySlow(info, notice)
	return info, "", nil
}

// takeWarm takes a guest out of the pool: one that is ready, if there is one.
func (d *Daemon) takeWarm(want policy.Pool) (found *entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return nil
	}
	for _, e := range d.table {
		if w := e.warm; w == nil || w.taken || !like(w.pool, want) {
			continue
		}
		select {
		case <-e.warm.made:
			e.warm.taken = true
			return e
		default:
			found = e
		}
	}
	if found != nil {
		found.warm.taken = true
	}
	return found
}

// giveBack puts a guest back that a claim has done nothing to.
func (d *Daemon) giveBack(e *entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-e.warm.made:
		if e.warm.err != nil {
			return // it is gone
		}
	default:
	}
	if d.closing { // the pool was emptied meanwhile, and did not see it
		d.owned.Go(func() { d.giveUp(d.ctx, e) })
		return
	}
	e.warm.taken = false
}

// claiming is what a claim has decided, and changes nothing.
type claiming struct {
	x    *decision
	spec *api.GuestSpec // as the guest's folder keeps it
	conf *api.ConfigureEdgeRequest
}

// fitting decides on a request for a guest of the pool, and waits until that is
// up. If it is nil cold says why the guest is not for the request.
func (d *Daemon) fitting(ctx context.Context, e *entry, asked *api.GuestSpec) (c *claiming, cold string, err error) {
	spec := proto.Clone(asked).(*api.GuestSpec)
	spec.Name, spec.Image = e.name, d.resolved(asked.Image)
	if spec.Image == "" {
		return nil, "its image is not here", nil
	}
	originate(spec)
	x, err := d.decide(spec)
	if err != nil {
		return nil, "not granted", nil // a cold start has the words for it
	}
	granted := x.grant.Spec()
	if len(granted.Shares) > 0 && len(d.opts.Share) == 0 {
		return nil, "no live shares here", nil
	}
	select {
	case <-e.warm.made:
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
	if e.warm.err != nil {
		return nil, "the warm guest failed", nil
	}
	is, k, _ := e.get()
	if k == nil || is.State != api.GuestState_GUEST_STATE_READY {
		return nil, "the warm guest ended", nil
	}
	if why := guest.Fixed(is.Spec, granted); why != "" {
		return nil, why, nil
	}
	if !slices.Equal(e.warm.walls, x.grant.Boundaries()) {
		return nil, "another boundary", nil
	}
	if err := d.room("start guest "+e.name, d.guests, x.rules); err != nil {
		return nil, "no room", nil
	}
	parts, release, err := d.opts.Parts(ctx, spec.Image)
	if err != nil {
		return nil, "its image is damaged", ctx.Err()
	}
	defer release()
	if filesOf(parts) != e.warm.parts {
		return nil, "the image was made anew", nil
	}
	kept := proto.Clone(granted).(*api.GuestSpec) // without what repositories ask for, which may change
	kept.Egress = spec.Egress
	conf, err := d.configuration(ctx, x, d.dir(e), false)
	if err != nil {
		return nil, "a secret cannot be had", ctx.Err()
	}
	return &claiming{x: x, spec: kept, conf: conf}, "", nil
}

// give gives a guest of the pool all that was granted.
func (d *Daemon) give(ctx context.Context, e *entry, c *claiming, by guest.Making) (*api.Guest, error) {
	e.rules.Lock() // what changes meanwhile counts afterwards
	defer e.rules.Unlock()
	_, k, _ := e.get()
	if k == nil {
		return nil, errors.New("it has ended")
	}
	rules, err := json.Marshal(c.x.rules)
	if err != nil {
		return nil, err
	}
	granted := c.x.grant.Spec()
	guest.Crash("claim: before the keeper hears of it")
	_, err = k.own.ClaimGuest(ctx, connect.NewRequest(&api.ClaimGuestRequest{Spec: granted, Rules: rules, Env: placeholders(c.conf.Secrets)}))
	if err != nil {
		return nil, d.handOn(e, err)
	}
	guest.Crash("claim: the keeper has heard of it")
	if err := makeStores(d.dir(e), c.x.grant); err != nil {
		return nil, err
	}
	var all sync.WaitGroup
	errs := make([]error, len(granted.Shares)+1)
	for i := range granted.Shares {
		all.Go(func() { errs[i] = d.attach(ctx, e, k, c.x.grant, i) })
	}
	all.Go(func() {
		if edge := e.edgeOf(); edge == nil {
			errs[len(errs)-1] = errors.New("its egress process has ended")
		} else if _, err := d.tell(ctx, e, edge, c.conf); err != nil {
			errs[len(errs)-1] = err
		}
	})
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	guest.Crash("claim: before it is written down")
	if err := guest.Claimed(d.dir(e), c.spec, by); err != nil {
		return nil, err
	}
	guest.Crash("claim: written down")
	d.recordStart(e, c.x, c.conf)
	d.index.Later(ctx, store.Known{Guest: e.name, Created: time.Now()})
	e.mu.Lock()
	e.info = proto.Clone(e.info).(*api.Guest)
	e.info.Spec = c.spec
	e.mu.Unlock()
	d.mu.Lock()
	e.by, e.warm = by, nil
	d.mu.Unlock()
	e.mu.Lock()
	e.told = func() { d.source.changed(e.name) }
	e.changedLocked()
	e.mu.Unlock()
	info, _, _ := e.get()
	return info, nil
}

// startsCold says why the guest is none of the pool.
func (e *entry) startsCold(why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cold = why
}
