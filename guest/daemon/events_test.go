package daemon

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

func told(t *testing.T, v *events, guest string, n int) {
	t.Helper()
	for i := range n {
		ev := &api.Event{Guest: guest, Kind: &api.Event_Task{Task: &api.Task{Id: fmt.Sprint(guest, i)}}}
		if err := v.append(t.Context(), ev); err != nil {
			t.Error(err)
		}
	}
}

var errEnough = errors.New("enough")

// collect follows events until it has n.
func collect(ctx context.Context, v *events, after uint64, guest string, n int) (list []*api.Event, err error) {
	_, err = v.follow(ctx, after, true, guest, func(ev *api.Event) error {
		if list = append(list, ev); len(list) == n {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return list, err
}

// A reader that goes on where it was has every event once, in order, whether it
// was kept or comes later; one that was away too long is told what is missing.
func TestEventsResume(t *testing.T) {
	v := newEvents(&memoryEvents{max: 300})
	told(t, v, "a", 200)
	list, err := collect(t.Context(), v, 0, "", 150)
	if err != nil || list[0].Sequence != 1 || list[149].Sequence != 150 || list[0].Time == nil {
		t.Fatal(err, len(list))
	}
	go told(t, v, "b", 60)
	more, err := collect(t.Context(), v, 150, "", 110)
	if err != nil {
		t.Fatal(err)
	}
	for i, ev := range more {
		if ev.Sequence != uint64(151+i) {
			t.Fatalf("event %d came as number %d", ev.Sequence, 151+i)
		}
	}
	// 460 in all, of which 300 are kept.
	told(t, v, "c", 200)
	late, err := collect(t.Context(), v, 100, "", 2)
	if err != nil || late[0].GetGap().GetFirst() != 101 || late[0].Sequence != 160 || late[1].Sequence != 161 {
		t.Fatal(err, late)
	}
	// The control: one that missed nothing is told of no gap.
	if list, err = collect(t.Context(), v, 160, "", 1); err != nil || list[0].GetGap() != nil || list[0].Sequence != 161 {
		t.Fatal(err, list)
	}
	if list, err = collect(t.Context(), v, 0, "c", 200); err != nil || list[0].Guest != "c" {
		t.Fatal(err, list)
	}
}

// A reader that does not read holds up neither the writer nor other readers.
func TestEventsSlowReader(t *testing.T) {
	v := newEvents(&memoryEvents{max: 1000})
	ctx, cancel := context.WithCancel(t.Context())
	told(t, v, "a", 1)
	began, stuck, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var slow []uint64
	go func() {
		defer close(done)
		v.follow(ctx, 0, true, "", func(ev *api.Event) error {
			if slow = append(slow, ev.Sequence); len(slow) == 1 {
				close(began)
				<-stuck
			}
			if ev.Sequence == 5001 {
				return errEnough
			}
			return nil
		})
	}()
	<-began
	told(t, v, "b", 5000) // would block for ever if it were waited for
	if list, err := collect(t.Context(), v, 5000, "", 1); err != nil || list[0].Sequence != 5001 {
		t.Fatal(err)
	}
	close(stuck)
	<-done
	cancel()
	// What it had missed came as one gap, and then all that is kept.
	jumps := 0
	for i := 1; i < len(slow); i++ {
		if slow[i] != slow[i-1]+1 {
			jumps++
		}
	}
	if n := len(slow); slow[0] != 1 || slow[n-1] != 5001 || jumps != 1 || n < 1002 || n > 1002+eventPage {
		t.Fatalf("%d events with %d gaps, from %d to %d", n, jumps, slow[0], slow[n-1])
	}
}

func TestEventsBounds(t *testing.T) {
	v := newEvents(&memoryEvents{max: 10})
	told(t, v, "a", 3)
	code := func(err error) string {
		var ce *connect.Error
		if !errors.As(err, &ce) || len(ce.Details()) == 0 {
			return fmt.Sprint(err)
		}
		d, _ := ce.Details()[0].Value()
		return d.(*api.ErrorDetail).Code
	}
	if got := code(v.enter(4)); got != "bad_offset" {
		t.Error("a number that is still to come:", got)
	}
	for range maxWatchers {
		if err := v.enter(3); err != nil {
			t.Fatal(err)
		}
	}
	if got := code(v.enter(3)); got != "too_many_watchers" {
		t.Error(got)
	}
	v.leave()
	if err := v.enter(3); err != nil {
		t.Error("control:", err)
	}
	if err := v.append(t.Context(), &api.Event{Guest: "a", Kind: &api.Event_Task{Task: &api.Task{Id: string(make([]byte, maxEvent))}}}); err == nil {
		t.Error("an event without bounds was kept")
	}
	// Followers end with the daemon, and say so.
	ended := make(chan error)
	go func() {
		_, err := v.follow(t.Context(), 3, true, "", func(*api.Event) error { return nil })
		ended <- err
	}()
	close(v.over)
	if got := code(<-ended); got != "closing" {
		t.Error(got)
	}
}

// A List waits for the next event, and no longer than it was told to.
func TestEventsList(t *testing.T) {
	v := newEvents(&memoryEvents{max: 10})
	s := &eventService{&Daemon{events: v}}
	told(t, v, "a", 3)
	list := func(r *api.ListEventsRequest) *api.ListEventsResponse {
		t.Helper()
		out, err := s.List(t.Context(), connect.NewRequest(r))
		if err != nil {
			t.Fatal(err)
		}
		return out.Msg
	}
	if r := list(&api.ListEventsRequest{Limit: 2}); len(r.Events) != 2 || r.Next != 2 {
		t.Error(r)
	}
	if r := list(&api.ListEventsRequest{Guest: "b"}); len(r.Events) != 0 || r.Next != 3 {
		t.Error(r)
	}
	if r := list(&api.ListEventsRequest{After: 3, TimeoutNanos: 1}); len(r.Events) != 0 || r.Next != 3 {
		t.Error(r)
	}
	go told(t, v, "b", 1)
	if r := list(&api.ListEventsRequest{After: 3, TimeoutNanos: int64(time.Hour)}); len(r.Events) != 1 || r.Events[0].Guest != "b" || r.Next != 4 {
		t.Error(r)
	}
	for _, r := range []*api.ListEventsRequest{{Limit: -1}, {Limit: maxListed + 1}, {Guest: "../x"}, {After: 1 << 63}} {
		if _, err := s.List(t.Context(), connect.NewRequest(r)); err == nil {
			t.Error("accepted:", r)
		}
	}
}

// A guest that makes verdicts without end fills no more of the log than its part.
func TestEventsBucket(t *testing.T) {
	now := time.Now()
	b := &bucket{left: verdictBurst, at: now}
	pass := func(n int) (passed int) {
		for range n {
			if b.take(now) {
				passed++
			}
		}
		return passed
	}
	if n := pass(5 * verdictBurst); n != verdictBurst {
		t.Error(n, "at once")
	}
	now = now.Add(2 * time.Second)
	if n := pass(1000); n != 2*verdictRate {
		t.Error(n, "in two seconds")
	}
	now = now.Add(time.Hour)
	if n := pass(5 * verdictBurst); n != verdictBurst {
		t.Error(n, "after an hour")
	}
}

// What was told before is not told again by the next daemon, and what ended
// meanwhile is.
func TestEventsRecall(t *testing.T) {
	v := newEvents(&memoryEvents{max: 100})
	d := &Daemon{table: map[string]*entry{}, events: v}
	task := func(id string, s api.TaskState) *api.Event {
		return &api.Event{Guest: "a", Kind: &api.Event_Task{Task: &api.Task{Id: id, Guest: "a", State: s}}}
	}
	info := &api.Guest{Name: "a", State: api.GuestState_GUEST_STATE_READY, KeeperPid: 7}
	for _, ev := range []*api.Event{
		{Guest: "a", Kind: &api.Event_Changed{Changed: info}},
		task("01", api.TaskState_TASK_STATE_QUEUED), task("01", api.TaskState_TASK_STATE_EXITED), task("02", api.TaskState_TASK_STATE_QUEUED),
		{Guest: "a", Kind: &api.Event_Egress{Egress: &api.EgressEvent{Sequence: 9}}},
		{Guest: "b", Kind: &api.Event_Changed{Changed: &api.Guest{Name: "b"}}},
		{Guest: "c", Kind: &api.Event_Changed{Changed: &api.Guest{Name: "c"}}},
		{Guest: "c", Kind: &api.Event_Removed{Removed: new(api.GuestRemoved)}},
	} {
		if err := v.append(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
	}
	s := newSource(d, v)
	if err := s.recall(t.Context()); err != nil {
		t.Fatal(err)
	}
	if g := s.told["a"]; g == nil || len(g.open) != 1 || len(g.known) != 2 || g.oldest != "01" || g.egress != 9 || s.told["c"] != nil {
		t.Fatalf("%+v", s.told)
	}
	e := newEntry("a", &api.Guest{Name: "a", State: api.GuestState_GUEST_STATE_STOPPED, Tasks: []*api.Task{
		{Id: "01", Guest: "a", State: api.TaskState_TASK_STATE_EXITED}, {Id: "02", Guest: "a", State: api.TaskState_TASK_STATE_INTERRUPTED}, {Id: "03", Guest: "a", State: api.TaskState_TASK_STATE_EXITED},
	}})
	d.table["a"] = e
	s.guest(t.Context(), "a")
	s.guest(t.Context(), "b")
	s.guest(t.Context(), "a") // nothing new
	list, err := collect(t.Context(), v, 8, "", 4)
	if err != nil {
		t.Fatal(err)
	}
	if list[0].GetChanged().GetState() != api.GuestState_GUEST_STATE_STOPPED || list[1].GetTask().GetId() != "02" || list[2].GetTask().GetId() != "03" || list[3].GetRemoved() == nil {
		t.Fatal(list)
	}
	if last, _ := v.state(); last != 12 {
		t.Fatal(last, "events")
	}
	// Another guest of the name is another guest.
	d.table["a"] = newEntry("a", &api.Guest{Name: "a"})
	s.guest(t.Context(), "a")
	if list, err = collect(t.Context(), v, 12, "", 2); err != nil || list[0].GetRemoved() == nil || list[1].GetChanged() == nil {
		t.Fatal(err, list)
	}
}

// Events hold neither a task's environment, where secrets may be, nor more than
// their bound.
func TestEventsShow(t *testing.T) {
	big := string(make([]byte, 2*maxEvent))
	for name, spec := range map[string]*api.TaskSpec{
		"env": {Argv: []string{"x"}, Env: []string{"TOKEN=secret"}}, "argv": {Argv: []string{"x", big}}, "first": {Argv: []string{big}},
	} {
		task := &api.Task{Id: "1", Spec: spec}
		got := shownTask(task)
		if len(got.GetSpec().GetEnv()) > 0 || len(got.String()) > maxEvent {
			t.Error(name, "is shown whole")
		}
		if task.Spec.Argv == nil || len(spec.Argv) == 2 && spec.Argv[1] != big {
			t.Error(name, "was changed")
		}
	}
	g := shownGuest(&api.Guest{Name: "a", HypervisorArgs: []string{"x"}, Tasks: []*api.Task{{}}, Spec: &api.GuestSpec{Name: "a", Image: big}})
	if g.HypervisorArgs != nil || g.Tasks != nil || len(g.Spec.Image) > 0 || g.Name != "a" {
		t.Error(g)
	}
}

// Of a long log only its end is read again.
func TestEventsRecallBound(t *testing.T) {
	for n, want := range map[int]struct{ last, known int }{0: {0, 0}, 1: {1, 1}, maxRecalled: {maxRecalled, maxRecalled}, maxRecalled + 500: {maxRecalled + 500, maxRecalled}} {
		v := newEvents(&memoryEvents{max: maxEvents})
		told(t, v, "a", n)
		s := newSource(&Daemon{events: v}, newEvents(v.log))
		if err := s.recall(t.Context()); err != nil {
			t.Fatal(err)
		}
		last, _ := s.v.state()
		known := 0
		if g := s.told["a"]; g != nil {
			known = len(g.known)
		}
		if int(last) != want.last || known != want.known || s.cut != (n == 0 || n > maxRecalled) {
			t.Errorf("%d events: the last is %d, %d are known, cut %v", n, last, known, s.cut)
		}
	}
}

// Who comes back with the number of the last event, before the log was read again,
// goes on after it.
func TestEventsAfterRestart(t *testing.T) {
	v := newEvents(&memoryEvents{max: 100})
	told(t, v, "a", 7)
	next := newEvents(v.log)
	if err := next.enter(7); err != nil {
		t.Fatal(err)
	}
	if err := next.enter(8); err == nil {
		t.Fatal("an event that never was is gone on after")
	}
}

// hung is a keeper that takes calls and answers none.
type hung struct{ apiconnect.TaskServiceClient }

func (hung) Wait(ctx context.Context, _ *connect.Request[api.WaitTaskRequest]) (*connect.Response[api.WaitTaskResponse], error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hung) List(ctx context.Context, _ *connect.Request[api.ListTasksRequest]) (*connect.Response[api.ListTasksResponse], error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// A keeper that hangs holds up the events of the other guests a moment, and is
// looked at again.
func TestEventsPastHungKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		v := newEvents(&memoryEvents{max: 100})
		d := &Daemon{events: v, table: map[string]*entry{}}
		s := newSource(d, v)
		e := newEntry("a", &api.Guest{Name: "a", State: api.GuestState_GUEST_STATE_READY})
		e.keeper = &keeper{tasks: hung{}}
		d.table["a"] = e
		for _, fresh := range []bool{true, false} {
			g := s.of("a")
			if g.open["01"] = api.TaskState_TASK_STATE_RUNNING; !fresh {
				g.e = e
			}
			began := time.Now()
			s.guest(ctx, "a")
			if took := time.Since(began); took > keeperTime || ctx.Err() != nil {
				t.Errorf("first %v: the others waited %v", fresh, took)
			}
			if (g.e == nil) != fresh || len(g.open) != 1 {
				t.Errorf("first %v: %+v", fresh, g)
			}
			time.Sleep(2 * keeperTime)
			s.mu.Lock()
			if !s.guests["a"] {
				t.Errorf("first %v: it is not looked at again", fresh)
			}
			clear(s.guests)
			s.mu.Unlock()
		}
	})
}

// One guest's many events push out its own: another's stay, and who reads on is
// told of the gap; who follows the quiet guest alone hears of one gap at most
// between two of its events.
func TestEventsFairShare(t *testing.T) {
	v := newEvents(&memoryEvents{max: 40, own: 5})
	told(t, v, "quiet", 4)
	told(t, v, "loud", 100)
	told(t, v, "quiet", 1)
	told(t, v, "loud", 100)
	list, err := collect(t.Context(), v, 2, "", 40)
	if err != nil {
		t.Fatal(err)
	}
	next, gaps, quiet := uint64(2), 0, 0
	for _, ev := range list {
		if g := ev.GetGap(); g != nil {
			if gaps++; g.First != next+1 || ev.Sequence < g.First {
				t.Fatalf("a gap from %d to %d after %d", g.First, ev.Sequence, next)
			}
		} else if ev.Sequence != next+1 {
			t.Fatalf("event %d comes after %d, and no gap is told", ev.Sequence, next)
		}
		if next = ev.Sequence; ev.Guest == "quiet" {
			quiet++
		}
	}
	if quiet != 3 || gaps == 0 || next != 205 {
		t.Errorf("%d events of the quiet guest, %d gaps, up to %d", quiet, gaps, next)
	}
	list, err = collect(t.Context(), v, 1, "quiet", 5)
	if err != nil || len(list) != 5 || list[3].GetGap().GetFirst() != 5 || list[3].Sequence != 104 || list[4].Sequence != 105 {
		t.Error(err, list)
	}
}
