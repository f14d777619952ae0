package daemon

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/daemon/store"
)

// The index follows the guests' journals: a task is durable when its keeper has
// accepted it, and the index hears of it without anybody's waiting. Before a
// guest's folder goes, the index has the last word on each of its tasks.

// openIndex opens the index, or refuses the start with what would mend it. A
// full disk alone refuses nothing: guests can still be stopped and removed.
func (d *Daemon) openIndex() error {
	s, err := store.Open(d.opts.Place.State)
	switch {
	case errors.Is(err, store.ErrNoRoom):
		d.log.Error("there is no index, since the disk is full", "error", err)
		return nil
	case err != nil:
		return err
	}
	guests, _ := os.ReadDir(d.guests) // what hinders that is told by who needs them
	switch {
	case s.Rebuilt == "":
	case s.First && len(guests) == 0:
		d.log.Info("the index is begun")
	default:
		d.log.Warn("the index is a new one", "why", s.Rebuilt)
	}
	d.index = s
	return nil
}

// known is what the index should know of a guest: hist may be nil.
func known(info *api.Guest, hist *guest.History) store.Known {
	k := store.Known{Guest: info.Name}
	if info.Created != nil {
		k.Created = info.Created.AsTime()
	}
	byID := map[string]*api.Task{}
	for _, t := range info.Tasks {
		k.Tasks = append(k.Tasks, row(t))
		byID[t.Id] = t
	}
	if hist != nil {
		for _, key := range slices.Sorted(maps.Keys(hist.Keys)) {
			made := hist.Keys[key]
			if t := byID[made.Task]; t != nil {
				k.Keys = append(k.Keys, answered(key, made.Request, false, t))
			}
		}
	}
	return k
}

// maxArgvKept bounds what is kept of a command line once its guest is gone, in
// bytes.
const maxArgvKept = 1 << 10

// row is a task as the index has it. It outlives the guest, and so has nothing of
// the environment, which may hold what the user gave with -e.
func row(t *api.Task) store.Task {
	brief := proto.Clone(t).(*api.Task)
	if t.Spec != nil {
		brief.Spec = &api.TaskSpec{Workdir: t.Spec.Workdir, User: t.Spec.User}
		n := 0
		for _, a := range t.Spec.Argv {
			if n += len(a); n > maxArgvKept {
				brief.Spec.Argv = append(brief.Spec.Argv, "...")
				break
			}
			brief.Spec.Argv = append(brief.Spec.Argv, a)
		}
	}
	b, err := proto.Marshal(brief)
	if err != nil { // only invalid UTF-8 does this, and the API refuses it
		b = nil
	}
	return store.Task{ID: t.Id, Guest: t.Guest, State: store.State(t.State), Record: b}
}

// learned tells a new index all that a guest's folder says, and any other one
// that the guest is there. Nobody waits for it.
func (d *Daemon) learned(ctx context.Context, info *api.Guest, hist *guest.History) {
	if d.index == nil {
		return
	}
	if d.index.Rebuilt == "" {
		hist, info = nil, &api.Guest{Name: info.Name, Created: info.Created}
	}
	d.index.Later(ctx, known(info, hist))
}

// settled tells the index how the tasks of a guest ended whose keeper is gone.
func (d *Daemon) settled(ctx context.Context, info *api.Guest) {
	d.index.Settle(ctx, info.Name, func(id string) (store.Task, bool) {
		for _, t := range info.Tasks {
			if t.Id == id {
				return row(t), true
			}
		}
		return store.Task{}, false
	})
}

// lastWord gives the index the last word on a guest, before its folder goes by
// discard. A disk that is full must not keep anybody from making room: then the
// folder goes first.
func (d *Daemon) lastWord(name, cause string, discard func() error) error {
	info, hist, err := guest.Load(filepath.Join(d.guests, name))
	if err != nil { // it is damaged, or gone
		info, hist = &api.Guest{Name: name}, nil
	}
	last := func() error {
		bad, err := d.index.Removed(context.Background(), known(info, hist), func(t store.Task) store.Task { return interrupted(t, cause) })
		for _, c := range bad {
			d.log.Error("a task has two endings", "guest", name, "task", c.ID, "index", c.Was, "journal", c.Now)
		}
		return err
	}
	err = last()
	if errors.Is(err, store.ErrClosed) {
		return err // the next daemon removes it
	}
	guest.Crash("discard: the index has heard of it")
	if derr := discard(); derr != nil && !errors.Is(derr, guest.ErrLeftOver) {
		return derr
	} else if errors.Is(err, store.ErrNoRoom) {
		err = last()
	}
	if err != nil && !errors.Is(err, store.ErrNone) {
		d.log.Error("the index does not know how the tasks of a removed guest ended", "guest", name, "error", err)
	}
	return nil
}

// interrupted is the ending of a task of which no journal says one.
func interrupted(t store.Task, cause string) store.Task {
	a := new(api.Task)
	if err := proto.Unmarshal(t.Record, a); err != nil {
		a = &api.Task{Id: t.ID, Guest: t.Guest}
	}
	a.State, a.Ended, a.Ending = api.TaskState_TASK_STATE_INTERRUPTED, timestamppb.Now(), &api.Ending{Status: guest.StatusOurs, Cause: cause}
	return row(a)
}

// missing settles the tasks of guests that the index knows and whose folder is
// gone: somebody removed it behind our back.
func (d *Daemon) missing(ctx context.Context) {
	names, err := d.index.Guests(ctx)
	if err != nil {
		if !errors.Is(err, store.ErrNone) {
			d.log.Error("ask the index for its guests", "error", err)
		}
		return
	}
	for name := range names {
		if _, err := os.Lstat(filepath.Join(d.guests, name)); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		d.log.Warn("a guest's folder is gone", "guest", name)
		d.lastWord(name, "the guest's folder is gone from "+d.guests, func() error { return nil })
	}
}

// allTasks returns the tasks of all guests, and those of removed guests that are
// remembered, in the order of their acceptance: the last 10,000.
func (d *Daemon) allTasks(ctx context.Context) ([]*api.Task, error) {
	by := map[string]*api.Task{}
	rows, err := d.index.Tasks(ctx, "", 10_000)
	if err != nil {
		return nil, indexError(err)
	}
	for _, r := range rows {
		t := new(api.Task)
		if err := proto.Unmarshal(r.Record, t); err != nil || t.Id != r.ID {
			d.log.Error("a task of the index cannot be read", "task", r.ID, "error", err)
			continue
		}
		by[t.Id] = t
	}
	for _, e := range d.entries() { // who has the guest knows better
		list, err := d.tasks(ctx, e)
		if err != nil {
			return nil, err
		}
		for _, t := range list {
			by[t.Id] = t
		}
	}
	ids := slices.Sorted(maps.Keys(by))
	out := make([]*api.Task, 0, len(ids))
	for _, id := range ids[max(0, len(ids)-10_000):] {
		out = append(out, by[id])
	}
	return out, nil
}
