package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/daemon/store"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/images"
)

// processWall is the boundary of a process sandbox, as a request names it.
const processWall = "process"

// guestService implements GuestService.
type guestService struct{ d *Daemon }

// find returns a guest of the table by its name, which is checked first.
func (d *Daemon) find(name string) (*entry, error) {
	if !hypervisor.ValidName(name) {
		return nil, refusal(&policy.Refusal{Code: "bad_name", Reason: fmt.Sprintf("%.60q is not a guest's name", name)})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.table[name]
	if e == nil {
		return nil, api.NewError(connect.CodeNotFound, "not_found", "there is no guest "+name, "carrel ls shows those that there are")
	}
	return e, nil
}

// refusal turns any error of a start into the API's words.
func refusal(err error) error {
	var r *policy.Refusal
	var he *hypervisor.Error
	var ce *connect.Error
	switch {
	case errors.As(err, &ce):
		return err
	case errors.As(err, &r):
		code := connect.CodeInvalidArgument
		switch r.Code {
		case "share_refused":
			code = connect.CodePermissionDenied
		case "policy_unreadable", "policy_invalid", "secrets_unreadable", "agreements_unreadable":
			code = connect.CodeFailedPrecondition
		}
		return api.NewError(code, r.Code, r.Reason, r.Cure)
	case errors.Is(err, images.ErrNotFound):
		cause, cure := apart(err.Error())
		return api.NewError(connect.CodeFailedPrecondition, "image_missing", cause, cure)
	case errors.Is(err, images.ErrDamaged):
		cause, cure := apart(err.Error())
		return api.NewError(connect.CodeDataLoss, "image_damaged", cause, cure)
	case errors.Is(err, images.ErrUntrusted):
		cause, cure := apart(err.Error())
		return api.NewError(connect.CodePermissionDenied, "image_untrusted", cause, cure)
	case errors.As(err, &he):
		return api.NewError(connect.CodeFailedPrecondition, "host", he.Op+": "+he.Err.Error(), he.Cure)
	}
	cause, cure := apart(err.Error())
	return api.NewError(connect.CodeInternal, "start_failed", cause, cure)
}

// Start implements GuestService.
func (s *guestService) Start(ctx context.Context, r *connect.Request[api.StartGuestRequest], st *connect.ServerStream[api.StartGuestEvent]) error {
	spec := r.Msg.GetSpec()
	if spec == nil {
		spec = new(api.GuestSpec)
	}
	notice := func(text string) error {
		return st.Send(&api.StartGuestEvent{Kind: &api.StartGuestEvent_Notice{Notice: text}})
	}
	info, err := s.d.onceGuest(ctx, r.Msg, func(by guest.Making) (*api.Guest, error) {
		return s.begin(ctx, spec, r.Msg.OnlyNew, by, notice, st)
	}, func(e *entry) (*api.Guest, error) {
		// It was made and not answered. If it comes up that is the answer.
		info, err := e.wait(ctx, func(i *api.Guest, k *keeper) bool {
			return k == nil || i.State == api.GuestState_GUEST_STATE_READY
		})
		if err != nil || info.State == api.GuestState_GUEST_STATE_READY {
			return info, err
		}
		return s.begin(ctx, &api.GuestSpec{Name: e.name}, false, e.by, notice, st)
	})
	if err != nil {
		return err
	}
	guest.Crash("start: before the acknowledgement")
	return st.Send(&api.StartGuestEvent{Kind: &api.StartGuestEvent_Guest{Guest: info}})
}

// begin starts a new guest, or a stopped one again, and returns when it is ready.
func (s *guestService) begin(ctx context.Context, spec *api.GuestSpec, onlyNew bool, by guest.Making, notice func(string) error, st *connect.ServerStream[api.StartGuestEvent]) (*api.Guest, error) {
	e, fresh, err := s.d.reserve(spec, onlyNew, by)
	if err != nil {
		return nil, err
	}
	defer e.release()
	if !fresh {
		if err := s.d.restartable(ctx, e, spec); err != nil {
			return nil, err
		}
	}
	err = s.d.pin(ctx, e, st)
	var info *api.Guest
	if err == nil {
		info, err = s.d.start(ctx, e, fresh, notice)
	}
	if err != nil {
		if fresh {
			s.d.discard(e)
		}
		return nil, refusal(err)
	}
	return info, nil
}

// reserve puts a new guest into the table, or takes a stopped one of that name,
// marked as being started. Of two that ask for one name, one wins.
func (d *Daemon) reserve(spec *api.GuestSpec, onlyNew bool, by guest.Making) (e *entry, fresh bool, err error) {
	if spec.Name != "" && !hypervisor.ValidName(spec.Name) {
		_, err := policy.Decide(&api.GuestSpec{Name: spec.Name}, d.opts.Rules) // has the words for it
		return nil, false, refusal(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return nil, false, api.NewError(connect.CodeUnavailable, "closing", "the daemon is being shut down", "try again")
	}
	spec = proto.Clone(spec).(*api.GuestSpec)
	if spec.Name == "" {
		if spec.Name = d.chooseName(); spec.Name == "" {
			return nil, false, api.NewError(connect.CodeResourceExhausted, "too_many_guests", "no free name was found", "carrel rm removes guests")
		}
	}
	if e = d.table[spec.Name]; e == nil {
		if len(d.table) >= maxGuests {
			return nil, false, api.NewError(connect.CodeResourceExhausted, "too_many_guests", fmt.Sprintf("there are %d guests, which is the limit", len(d.table)), "carrel rm removes guests")
		}
		e = d.newEntry(spec.Name, &api.Guest{Name: spec.Name, Spec: spec, State: api.GuestState_GUEST_STATE_STARTING})
		e.busy, e.by = "started", by
		d.table[spec.Name] = e
		return e, true, nil
	}
	if onlyNew {
		return nil, false, api.NewError(connect.CodeAlreadyExists, "name_taken", "a guest named "+spec.Name+" exists", "choose another --name, or: carrel rm "+spec.Name)
	}
	if err := e.take("started"); err != nil {
		return nil, false, err
	}
	return e, false, nil
}

// restartable says why a taken entry cannot be started as it was asked for. A
// keeper whose guest has ended is waited for.
func (d *Daemon) restartable(ctx context.Context, e *entry, spec *api.GuestSpec) error {
	if info, k, _ := e.get(); k != nil {
		if k.alive(ctx) {
			return api.NewError(connect.CodeAlreadyExists, "running", "guest "+e.name+" is running already", "carrel exec "+e.name+" -- COMMAND")
		}
		wctx, cancel := context.WithTimeout(ctx, guest.StopBound+stopBound(info.Spec, guest.StopGrace))
		defer cancel()
		if _, err := e.wait(wctx, func(_ *api.Guest, k *keeper) bool { return k == nil }); err != nil {
			return api.NewError(connect.CodeAborted, "busy", "guest "+e.name+" is still ending", "try again in a moment")
		}
	}
	info, _, _ := e.get()
	switch {
	case info.State == api.GuestState_GUEST_STATE_DAMAGED:
		return api.NewError(connect.CodeDataLoss, "damaged", info.Cause, "carrel rm --force "+e.name)
	case !proto.Equal(spec, &api.GuestSpec{Name: spec.Name}) && !sameSpec(spec, info.Spec):
		return api.NewError(connect.CodeAlreadyExists, "name_taken", "guest "+e.name+" exists with other settings", "carrel start "+e.name+" starts it as it is; carrel rm "+e.name+" removes it")
	}
	return nil
}

// sameSpec says whether each setting that was asked for is the one there is.
func sameSpec(asked, is *api.GuestSpec) bool {
	want := proto.Clone(is).(*api.GuestSpec)
	proto.Merge(want, &api.GuestSpec{Image: asked.Image, Cpus: asked.Cpus, MemoryMib: asked.MemoryMib, DiskMib: asked.DiskMib, Boundary: asked.Boundary})
	if len(asked.Shares) > 0 && !proto.Equal(&api.GuestSpec{Shares: asked.Shares}, &api.GuestSpec{Shares: is.Shares}) {
		return false
	}
	if len(asked.Volumes) > 0 && !proto.Equal(&api.GuestSpec{Volumes: asked.Volumes}, &api.GuestSpec{Volumes: is.Volumes}) {
		return false
	}
	if asked.Image != "" && sameImage(asked.Image, is.Image) {
		want.Image = is.Image
	}
	if asked.Egress != nil && !sameEgress(asked.Egress, is.Egress) {
		return false
	}
	return proto.Equal(want, is)
}

// sameEgress compares what two requests ask to reach, whatever their rules'
// origins say.
func sameEgress(a, b *api.EgressSpec) bool {
	return slices.Equal(a.GetPresets(), b.GetPresets()) && slices.Equal(a.GetSecrets(), b.GetSecrets()) && slices.EqualFunc(a.GetRules(), b.GetRules(), same)
}

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
		for _, r := range info.Spec.GetEgress().GetRules() {
			if r != nil {
				r.Origin = "the request"
				if r.Action == api.EgressAction_EGRESS_ACTION_ALLOW {
					r.Origin = "--allow"
				}
			}
		}
	}
	trace := e.begins()
	decided := trace.Begin("policy decided")
	e.rules.Lock() // what changes before the egress process is known would be lost
	held := sync.OnceFunc(e.rules.Unlock)
	defer held()
	x, err := d.decide(info.Spec)
	if err != nil {
		return nil, err
	}
	decided()
	for _, said := range x.requests {
		if err := notice(said); err != nil {
			return nil, err
		}
	}
	for _, sh := range x.grant.Spec().Shares {
		if sh.Plain {
			if err := notice("sharing " + sh.Path + " plain: no name in it is hidden from the guest, .env files and keys included, and none is protected"); err != nil {
				return nil, err
			}
		}
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
	made := trace.Begin("folder made")
	parts.Dir, parts.Volumes = filepath.Join(d.guests, e.name), volumesIn(d.opts.Place.State)
	if err := d.readyVolumes(ctx, e, granted, x.rules, notice); err != nil {
		return nil, err
	}
	if fresh {
		if err := guest.Create(d.guests, e.name, spec, e.by); err != nil {
			return nil, &hypervisor.Error{Op: "make the guest's folder", Err: err, Cure: "make room on the disk that holds " + d.guests}
		}
		d.index.Later(ctx, store.Known{Guest: e.name, Created: time.Now()})
	}
	if err := d.unkeep(e); err != nil {
		return nil, err
	}
	if err := makeStores(parts.Dir, x.grant); err != nil {
		return nil, &hypervisor.Error{Op: "make the folder of the review", Err: err, Cure: "make room on the disk that holds " + d.guests}
	}
	if spec.DiskMib > 0 {
		parts.Scratch = filepath.Join(parts.Dir, "scratch.img")
		if !noMachines && spec.Boundary != processWall { // whose guests have a folder beside that path
			if err := makeScratch(ctx, d.opts.Place.Cache, parts.Scratch, spec.DiskMib); err != nil {
				return nil, err
			}
		}
	}
	made()
	configured := trace.Begin("rules and secrets")
	conf, err := d.configuration(ctx, x, parts.Dir, false)
	if err != nil {
		return nil, err
	}
	if err := d.refuseOutside(conf); err != nil {
		return nil, err
	}
	audit := d.auditDir(e.name)
	if err := os.MkdirAll(audit, 0o700); err != nil {
		return nil, err
	}
	d.record(e, "guest.started", &api.GuestSpec{ // what was granted; nothing in it is secret
		Name: granted.Name, Image: granted.Image, Cpus: granted.Cpus, MemoryMib: granted.MemoryMib, DiskMib: granted.DiskMib, Shares: granted.Shares,
		Ephemeral: granted.Ephemeral, Boundary: granted.Boundary, Volumes: granted.Volumes,
		Egress: &api.EgressSpec{Presets: granted.Egress.GetPresets(), Secrets: x.grant.Secrets(), Rules: conf.Rules},
	})
	configured()
	socket, outer := guest.SocketPath(d.opts.Place.Run, e.name), guest.EdgeSocketPath(d.opts.Place.Run, e.name)
	e.setCause("")
	err = d.spawn(trace,
		guest.KeepRequest{Spec: granted, Rules: x.rules, Pins: x.grant.Pins(), Parts: parts, Socket: socket, Env: placeholders(conf.Secrets)},
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
	info, err = e.wait(ctx, func(i *api.Guest, k *keeper) bool {
		return k == nil || i.State == api.GuestState_GUEST_STATE_READY
	})
	ready()
	if err != nil { // the caller went away
		d.end(context.WithoutCancel(ctx), e, 0)
		e.wait(d.ctx, func(_ *api.Guest, k *keeper) bool { return k == nil })
		return nil, err
	}
	if info.State != api.GuestState_GUEST_STATE_READY {
		return nil, startFailed(e.name, info.Cause)
	}
	if err := d.replayDrops(ctx, e); err != nil {
		d.log.Error("a guest does not forget", "guest", e.name, "error", err)
		notice("what was applied or discarded while guest " + e.name + " did not run is still as it left it in the guest: " + err.Error())
	}
	if info.Accelerator == "tcg" { // said once: it does not change while this daemon lives
		d.slow.Do(func() {
			notice("guests run under software emulation here, several times slower (carrel doctor says why)")
		})
	}
	return info, nil
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

// startFailed is what a keeper says of a start that failed.
func startFailed(name, cause string) error {
	cause, cure := apart(cause)
	return api.NewError(connect.CodeFailedPrecondition, "start_failed", "guest "+name+" did not start: "+cause, cure)
}

// apart splits the cure, in the parentheses at its end, from an error's text.
func apart(text string) (cause, cure string) {
	if i := strings.LastIndex(text, " ("); i > 0 && strings.HasSuffix(text, ")") {
		return text[:i], text[i+2 : len(text)-1]
	}
	return text, ""
}

// Stop implements GuestService.
func (s *guestService) Stop(ctx context.Context, r *connect.Request[api.StopGuestRequest]) (*connect.Response[api.StopGuestResponse], error) {
	e, err := s.d.find(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	if _, k, _ := e.get(); k == nil {
		info, _, _ := e.get()
		return connect.NewResponse(&api.StopGuestResponse{Guest: info}), nil
	}
	grace := guest.StopGrace
	if n := r.Msg.GraceNanos; n > 0 {
		grace = min(guest.StopBound, time.Duration(n))
	}
	s.d.end(ctx, e, grace)
	info, err := e.wait(ctx, func(_ *api.Guest, k *keeper) bool { return k == nil })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.StopGuestResponse{Guest: info}), nil
}

// Remove implements GuestService.
func (s *guestService) Remove(ctx context.Context, r *connect.Request[api.RemoveGuestRequest]) (*connect.Response[api.RemoveGuestResponse], error) {
	e, err := s.d.find(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	if err := e.take("removed"); err != nil {
		return nil, err
	}
	defer e.release()
	e.mu.Lock()
	if e.expire != nil {
		e.expire.Stop()
	}
	e.mu.Unlock()
	if _, k, _ := e.get(); k != nil {
		if !r.Msg.Force {
			return nil, api.NewError(connect.CodeFailedPrecondition, "running", "guest "+e.name+" is running", "carrel stop "+e.name+", or carrel rm --force "+e.name)
		}
		s.d.end(ctx, e, 0)
		if _, err := e.wait(ctx, func(_ *api.Guest, k *keeper) bool { return k == nil }); err != nil {
			return nil, err
		}
	}
	if !r.Msg.Force {
		if err := s.d.nothingWaits(ctx, e); err != nil {
			return nil, err
		}
	}
	if err := s.d.discard(e); err != nil {
		return nil, api.NewError(connect.CodeInternal, "disk", err.Error(), "")
	}
	return connect.NewResponse(&api.RemoveGuestResponse{}), nil
}

// List implements GuestService.
func (s *guestService) List(context.Context, *connect.Request[api.ListGuestsRequest]) (*connect.Response[api.ListGuestsResponse], error) {
	s.d.mu.Lock()
	es := make([]*entry, 0, len(s.d.table))
	for _, e := range s.d.table {
		es = append(es, e)
	}
	s.d.mu.Unlock()
	out := new(api.ListGuestsResponse)
	for _, e := range es {
		info, _, _ := e.get()
		out.Guests = append(out.Guests, info)
	}
	sort.Slice(out.Guests, func(i, j int) bool { return out.Guests[i].Name < out.Guests[j].Name })
	return connect.NewResponse(out), nil
}

// Inspect implements GuestService.
func (s *guestService) Inspect(ctx context.Context, r *connect.Request[api.InspectGuestRequest]) (*connect.Response[api.InspectGuestResponse], error) {
	e, err := s.d.find(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	info, _, _ := e.get()
	if info.Tasks, err = s.d.tasks(ctx, e); err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.InspectGuestResponse{Guest: info}), nil
}
