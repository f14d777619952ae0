package daemon

import (
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
)

// find returns a guest of the table by its name, which is checked first.
func (d *Daemon) find(name string) (*entry, error) {
	if !hypervisor.ValidName(name) {
		return nil, refusal(&policy.Refusal{Code: "bad_name", Reason: fmt.Sprintf("%.60q is not a guest's name", name)})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.table[name]
	if e == nil || e.warm != nil {
		return nil, api.NewError(connect.CodeNotFound, "not_found", "there is no guest "+name, "carrel ls shows those that there are")
	}
	return e, nil
}

// finished waits for the guest of this name, if there is one: see entry.finished.
func (d *Daemon) finished(ctx context.Context, name string) error {
	d.mu.Lock()
	e := d.table[name]
	d.mu.Unlock()
	if e == nil {
		return nil
	}
	return e.finished(ctx)
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
	if onlyNew || e.warm != nil {
		return nil, false, api.NewError(connect.CodeAlreadyExists, "name_taken", "a guest named "+spec.Name+" exists", "choose another --name, or: carrel rm "+spec.Name)
	}
	if err := e.take("started"); err != nil {
		return nil, false, err
	}
	return e, false, nil
}

// restartable says why a taken entry cannot be started as it was asked for. A
// keeper whose guest has ended is waited for, and so is one that a daemon before this
// one has just started: it may not take calls yet.
func (d *Daemon) restartable(ctx context.Context, e *entry, spec *api.GuestSpec) error {
	if info, k, _ := e.get(); k != nil {
		running := api.NewError(connect.CodeAlreadyExists, "running", "guest "+e.name+" is running already", "carrel exec "+e.name+" -- COMMAND")
		if k.alive(ctx) {
			return running
		}
		starts := info.State == api.GuestState_GUEST_STATE_STARTING
		wctx, cancel := context.WithTimeout(ctx, guest.StopBound+stopBound(info, guest.StopGrace))
		defer cancel()
		info, err := e.wait(wctx, func(i *api.Guest, k *keeper) bool {
			return k == nil || starts && i.State == api.GuestState_GUEST_STATE_READY
		})
		if err != nil {
			return api.NewError(connect.CodeAborted, "busy", "guest "+e.name+" is still ending", "try again in a moment")
		}
		if info.State == api.GuestState_GUEST_STATE_READY {
			return running
		}
	}
	info, _, _ := e.get()
	if info.State == api.GuestState_GUEST_STATE_DAMAGED && d.reread(ctx, e) == nil {
		info, _, _ = e.get()
	}
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
	if len(asked.Shares) > 0 && !slices.EqualFunc(asked.Shares, is.Shares, func(a, b *api.Share) bool {
		return a != nil && proto.Equal(policy.FilledShare(a), b)
	}) {
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
