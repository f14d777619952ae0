package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
)

// maxVolumes bounds the volumes of one user.
const maxVolumes = 256

// volumesIn is the folder of all volumes. It is one of ours, so no share shows
// it to a guest.
func volumesIn(state string) string { return filepath.Join(state, "volumes") }

func (d *Daemon) volumeDir(name string) string {
	return filepath.Join(volumesIn(d.opts.Place.State), name)
}

// makeVolume makes a volume, whole or not at all; fresh is false if it was there
// and was not made by this very request.
func (d *Daemon) makeVolume(ctx context.Context, name string, mib uint32, by made) (fresh bool, err error) {
	d.volumeMu.Lock()
	defer d.volumeMu.Unlock()
	all := volumesIn(d.opts.Place.State)
	dir := d.volumeDir(name)
	if fi, err := os.Lstat(dir); err == nil {
		if !fi.IsDir() {
			return false, fmt.Errorf("volume %s: %s is no folder", name, dir)
		}
		return by.left(dir)
	}
	names, err := d.volumeNames()
	if err != nil {
		return false, err
	}
	if len(names) >= maxVolumes {
		return false, api.NewError(connect.CodeResourceExhausted, "too_many_volumes", fmt.Sprintf("there are %d volumes, which is the limit", len(names)), "carrel volume rm removes volumes")
	}
	tmp, err := os.MkdirTemp(all, ".new-"+name+"-")
	if err != nil {
		return false, &hypervisor.Error{Op: "make volume " + name, Err: err, Cure: "make room on the disk that holds " + all}
	}
	defer os.RemoveAll(tmp)
	if err := makeScratch(ctx, d.opts.Place.Cache, policy.VolumeDisk(tmp, "."), mib); err != nil {
		return false, err
	}
	if err := by.leave(tmp); err != nil {
		return false, &hypervisor.Error{Op: "make volume " + name, Err: err, Cure: "make room on the disk that holds " + all}
	}
	guest.Crash("volume: before the rename")
	if err := os.Rename(tmp, dir); err != nil {
		return false, err
	}
	d.log.Info("made a volume", "volume", name, "mib", mib)
	return true, nil
}

func (d *Daemon) volumeNames() (names []string, err error) {
	es, err := os.ReadDir(volumesIn(d.opts.Place.State))
	if err != nil {
		return nil, fmt.Errorf("read the volumes: %w", err)
	}
	for _, e := range es {
		if hypervisor.ValidName(e.Name()) && e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// readyVolumes makes what is missing of a guest's volumes, and refuses one that
// another guest has. Its keeper takes their locks, which is what counts.
func (d *Daemon) readyVolumes(ctx context.Context, e *entry, spec *api.GuestSpec, rules policy.Rules, notice func(string) error) error {
	for _, v := range spec.Volumes {
		if holder := d.holderOf(ctx, v.Name, notice); holder != "" && holder != e.name {
			return volumeBusy(&guest.VolumeBusyError{Volume: v.Name, Holder: holder})
		}
		mib, err := rules.Volumes.CheckVolume(v.Name, 0)
		if err != nil {
			return err
		}
		fresh, err := d.makeVolume(ctx, v.Name, mib, made{})
		if err != nil {
			return err
		}
		if fresh {
			if err := notice(fmt.Sprintf("volume %s is new and empty; it can take %s, and stays when this guest is gone", v.Name, sizeWord(int64(mib)<<20))); err != nil {
				return err
			}
		}
	}
	return nil
}

// holderOf is the guest that has a volume and keeps it. One that ends with its
// task is waited for, as long as a stop takes: its caller may have the result
// already, and have asked for this guest next.
func (d *Daemon) holderOf(ctx context.Context, volume string, notice func(string) error) string {
	_, holder := d.volumeUsers(volume)
	if holder == "" {
		return ""
	}
	e, err := d.find(holder)
	if err != nil {
		return ""
	}
	gone := false
	there := func(i *api.Guest, k *keeper) bool {
		gone = k == nil
		return gone || i.GetState() != api.GuestState_GUEST_STATE_STOPPING && !i.GetSpec().GetEphemeral()
	}
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := e.wait(short, there); err != nil && ctx.Err() == nil {
		_ = notice("waiting for guest " + holder + " to end, which has volume " + volume)
		long, cancel := context.WithTimeout(ctx, guest.StopBound+guest.StopFlush)
		defer cancel()
		_, _ = e.wait(long, there)
	}
	if gone {
		return ""
	}
	return holder
}

// volumeUsers are the guests that name a volume, and the one that runs with it.
func (d *Daemon) volumeUsers(name string) (guests []string, holder string) {
	for _, e := range d.entries() {
		info, k, _ := e.get()
		if slices.ContainsFunc(info.GetSpec().GetVolumes(), func(v *api.VolumeMount) bool { return v.GetName() == name }) {
			guests = append(guests, e.name)
			if k != nil {
				holder = e.name
			}
		}
	}
	slices.Sort(guests)
	return guests, holder
}

// letGo waits for the guest that has a volume as a start does (holderOf), and, since
// it is its volume until then, for what becomes of each that ends with its task.
func (d *Daemon) letGo(ctx context.Context, volume string) {
	d.holderOf(ctx, volume, func(string) error { return nil })
	ctx, cancel := context.WithTimeout(ctx, guest.StopBound)
	defer cancel()
	guests, _ := d.volumeUsers(volume)
	for _, name := range guests {
		e, err := d.find(name)
		if err != nil {
			continue // it is gone
		}
		_, _ = e.wait(ctx, func(i *api.Guest, k *keeper) bool {
			return k != nil || i.GetState() != api.GuestState_GUEST_STATE_STOPPED || !i.GetSpec().GetEphemeral() || e.isOver()
		})
	}
}

// volumeHeld is why a volume is not removed, and what then can be done: another one,
// which is the cure of a start, is none.
func (d *Daemon) volumeHeld(volume, holder string) error {
	cause, _ := apart((&guest.VolumeBusyError{Volume: volume, Holder: holder}).Error())
	cure := "carrel rm --force " + holder + ", or carrel stop " + holder + " and then carrel volume rm --force " + volume
	if e, err := d.find(holder); err == nil {
		if info, _, _ := e.get(); info.GetSpec().GetEphemeral() {
			cure = "try again when its task has ended, or after carrel stop " + holder
		}
	}
	return api.NewError(connect.CodeFailedPrecondition, "volume_in_use", cause, cure)
}

func volumeBusy(err error) error {
	cause, cure := apart(err.Error())
	return api.NewError(connect.CodeFailedPrecondition, "volume_in_use", cause, cure)
}

// toVolume is what is known of a volume from outside.
func (d *Daemon) toVolume(name string) (*api.Volume, error) {
	dir := d.volumeDir(name)
	disk := policy.VolumeDisk(filepath.Dir(dir), name)
	fi, err := os.Lstat(disk)
	if err != nil {
		return nil, err
	}
	size, err := diskSize(disk, fi)
	if err != nil {
		return nil, err
	}
	v := &api.Volume{Name: name, SizeMib: uint32(size >> 20), UsedBytes: blocksOf(fi), Written: timestamppb.New(fi.ModTime())}
	v.Guests, v.Holder = d.volumeUsers(name)
	return v, nil
}

// CreateVolume implements DiskService.
func (s *diskService) CreateVolume(ctx context.Context, r *connect.Request[api.CreateVolumeRequest]) (*connect.Response[api.CreateVolumeResponse], error) {
	out, err := once(ctx, s.d, apiconnect.DiskServiceCreateVolumeProcedure, r.Msg, func(by made) (*api.CreateVolumeResponse, error) { return s.createVolume(ctx, r, by) })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

func (s *diskService) createVolume(ctx context.Context, r *connect.Request[api.CreateVolumeRequest], by made) (*api.CreateVolumeResponse, error) {
	rules := s.d.rulesNow()
	mib, err := rules.Volumes.CheckVolume(r.Msg.Name, r.Msg.SizeMib)
	if err != nil {
		return nil, refusal(err)
	}
	if err := s.d.room("make volume "+r.Msg.Name, s.d.guests, rules); err != nil {
		return nil, err
	}
	fresh, err := s.d.makeVolume(ctx, r.Msg.Name, mib, by)
	switch {
	case err != nil:
		return nil, refusal(err)
	case !fresh:
		return nil, api.NewError(connect.CodeAlreadyExists, "name_taken", "a volume named "+r.Msg.Name+" exists", "carrel volume ls shows it; carrel volume rm "+r.Msg.Name+" removes it with all that is in it")
	}
	v, err := s.d.toVolume(r.Msg.Name)
	if err != nil {
		return nil, refusal(err)
	}
	return &api.CreateVolumeResponse{Volume: v}, nil
}

// ListVolumes implements DiskService.
func (s *diskService) ListVolumes(context.Context, *connect.Request[api.ListVolumesRequest]) (*connect.Response[api.ListVolumesResponse], error) {
	names, err := s.d.volumeNames()
	if err != nil {
		return nil, refusal(err)
	}
	out := new(api.ListVolumesResponse)
	for _, n := range names {
		v, err := s.d.toVolume(n)
		if err != nil {
			s.d.log.Warn("look at a volume", "volume", n, "error", err)
			v = &api.Volume{Name: n}
		}
		out.Volumes = append(out.Volumes, v)
	}
	slices.SortFunc(out.Volumes, func(a, b *api.Volume) int { return cmp.Compare(a.Name, b.Name) })
	return connect.NewResponse(out), nil
}

// RemoveVolume implements DiskService.
func (s *diskService) RemoveVolume(ctx context.Context, r *connect.Request[api.RemoveVolumeRequest]) (*connect.Response[api.RemoveVolumeResponse], error) {
	if hypervisor.ValidName(r.Msg.Name) {
		s.d.letGo(ctx, r.Msg.Name)
	}
	if err := s.d.removeVolume(r.Msg.Name, r.Msg.Force); err != nil {
		return nil, refusal(err)
	}
	return connect.NewResponse(&api.RemoveVolumeResponse{}), nil
}

// removeVolume removes a volume: out of sight first, so that a crash leaves no
// half of it.
func (d *Daemon) removeVolume(name string, force bool) error {
	if !hypervisor.ValidName(name) {
		return &policy.Refusal{Code: "bad_name", Reason: fmt.Sprintf("%.60q is not a volume's name", name)}
	}
	d.volumeMu.Lock()
	defer d.volumeMu.Unlock()
	dir := d.volumeDir(name)
	if _, err := os.Lstat(dir); err != nil {
		return api.NewError(connect.CodeNotFound, "not_found", "there is no volume "+name, "carrel volume ls shows those that there are")
	}
	guests, holder := d.volumeUsers(name)
	if holder != "" {
		return d.volumeHeld(name, holder)
	}
	if len(guests) > 0 && !force {
		return api.NewError(connect.CodeFailedPrecondition, "in_use", "guest "+guests[0]+" is made with volume "+name, "carrel rm "+guests[0]+", or carrel volume rm --force "+name+": its next start then makes an empty one")
	}
	unlock, err := guest.LockVolume(dir, "")
	if busy := (*guest.VolumeBusyError)(nil); errors.As(err, &busy) {
		return volumeBusy(busy)
	} else if err != nil {
		return err
	}
	defer unlock()
	tmp, err := os.MkdirTemp(volumesIn(d.opts.Place.State), ".rm-"+name+"-")
	if err != nil {
		return err
	}
	if !lockedMoves {
		unlock() // who takes it now keeps it from being moved
	}
	if err := os.Rename(dir, filepath.Join(tmp, "v")); err != nil {
		os.Remove(tmp)
		return err
	}
	guest.Crash("volume: after the rename")
	d.log.Info("removed a volume", "volume", name)
	return os.RemoveAll(tmp)
}

// tidyVolumes removes what a crash left half made or half removed.
func (d *Daemon) tidyVolumes() error {
	es, err := os.ReadDir(volumesIn(d.opts.Place.State))
	if err != nil {
		return err
	}
	for _, e := range es {
		if e.Name()[0] == '.' {
			err = errors.Join(err, os.RemoveAll(filepath.Join(volumesIn(d.opts.Place.State), e.Name())))
		}
	}
	return err
}
