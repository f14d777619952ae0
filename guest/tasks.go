package guest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/oklog/ulid/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// task is one task of a keeper: live, or of an earlier run of the guest.
type task struct {
	id  string // never changes, so that it is read without mu
	mu  sync.Mutex
	now *api.Task

	done chan struct{} // closed when it has its ending
	// ended is closed when nothing of it runs any more, before its changes are
	// brought over.
	ended chan struct{}
	dir   string // its spool
	kept  int64  // bytes of it on the disk, once the task has ended
	// Of a live task only:
	spool   *spool
	in      *input
	ctx     context.Context // ends when stop is called
	stop    func()          // ends it although it does not want to: it is interrupted
	notices int             // lines of ours; guarded by mu
}

func endedTask(t *api.Task, dir string) *task {
	done := make(chan struct{})
	close(done)
	return &task{id: t.Id, now: t, done: done, ended: done, dir: dir}
}

func (t *task) get() *api.Task {
	t.mu.Lock()
	defer t.mu.Unlock()
	return proto.Clone(t.now).(*api.Task)
}

// over says whether the task has its ending.
func (t *task) over() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

func (t *task) set(f func(*api.Task)) *api.Task {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(t.now)
	return proto.Clone(t.now).(*api.Task)
}

// Start implements TaskService: the task is on disk before this answers.
func (k *Keeper) Start(_ context.Context, r *connect.Request[api.StartTaskRequest]) (*connect.Response[api.StartTaskResponse], error) {
	spec, err := k.complete(r.Msg.Spec)
	if err == nil {
		err = checkTask(spec)
	}
	if err != nil {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_task", err.Error(), "")
	}
	if len(r.Msg.IdempotencyKey) > 128 {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_task", "the idempotency key is longer than 128 bytes", "")
	}
	made := Keyed{}
	if r.Msg.IdempotencyKey != "" {
		if made.Request, err = digestTask(r.Msg); err != nil {
			return nil, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if old, ok := k.keys[r.Msg.IdempotencyKey]; ok && r.Msg.IdempotencyKey != "" {
		if t := k.tasks[old.Task]; t != nil {
			if !old.Is(made.Request) {
				return nil, Reused()
			}
			return connect.NewResponse(&api.StartTaskResponse{Task: t.get()}), nil
		}
	}
	if k.info.State == api.GuestState_GUEST_STATE_STOPPING {
		return nil, k.leaving()
	}
	if k.g == nil || k.info.State != api.GuestState_GUEST_STATE_READY {
		return nil, api.NewError(connect.CodeFailedPrecondition, "not_running", "guest "+k.info.Name+" is not running", "carrel start "+k.info.Name)
	}
	if k.warm {
		return nil, api.NewError(connect.CodeFailedPrecondition, "not_running", "guest "+k.info.Name+" is nobody's yet", "")
	}
	if n := k.liveLocked(); n >= MaxTasks {
		return nil, api.NewError(connect.CodeResourceExhausted, "too_many_tasks", fmt.Sprintf("%d tasks run in guest %s, which is the limit", n, k.info.Name), "wait for one to end")
	}
	end, ok := k.rest.hold() // as long as the task lives
	if !ok {
		return nil, k.leaving()
	}
	accepted := false
	defer func() {
		if !accepted {
			end()
		}
	}()
	id := ulid.Make().String()
	t := &task{id: id, done: make(chan struct{}), ended: make(chan struct{}), in: newInput(), now: &api.Task{
		Id: id, Guest: k.info.Name, Spec: spec,
		State: api.TaskState_TASK_STATE_QUEUED, Created: timestamppb.Now(),
	}}
	var stop context.CancelCauseFunc
	t.ctx, stop = context.WithCancelCause(context.Background())
	t.stop = func() { stop(errors.New("the task was cancelled and did not end by a signal")) }
	t.dir = k.spoolDir(t.id)
	if t.spool, err = newSpool(t.dir, SpoolMax); err != nil {
		os.RemoveAll(t.dir)
		return nil, api.NewError(connect.CodeInternal, "disk", "the task's output cannot be kept: "+err.Error(), "make room on the disk that holds "+k.dir)
	}
	Crash("task: before it is recorded")
	made.Task = t.id
	rec := taskRecord(t.now, r.Msg.IdempotencyKey)
	rec.Request = made.Request
	if err := k.journal.add(rec); err != nil {
		t.spool.close()
		os.RemoveAll(t.dir)
		cure := "make room on the disk that holds " + k.dir
		if errors.Is(err, errBroken) {
			cure = "see to the disk that holds " + k.dir + ", then: carrel stop " + k.info.Name + ", carrel start " + k.info.Name
		}
		return nil, api.NewError(connect.CodeInternal, "disk", "the task cannot be recorded: "+err.Error(), cure)
	}
	if r.Msg.IdempotencyKey != "" {
		k.keys[r.Msg.IdempotencyKey] = made
	}
	k.tasks[t.id] = t
	k.order = append(k.order, t.id)
	if k.main == "" {
		k.main = t.id
	}
	answer := t.get()
	Crash("task: recorded, before it runs")
	accepted = true
	k.running.Add(1)
	go k.run(k.g, t, end)
	k.changedLocked()
	return connect.NewResponse(&api.StartTaskResponse{Task: answer}), nil
}

func (k *Keeper) liveLocked() (n int) {
	for _, t := range k.tasks {
		if !t.over() {
			n++
		}
	}
	return n
}

// forgetLocked drops the oldest ended tasks, and their output, beyond those
// that are remembered, and rewrites a journal that has grown large.
func (k *Keeper) forgetLocked() {
	for i := 0; len(k.order) > keepEnded && i < len(k.order); {
		id := k.order[i]
		if t := k.tasks[id]; !t.over() || id == k.main {
			i++
			continue
		}
		delete(k.tasks, id)
		maps.DeleteFunc(k.keys, func(_ string, v Keyed) bool { return v.Task == id })
		k.order = append(k.order[:i], k.order[i+1:]...)
		os.RemoveAll(k.spoolDir(id))
	}
	var kept int64
	for _, id := range slices.Backward(k.order) {
		t := k.tasks[id]
		if kept += t.kept; kept > SpoolsMax && t.kept > 0 {
			kept -= t.kept
			t.kept = 0
			if err := emptySpool(t.dir); err != nil {
				k.log.Error("drop old output", "task", id, "error", err)
			}
		}
	}
	if k.journal.large() {
		k.rewrite.Lock()
		defer k.rewrite.Unlock()
		h := &History{Keys: k.keys, last: &guestRecord{State: "ready"}, lastTime: time.Now().UTC()}
		for _, id := range k.order {
			h.Tasks = append(h.Tasks, k.tasks[id].get())
		}
		if err := k.journal.shrink(h); err != nil {
			k.log.Error("shrink the journal", "error", err)
			return
		}
		kept := map[string]bool{}
		for _, t := range h.Tasks {
			kept[t.Id] = true
		}
		k.order = slices.DeleteFunc(k.order, func(id string) bool {
			if !kept[id] {
				delete(k.tasks, id)
				os.RemoveAll(k.spoolDir(id))
			}
			return !kept[id]
		})
	}
}

// run takes one task from queued to its one ending, and then ends its hold on the
// guest.
func (k *Keeper) run(g *Guest, t *task, end func()) {
	defer k.running.Done()
	defer end()
	begun := time.Now()
	k.record(t, k.journal.note, func(a *api.Task) { a.State, a.Started = api.TaskState_TASK_STATE_RUNNING, timestamppb.Now() })
	// Never the environment: it may hold what the user gave with -e.
	k.say("task.started", map[string]any{"task": t.id, "argv": t.now.Spec.Argv, "user": t.now.Spec.User})
	e := func() (e *api.Ending) {
		defer func() { // a fault in our own code ends this guest, no other
			if p := recover(); p != nil {
				k.log.Error("panic", "task", t.id, "panic", p)
				g.fail(fmt.Sprintf("the keeper failed inside: %v", p))
				g.vm.Kill()
				e = &api.Ending{Status: StatusOurs, Cause: g.Cause()}
			}
		}()
		g.rest.awake(context.Background()) // which is bounded
		k.shares.taskBegins(t.id)
		defer k.shares.taskEnds(t.id)
		return g.Exec(t.ctx, t.id, t.now.Spec, t.spool, t.in)
	}()
	close(t.ended)
	k.trace.task("task runs", begun)
	k.outside.settle() // set before a task runs
	over := time.Now()
	k.importAfter(g, t)
	k.trace.task("changes brought over", over)
	select {
	case <-g.Gone(): // whoever is told of this ending must not find the guest ready
		k.update(func(i *api.Guest) { i.State = api.GuestState_GUEST_STATE_STOPPING })
	default:
	}
	Crash("task: ended, before its output is whole")
	sealed := time.Now()
	if err := t.spool.seal(); err != nil {
		k.log.Error("make the output durable", "task", t.id, "error", err)
	}
	Crash("task: ended, before that is recorded")
	last := k.record(t, k.journal.add, func(a *api.Task) {
		a.State, a.Ended, a.Ending = api.TaskState_TASK_STATE_EXITED, timestamppb.Now(), e
		if e.Status == StatusOurs && e.Cause != "" {
			a.State = api.TaskState_TASK_STATE_INTERRUPTED
		}
	})
	k.trace.task("end recorded", sealed)
	e = last.Ending
	k.say("task.ended", map[string]any{"task": last.Id, "status": e.Status, "signal": e.Signal, "cause": e.Cause})
	k.log.Info("task ended", "task", last.Id, "state", last.State, "status", e.Status)
	Crash("task: its end recorded, before it is told")
	close(t.done)
	t.spool.retire()
	k.mu.Lock()
	t.kept = t.spool.size()
	k.forgetLocked()
	k.changedLocked()
	k.mu.Unlock()
}

// importAfter brings over what a task may have changed in the guest's reviews,
// before anybody is told that it has ended.
func (k *Keeper) importAfter(g *Guest, t *task) {
	if !k.shares.hasReviews() {
		return
	}
	select {
	case <-g.Gone(): // there is nobody to ask
		return
	default:
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), importTimeout+sessionTimeout, errors.New("it took too long"))
	defer cancel()
	if err := k.shares.imports.all(ctx, g, t.id, false); err != nil {
		k.log.Warn("import", "task", t.id, "error", err)
		t.spool.note([]byte("what was changed could not be read whole: " + wire.Text(err.Error(), wire.MaxText)))
	}
}

// record changes a task's state, in the journal and then in memory. If the
// journal cannot be written the task goes on. A later reader of the journal sees
// it as interrupted, so nobody is told of another ending now.
func (k *Keeper) record(t *task, write func(*record) error, f func(*api.Task)) *api.Task {
	k.rewrite.RLock() // a journal is not rewritten between the two
	defer k.rewrite.RUnlock()
	next := t.get()
	f(next)
	brief := proto.Clone(next).(*api.Task)
	brief.Spec = nil // said once, when the task was accepted
	if err := write(taskRecord(brief, "")); err != nil {
		k.log.Error("journal", "task", next.Id, "error", err)
		if next.State == api.TaskState_TASK_STATE_EXITED {
			interrupt(next, fmt.Sprintf("it ended with status %d, which could not be written down: %v", next.Ending.GetStatus(), err))
		}
	}
	return t.set(func(a *api.Task) {
		proto.Reset(a)
		proto.Merge(a, next)
	})
}

// List implements TaskService.
func (k *Keeper) List(context.Context, *connect.Request[api.ListTasksRequest]) (*connect.Response[api.ListTasksResponse], error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := new(api.ListTasksResponse)
	for _, id := range k.order {
		out.Tasks = append(out.Tasks, k.tasks[id].get())
	}
	return connect.NewResponse(out), nil
}

// Bounds of a task's request, all in bytes or counts.
const (
	maxArgs     = 4096
	maxArgBytes = 512 << 10
)

// checkTask refuses what no guest could run.
func checkTask(s *api.TaskSpec) error {
	switch {
	case s == nil || len(s.Argv) == 0 || s.Argv[0] == "":
		return errors.New("there is no command")
	case len(s.Argv) > maxArgs || len(s.Env) > maxArgs:
		return fmt.Errorf("a command may have at most %d arguments and as many variables", maxArgs)
	case s.Workdir != "" && !path.IsAbs(s.Workdir):
		return fmt.Errorf("the working directory %q is not an absolute path", clip(s.Workdir))
	case s.TimeoutNanos < 0:
		return errors.New("the time limit is negative")
	case !userName(s.User):
		return fmt.Errorf("the user %q is neither a name nor a number", clip(s.User))
	}
	total := len(s.Workdir)
	for _, e := range s.Env {
		if i := strings.IndexByte(e, '='); i < 1 {
			return fmt.Errorf("the variable %q is not of the form NAME=value", clip(e))
		}
	}
	for _, list := range [][]string{s.Argv, s.Env, {s.Workdir}} {
		for _, a := range list {
			if total += len(a); strings.IndexByte(a, 0) >= 0 || !utf8.ValidString(a) {
				return fmt.Errorf("%q has a NUL byte or is not UTF-8", clip(a))
			}
		}
	}
	if total > maxArgBytes {
		return fmt.Errorf("the command and its variables have %d bytes; %d are possible", total, maxArgBytes)
	}
	return nil
}

func userName(s string) bool {
	user, group, both := strings.Cut(s, ":")
	return s == "" || oneName(user) && (!both || oneName(group))
}

// oneName says whether s can be a user's or a group's name, or a number. Images have
// names that useradd(8) would not make.
func oneName(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
		if !alnum && (c != '-' && c != '.' || i == 0) {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 32
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}
