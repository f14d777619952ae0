package daemon

import (
	"context"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

// task tells a task unless it was told like that.
func (s *source) task(ctx context.Context, t *api.Task) {
	g := s.of(t.Guest)
	if was, open := g.open[t.Id]; open && was >= t.State || slices.Contains(g.ended, t.Id) {
		return
	}
	g.note(t)
	s.tell(ctx, &api.Event{Guest: t.Guest, Kind: &api.Event_Task{Task: shownTask(t)}})
}

// shownTask is a task without its environment, which may hold secrets, and
// bounded.
func shownTask(t *api.Task) *api.Task {
	t = proto.Clone(t).(*api.Task)
	if t.Spec != nil {
		if t.Spec.Env = nil; proto.Size(t) > maxEvent/2 {
			t.Spec.Argv = append(t.Spec.Argv[:1:1], "...")
		}
	}
	if proto.Size(t) > maxEvent/2 {
		t.Spec = nil
	}
	return t
}

// shownGuest is a guest as events show it.
func shownGuest(g *api.Guest) *api.Guest {
	g = proto.Clone(g).(*api.Guest)
	g.Tasks, g.Timings, g.HypervisorArgs = nil, nil, nil
	if proto.Size(g) > maxEvent/2 {
		g.Spec = &api.GuestSpec{Name: g.Name}
	}
	if proto.Size(g) > maxEvent/2 {
		g.Shares, g.Ports = nil, nil
	}
	return g
}

// guest tells what has changed of one guest.
func (s *source) guest(ctx context.Context, name string) {
	s.d.mu.Lock()
	e := s.d.table[name]
	s.d.mu.Unlock()
	g := s.told[name]
	if g != nil && (e == nil || g.e != nil && g.e != e) { // another guest may have the name by now
		delete(s.told, name)
		s.tell(ctx, &api.Event{Guest: name, Kind: &api.Event_Removed{Removed: new(api.GuestRemoved)}})
		g = nil
	}
	if e == nil {
		return
	}
	info, k, _ := e.get()
	fresh := g == nil || g.e == nil
	if fresh && g != nil && k != nil && info.State == api.GuestState_GUEST_STATE_STARTING {
		return // adopted: its keeper has not said yet that it is as it was
	}
	g = s.of(name)
	if g.info != nil && !proto.Equal(g.info.Started, info.Started) {
		g.egress = 0 // its egress process is another one
	}
	if now := shownGuest(info); !proto.Equal(now, g.info) {
		g.info = now
		s.tell(ctx, &api.Event{Guest: name, Kind: &api.Event_Changed{Changed: now}})
	}
	if g.e == nil {
		g.e = e
	}
	s.tasksOf(ctx, e, g, info, k, fresh)
	if out := e.edgeOf(); out != g.edge {
		if out != nil {
			if !fresh {
				g.egress = 0
			}
			after, known := g.egress, s.d.knownTasks(e)
			s.d.owned.Go(func() { s.verdicts(ctx, e, out, after, known) })
		}
		g.edge = out
	}
}

// tasksOf tells a guest's tasks. A keeper's own word has those that run; those
// that were told and are not among them have ended, or are a moment younger than
// that word. Without a keeper, and when this daemon looks first, all are known.
func (s *source) tasksOf(ctx context.Context, e *entry, g *toldGuest, info *api.Guest, k *keeper, fresh bool) {
	list := info.Tasks
	if fresh && k != nil {
		kctx, cancel := context.WithTimeout(ctx, keeperTime)
		all, err := s.d.tasks(kctx, e)
		late := kctx.Err() != nil
		cancel()
		switch {
		case err == nil:
			list = all
		case late: // the next look is the first again
			g.e = nil
			s.later(e.name)
			return
		}
	}
	seen := map[string]bool{}
	for _, t := range list {
		seen[t.Id] = true
		// Of what has ended only what was told before is news, or what ended while
		// no daemon ran; and not what ended before the log's beginning.
		if _, open := g.open[t.Id]; finished(t) && !open && (!fresh || g.known[t.Id] || s.cut && (g.oldest == "" || t.Id < g.oldest)) {
			continue
		}
		s.task(ctx, t)
	}
	if fresh {
		g.known = nil
	}
	for _, id := range slices.Sorted(maps.Keys(g.open)) {
		if seen[id] {
			continue
		}
		if k == nil {
			delete(g.open, id) // forgotten, with the oldest
			continue
		}
		kctx, cancel := context.WithTimeout(ctx, keeperTime)
		r, err := k.tasks.Wait(kctx, connect.NewRequest(&api.WaitTaskRequest{Guest: e.name, Task: id, TimeoutNanos: -1}))
		late := kctx.Err() != nil
		cancel()
		switch {
		case err == nil:
			s.task(ctx, r.Msg.Task)
		case connect.CodeOf(err) == connect.CodeNotFound:
			delete(g.open, id)
		case late:
			s.later(e.name)
			return
		}
	}
}

// keeperTime is how long one guest's keeper may take to answer. All guests' events
// wait for it: a keeper that hangs, or was stopped, must not hold them up for ever.
const keeperTime = 5 * time.Second

// later looks at a guest again after a while in which the others have their turn.
func (s *source) later(name string) {
	time.AfterFunc(keeperTime, func() { s.changed(name) })
}
