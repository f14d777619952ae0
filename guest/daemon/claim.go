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
//  2. policy decides on the request, as for any start; what changes from here on,
//     a secret or the policy, is applied to the guest afterwards
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
	if cold, err := d.comesUp(ctx, e, want, spec); cold != "" || err != nil {
		d.giveBack(e)
		return nil, cold, err
	}
	e.rules.Lock() // whoever changes a secret waits, and finds the guest then
	held := sync.OnceFunc(e.rules.Unlock)
	defer held()
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
	held()
	if err != nil {
		d.log.Warn("a claim failed", "guest", e.name, "error", err)
		d.mu.Lock()
		e.warm.left = true
		d.mu.Unlock()
		d.owned.Go(func() {
			d.giveUp(e)
			e.release()
		})
		return nil, "the claim failed", ctx.Err()
	}
	claimed()
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

// takeWarm takes a guest out of the pool: of those that are ready the one that has been
// for longest, since one that has just booted is busy for a while.
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
		if found == nil || e.warm.before(found.warm) {
			found = e
		}
	}
	if found != nil {
		found.warm.taken = true
	}
	return found
}

// before says whether a guest has been ready for longer than another.
func (w *warm) before(o *warm) bool {
	select {
	case <-w.made:
	default:
		return false
	}
	select {
	case <-o.made:
		return w.since.Before(o.since)
	default:
		return true
	}
}

// giveBack puts a guest back that a claim has done nothing to, if it is still what
// the pool is to hold.
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
	if d.closing || e.warm.stale { // one that is emptied did not see it
		e.warm.left = true
		d.owned.Go(func() { d.giveUp(e) })
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

// wanting decides on a request as for a guest of the pool; nil if that is no way
// to a guest, and cold says why.
func (d *Daemon) wanting(e *entry, asked *api.GuestSpec) (spec *api.GuestSpec, x *decision, cold string) {
	spec = proto.Clone(asked).(*api.GuestSpec)
	spec.Name, spec.Image = e.name, d.resolved(asked.Image)
	if spec.Image == "" {
		return nil, nil, "its image is not here"
	}
	originate(spec)
	x, err := d.decide(spec)
	if is := e.warm.pool.Boundary; err == nil && spec.Boundary == "" && is == x.grant.Boundaries()[0] {
		spec.Boundary = is // as it would get: the strongest one, which works here
		x, err = d.decide(spec)
	}
	if err != nil {
		return nil, nil, "not granted" // a cold start has the words for it
	}
	if len(x.grant.Spec().Shares) > 0 && len(d.opts.Share) == 0 {
		return nil, nil, "no live shares here"
	}
	return spec, x, ""
}

// comesUp waits until a guest of the pool is up, unless it will not be what the
// request needs.
func (d *Daemon) comesUp(ctx context.Context, e *entry, want policy.Pool, asked *api.GuestSpec) (cold string, err error) {
	select {
	case <-e.warm.made:
		return "", nil
	default:
	}
	_, x, cold := d.wanting(e, asked)
	if cold != "" {
		return cold, nil
	}
	is := want.Spec(e.name)
	is.Image = d.resolved(is.Image)
	will, err := policy.Decide(is, x.rules)
	if err != nil {
		return "the warm guest failed", nil // it will have
	}
	if why := guest.Fixed(will.Spec(), x.grant.Spec()); why != "" {
		return why, nil
	}
	select {
	case <-e.warm.made:
		return "", nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// fitting decides on a request for a guest of the pool that is up. If it is nil
// cold says why the guest is not for the request. The caller holds e.rules until
// the guest has what was granted.
func (d *Daemon) fitting(ctx context.Context, e *entry, asked *api.GuestSpec) (c *claiming, cold string, err error) {
	if e.warm.err != nil {
		return nil, "the warm guest failed", nil
	}
	is, k, _ := e.get()
	if k == nil || is.State != api.GuestState_GUEST_STATE_READY {
		return nil, "the warm guest ended", nil
	}
	if here := d.resolved(e.warm.pool.Image); here != "" && here != is.Spec.Image {
		e.warm.stale = true
	}
	spec, x, cold := d.wanting(e, asked)
	if cold != "" {
		return nil, cold, nil
	}
	granted := x.grant.Spec()
	if why := guest.Fixed(is.Spec, granted); why != "" {
		return nil, why, nil
	}
	if !slices.Equal(e.warm.walls, x.grant.Boundaries()) {
		e.warm.stale = true
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
		e.warm.stale = true
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

// give gives a guest of the pool all that was granted. The caller holds e.rules.
func (d *Daemon) give(ctx context.Context, e *entry, c *claiming, by guest.Making) (*api.Guest, error) {
	_, k, _ := e.get()
	if k == nil {
		return nil, errors.New("it has ended")
	}
	rules, err := json.Marshal(c.x.rules)
	if err != nil {
		return nil, err
	}
	if err := makeStores(d.dir(e), c.x.grant); err != nil {
		return nil, err
	}
	guest.Crash("claim: before the keeper hears of it")
	var all sync.WaitGroup
	var heard, served, told, mounted error
	var shares []guest.Live
	all.Go(func() { // a guest that stands still goes on for it
		defer e.measure("guest goes on and hears whose it is")()
		_, heard = k.own.ClaimGuest(ctx, connect.NewRequest(&api.ClaimGuestRequest{Spec: c.x.grant.Spec(), Rules: rules, Env: placeholders(c.conf.Secrets)}))
	})
	all.Go(func() {
		defer e.measure("share processes serve")()
		shares, served = d.serveAll(ctx, e, c.x.grant)
	})
	all.Wait()
	if heard != nil {
		closeAll(shares)
		return nil, d.handOn(e, heard)
	}
	guest.Crash("claim: the keeper has heard of it")
	if served != nil {
		return nil, served
	}
	all.Go(func() {
		defer e.measure("shares mounted")()
		mounted = d.mountAll(ctx, e, k, c.x.grant, shares)
	})
	all.Go(func() {
		defer e.measure("rules and secrets told")()
		if edge := e.edgeOf(); edge == nil {
			told = errors.New("its egress process has ended")
		} else {
			_, told = d.tell(ctx, e, edge, c.conf)
		}
	})
	all.Wait()
	if err := errors.Join(told, mounted); err != nil {
		return nil, err
	}
	defer e.measure("its owner written down")()
	d.recordStart(e, c.x, c.conf) // a guest that is somebody's has it, whenever this daemon dies
	guest.Crash("claim: before it is written down")
	if err := guest.Claimed(d.dir(e), c.spec, by); err != nil {
		return nil, err
	}
	guest.Crash("claim: written down")
	d.index.Later(ctx, store.Known{Guest: e.name, Created: time.Now()})
	e.mu.Lock()
	e.info = proto.Clone(e.info).(*api.Guest)
	e.info.Spec, e.info.Paused = c.spec, nil // its claim let it go on
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
