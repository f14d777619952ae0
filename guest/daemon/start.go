package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/daemon/store"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
)

// processWall is the boundary of a process sandbox, as a request names it.
const processWall = "process"

// start takes a reserved guest to ready.
//
//  1. policy grants the request, or it ends here; the host's disk has room
//  2. the image's parts are found and verified, its volumes are made
//  3. a new guest gets its folder, whole
//  4. its egress process is started, confines itself and holds the rules; its
//     keeper is started and decides again on the same request and rules
//  5. the keeper says that the guest is ready, or why not
func (d *Daemon) start(ctx context.Context, e *entry, fresh bool, notice func(string) error) (*api.Guest, error) {
	info, _, _ := e.get()
	if fresh {
		originate(info.Spec)
	}
	trace := e.begins()
	decided := trace.Begin("policy decided")
	e.rules.Lock() // what changes before the egress process is known would be lost
	held := sync.OnceFunc(e.rules.Unlock)
	defer held()
	x, err := d.decideSoon(ctx, info.Spec)
	if err != nil {
		return nil, err
	}
	decided()
	w := d.warmOf(e)
	if w != nil { // of what everybody has nothing either, before it is somebody's
		w.walls, x.rules.Egress, x.rules.Presets, x.rules.SecretRules = x.grant.Boundaries(), nil, nil, nil
		if x.grant, err = policy.Decide(info.Spec, x.rules); err != nil {
			return nil, err
		}
	}
	if err := x.announce(notice); err != nil {
		return nil, err
	}
	granted := x.grant.Spec()
	if len(granted.Shares) > 0 && len(d.opts.Share) == 0 {
		return nil, &hypervisor.Error{Op: "start guest " + e.name, Err: errors.New("nothing serves folders to guests on this host yet"),
			Cure: "start it with --no-share, and bring files in and out by carrel cp"}
	}
	if granted.DiskMib == 0 {
		if err := d.startsEmpty(ctx, e, fresh, granted, notice); err != nil {
			return nil, err
		}
	}
	if err := d.room("start guest "+e.name, d.guests, x.rules); err != nil {
		return nil, err
	}
	spec := proto.Clone(granted).(*api.GuestSpec) // without what repositories ask for, which may change
	spec.Egress = info.Spec.Egress
	verified := trace.Begin("image verified")
	parts, release, err := d.opts.Parts(ctx, spec.Image)
	if err != nil {
		return nil, err
	}
	defer release() // the guest has opened them then, and its keeper holds the image
	verified()
	if w != nil {
		w.parts = filesOf(parts)
	}
	made := trace.Begin("folder made")
	parts.Dir, parts.Volumes = filepath.Join(d.guests, e.name), volumesIn(d.opts.Place.State)
	if err := d.readyVolumes(ctx, e, granted, x.rules, notice); err != nil {
		return nil, err
	}
	if fresh {
		if err := guest.Create(d.guests, e.name, spec, e.by); err != nil {
			return nil, &hypervisor.Error{Op: "make the guest's folder", Err: err, Cure: "make room on the disk that holds " + d.guests}
		}
		if w == nil {
			d.index.Later(ctx, store.Known{Guest: e.name, Created: time.Now()})
		}
	}
	if err := d.unkeep(e); err != nil {
		return nil, err
	}
	if err := makeStores(parts.Dir, x.grant); err != nil {
		return nil, &hypervisor.Error{Op: "make the folder of the review", Err: err, Cure: "make room on the disk that holds " + d.guests}
	}
	if spec.DiskMib > 0 {
		parts.Scratch = filepath.Join(parts.Dir, "scratch"+hypervisor.DiskExt)
		if !noMachines && spec.Boundary != processWall { // whose guests have a folder beside that path
			if err := makeScratch(ctx, d.opts.Place.Cache, parts.Scratch, spec.DiskMib); err != nil {
				return nil, err
			}
		}
	}
	made()
	configured := trace.Begin("rules and secrets")
	conf := new(api.ConfigureEdgeRequest)
	if w == nil {
		if conf, err = d.configuration(ctx, x, parts.Dir, false); err != nil {
			return nil, err
		}
		if err := d.refuseOutside(conf); err != nil {
			return nil, err
		}
	}
	audit := d.auditDir(e.name)
	if err := os.MkdirAll(audit, 0o700); err != nil {
		return nil, err
	}
	if w == nil {
		d.recordStart(e, x, conf)
	}
	configured()
	socket, outer := guest.SocketPath(d.opts.Place.Run, e.name), guest.EdgeSocketPath(d.opts.Place.Run, e.name)
	e.setCause("")
	err = d.spawn(trace,
		guest.KeepRequest{Spec: granted, Rules: x.rules, Pins: x.grant.Pins(), Parts: parts, Socket: socket, Env: placeholders(conf.Secrets), Warm: w != nil, Wake: e.wakes() != nil},
		guest.EdgeRequest{Guest: e.name, Socket: outer, Audit: audit, Configure: conf})
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.keeper, e.edge = newKeeper(socket), d.edgeAt(outer)
	if e.expire != nil {
		e.expire.Stop()
	}
	e.info = &api.Guest{Name: e.name, Spec: spec, State: api.GuestState_GUEST_STATE_STARTING, StateDir: parts.Dir}
	e.changedLocked()
	e.mu.Unlock()
	held()
	d.owned.Go(func() { d.follow(d.ctx, e) })

	ready := trace.Begin("keeper says ready")
	info, err = d.becomesReady(ctx, e)
	ready()
	if err != nil {
		return nil, err
	}
	said, err := d.handsOver(ctx, e)
	if err != nil {
		return nil, err
	}
	if said != nil {
		notice("what was applied or discarded while guest " + e.name + " did not run is still as it left it in the guest: " + said.Error())
	}
	if w == nil { // else it is said to who gets the guest
		d.saySlow(info, notice)
	}
	return info, nil
}

// becomesReady returns when the guest that starts is ready, or why it is not going to
// be. Without a caller it is ended. When this daemon ends it goes on, and the next one
// adopts it.
func (d *Daemon) becomesReady(ctx context.Context, e *entry) (*api.Guest, error) {
	info, err := e.wait(ctx, func(i *api.Guest, k *keeper) bool {
		return k == nil || i.State == api.GuestState_GUEST_STATE_READY
	})
	switch {
	case err != nil && d.ctx.Err() != nil:
		return nil, err
	case err != nil: // the caller went away, or it takes too long
		d.end(context.WithoutCancel(ctx), e, 0)
		e.wait(d.ctx, func(_ *api.Guest, k *keeper) bool { return k == nil })
		return nil, context.Cause(ctx)
	case info.State != api.GuestState_GUEST_STATE_READY:
		return nil, startFailed(e.name, info.Cause)
	}
	return info, nil
}

// originate says where the rules of a request come from.
func originate(spec *api.GuestSpec) {
	for _, r := range spec.GetEgress().GetRules() {
		if r != nil {
			r.Origin = "the request"
			if r.Action == api.EgressAction_EGRESS_ACTION_ALLOW {
				r.Origin = "--allow"
			}
		}
	}
}

// announce says what of a start its user may not expect.
func (x *decision) announce(notice func(string) error) error {
	for _, said := range x.requests {
		if err := notice(said); err != nil {
			return err
		}
	}
	for _, sh := range x.grant.Spec().Shares {
		if sh.Plain {
			if err := notice("sharing " + sh.Path + " plain: no name in it is hidden from the guest, .env files and keys included, and none is protected"); err != nil {
				return err
			}
		}
	}
	return nil
}

// recordStart records what was granted; nothing in it is secret.
func (d *Daemon) recordStart(e *entry, x *decision, conf *api.ConfigureEdgeRequest) {
	granted := x.grant.Spec()
	d.record(e, "guest.started", &api.GuestSpec{
		Name: granted.Name, Image: granted.Image, Cpus: granted.Cpus, MemoryMib: granted.MemoryMib, DiskMib: granted.DiskMib, Shares: granted.Shares,
		Ephemeral: granted.Ephemeral, Boundary: granted.Boundary, Volumes: granted.Volumes,
		Egress: &api.EgressSpec{Presets: granted.Egress.GetPresets(), Secrets: x.grant.Secrets(), Rules: conf.Rules},
	})
}

// saySlow is said once: it does not change while this daemon lives.
func (d *Daemon) saySlow(info *api.Guest, notice func(string) error) {
	if info.Accelerator == "tcg" {
		d.slow.Do(func() {
			notice("guests run under software emulation here, several times slower (carrel doctor says why)")
		})
	}
}

// startsEmpty says what becomes of a guest without a disk. It does not start
// again while changes wait: its layers are gone, and the next import would take
// the empty ones for all that it has changed.
func (d *Daemon) startsEmpty(ctx context.Context, e *entry, fresh bool, spec *api.GuestSpec, notice func(string) error) error {
	if !fresh {
		var own *connect.Error
		if err := d.nothingWaits(ctx, e); errors.As(err, &own) && own.Code() == connect.CodeFailedPrecondition {
			return api.NewError(connect.CodeFailedPrecondition, "changes_waiting", own.Message()+", and it has no disk on which they would outlive another start",
				"carrel apply "+e.name+", or carrel discard "+e.name+", and then start it")
		} else if err != nil {
			return err
		}
	}
	if spec.Ephemeral {
		return nil
	}
	return notice("guest " + e.name + " has no disk: when it stops, what it changed outside of shared folders is gone")
}
