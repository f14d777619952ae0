package daemon

import (
	"context"
	"maps"
	"os"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

// source finds out what has changed and tells the events. Whoever changes
// something only says that there is something to look at, and waits for nothing;
// one goroutine looks, and compares with what it told last. What changes twice
// meanwhile is told once, as it is then.
type source struct {
	d *Daemon
	v *events

	mu      sync.Mutex
	guests  map[string]bool      // to be looked at
	tasks   map[string]*api.Task // accepted, and not told yet, by id
	order   []string             // of tasks
	images  bool
	pending chan struct{} // has an element if there is something

	// Of the one goroutine alone.
	told      map[string]*toldGuest
	toldImage map[string]*api.Image
	cut       bool // the log had no beginning, or had lost it, when the daemon started
}

// toldGuest is what was told of a guest last.
type toldGuest struct {
	e      *entry // nil: by a daemon before this one
	info   *api.Guest
	open   map[string]api.TaskState // tasks that were told and have not ended
	ended  []string                 // the last ones that were told to have
	known  map[string]bool          // by daemons before this one; nil after the first look
	oldest string                   // the oldest task in known
	edge   *edge                    // whose verdicts are followed
	egress uint64                   // the last verdict that was told
}

func newSource(d *Daemon, v *events) *source {
	return &source{
		d: d, v: v, guests: map[string]bool{}, tasks: map[string]*api.Task{}, pending: make(chan struct{}, 1),
		told: map[string]*toldGuest{}, toldImage: map[string]*api.Image{}, images: true,
	}
}

func (s *source) wakeLocked() {
	select {
	case s.pending <- struct{}{}:
	default:
	}
}

// changed says that a guest is to be looked at.
func (s *source) changed(name string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.guests[name] = true
	s.wakeLocked()
	s.mu.Unlock()
}

// accepted says that a task was accepted. It may have ended by now.
func (s *source) accepted(t *api.Task) {
	if s == nil {
		return
	}
	s.mu.Lock()
	if s.tasks[t.Id] == nil {
		s.tasks[t.Id] = t
		s.order = append(s.order, t.Id)
	}
	s.guests[t.Guest] = true
	s.wakeLocked()
	s.mu.Unlock()
}

// imagesChanged says that the images are to be looked at.
func (s *source) imagesChanged() {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.images = true
	s.wakeLocked()
	s.mu.Unlock()
}

// run tells what changes until ctx ends.
func (s *source) run(ctx context.Context) {
	if err := s.recall(ctx); err != nil && ctx.Err() == nil {
		s.d.log.Error("read the events that were told", "error", err)
	}
	s.tell(ctx, &api.Event{Kind: &api.Event_DaemonStarted{DaemonStarted: &api.DaemonStarted{Pid: int32(os.Getpid()), Version: s.d.opts.Version.GetVersion()}}})
	s.mu.Lock()
	for name := range s.told { // those that are gone, too
		s.guests[name] = true
	}
	s.mu.Unlock()
	for _, e := range s.d.entries() {
		s.changed(e.name)
	}
	for {
		s.mu.Lock()
		guests, tasks, order, images := s.guests, s.tasks, s.order, s.images
		s.guests, s.tasks, s.order, s.images = map[string]bool{}, map[string]*api.Task{}, nil, false
		s.mu.Unlock()
		for _, id := range order {
			s.task(ctx, tasks[id])
		}
		for _, name := range slices.Sorted(maps.Keys(guests)) {
			s.guest(ctx, name)
		}
		if images {
			s.image(ctx)
		}
		select {
		case <-s.pending:
		case <-ctx.Done():
			return
		}
	}
}

// tell keeps an event. One that cannot be kept is lost, and said in the log: the
// next one about the same thing shows it as it is then.
func (s *source) tell(ctx context.Context, ev *api.Event) {
	if err := s.v.append(ctx, ev); err != nil && ctx.Err() == nil {
		s.d.log.Error("keep an event", "guest", ev.Guest, "error", err)
	}
}

// maxRecalled is how many events a daemon that starts reads again. A guest that
// none of them is about is told anew.
const maxRecalled = 2048

// recall learns from the log what was told before this daemon started.
func (s *source) recall(ctx context.Context) error {
	first, last, err := s.v.log.Ends(ctx)
	if err != nil {
		return err
	}
	s.v.mu.Lock()
	s.v.last = max(s.v.last, last)
	s.v.mu.Unlock()
	after := max(first, last-min(last, maxRecalled)+1) - 1
	s.cut = last < first || after > first-1 || last-first+1 >= maxEvents
	for after < last {
		list, next, err := s.v.read(ctx, after, eventPage, "")
		if err != nil {
			return err
		}
		for _, ev := range list {
			s.recalled(ev)
		}
		if next == after {
			break
		}
		after = next
	}
	return nil
}

func (s *source) recalled(ev *api.Event) {
	if img := ev.GetImage(); img != nil {
		s.toldImage[img.Name] = img
	}
	if gone := ev.GetImageRemoved(); gone != nil {
		delete(s.toldImage, gone.Name)
	}
	if ev.Guest == "" {
		return
	}
	if ev.GetRemoved() != nil {
		delete(s.told, ev.Guest)
		return
	}
	g := s.of(ev.Guest)
	switch k := ev.Kind.(type) {
	case *api.Event_Changed:
		if g.info = k.Changed; g.info.KeeperPid == 0 {
			g.egress = 0 // the next egress process counts anew
		}
	case *api.Event_Task:
		g.note(k.Task)
		if g.known == nil {
			g.known, g.oldest = map[string]bool{}, k.Task.Id
		}
		g.known[k.Task.Id], g.oldest = true, min(g.oldest, k.Task.Id) // ids are in the order of their acceptance
	case *api.Event_Egress:
		g.egress = k.Egress.Sequence
	}
}

func (s *source) of(name string) *toldGuest {
	g := s.told[name]
	if g == nil {
		g = &toldGuest{open: map[string]api.TaskState{}}
		s.told[name] = g
	}
	return g
}

func finished(t *api.Task) bool {
	return t.State == api.TaskState_TASK_STATE_EXITED || t.State == api.TaskState_TASK_STATE_INTERRUPTED
}

// note remembers that a task was told as it is.
func (g *toldGuest) note(t *api.Task) {
	if !finished(t) {
		g.open[t.Id] = t.State
		return
	}
	delete(g.open, t.Id)
	if g.ended = append(g.ended, t.Id); len(g.ended) > maxEndedTold {
		g.ended = g.ended[1:]
	}
}

// maxEndedTold is how many ended tasks of a guest are remembered. Word of a
// task's acceptance may come after word of its end, but not long after.
const maxEndedTold = 256

// image tells what has changed of the images.
func (s *source) image(ctx context.Context) {
	all, err := s.d.opts.Images.List(ctx)
	if err != nil {
		s.d.log.Warn("list the images for their events", "error", err)
		return
	}
	now := map[string]*api.Image{}
	for _, i := range listed(all) {
		if i.LayersShared = 0; proto.Size(i) > maxEvent/2 { // what it shares changes with others
			i.Config, i.Parts = nil, nil
		}
		now[i.Name] = i
	}
	for _, name := range slices.Sorted(maps.Keys(s.toldImage)) {
		if now[name] == nil {
			s.tell(ctx, &api.Event{Kind: &api.Event_ImageRemoved{ImageRemoved: &api.ImageRemoved{Name: name}}})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if !proto.Equal(now[name], s.toldImage[name]) {
			s.tell(ctx, &api.Event{Kind: &api.Event_Image{Image: now[name]}})
		}
	}
	s.toldImage = now
}
