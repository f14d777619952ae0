package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/audit"
	"github.com/carrel-vm/carrel/guest/client"
)

// raw is a client that does nothing of its own: it neither makes keys nor asks
// twice.
type raw struct {
	guests apiconnect.GuestServiceClient
	tasks  apiconnect.TaskServiceClient
	close  func()
}

func (w *world) raw() *raw {
	h := guest.NewHTTPClient(filepath.Join(w.home, "run", "d.sock"))
	return &raw{apiconnect.NewGuestServiceClient(h, "http://carrel"), apiconnect.NewTaskServiceClient(h, "http://carrel"), h.CloseIdleConnections}
}

func (r *raw) start(ctx context.Context, req *api.StartGuestRequest) (g *api.Guest, err error) {
	st, err := r.guests.Start(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	defer st.Close()
	for st.Receive() {
		if st.Msg().GetGuest() != nil {
			g = proto.Clone(st.Msg().GetGuest()).(*api.Guest)
		}
	}
	if st.Err() == nil && g == nil {
		return nil, errors.New("the answer has no guest")
	}
	return g, st.Err()
}

func (r *raw) run(ctx context.Context, req *api.StartTaskRequest) (*api.Task, error) {
	res, err := r.tasks.Start(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg.Task, nil
}

// word is the stable word of an error of the API.
func word(err error) string {
	var ce *connect.Error
	if errors.As(err, &ce) {
		for _, d := range ce.Details() {
			if v, err := d.Value(); err == nil {
				if e, ok := v.(*api.ErrorDetail); ok {
					return e.Code
				}
			}
		}
	}
	return ""
}

func counted(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(b), "once\n")
}

// A request that carries a key is answered with the same answer again: by the
// next daemon, without the index, and after what it made was removed.
func TestKeysLast(t *testing.T) {
	w := newRing2(t)
	w.start()
	ran := filepath.Join(w.work, "ran")
	guestReq := &api.StartGuestRequest{Spec: &api.GuestSpec{}, IdempotencyKey: "a guest"} // its name is chosen
	c := w.raw()
	g, err := c.start(t.Context(), guestReq)
	if err != nil {
		t.Fatal(err)
	}
	taskReq := &api.StartTaskRequest{Guest: g.Name, IdempotencyKey: "a task", Spec: &api.TaskSpec{Argv: []string{"/bin/sh", "-c", "echo once >> " + ran}, Env: []string{"A=b"}}}
	first, err := c.run(t.Context(), taskReq)
	if err != nil {
		t.Fatal(err)
	}
	lastWord := func() *api.Task {
		list, err := w.raw().tasks.List(t.Context(), connect.NewRequest(&api.ListTasksRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range list.Msg.Tasks {
			if x.Id == first.Id {
				return x
			}
		}
		t.Fatal("the task is lost")
		return nil
	}
	eventually(t, "the task has ended", func() bool { return over(lastWord().State) })
	same := func(when string) {
		t.Helper()
		c := w.raw()
		defer c.close()
		again, err := c.start(t.Context(), guestReq)
		if err != nil || again.Name != g.Name {
			t.Fatalf("%s: the guest again: %v %v", when, again.GetName(), err)
		}
		x, err := c.run(t.Context(), taskReq)
		if err != nil || x.Id != first.Id {
			t.Fatalf("%s: the task again: %v %v", when, x, err)
		}
		if len(x.Spec.Argv) != 3 || x.Spec.Argv[2] != taskReq.Spec.Argv[2] {
			t.Errorf("%s: the answer's command is %q", when, x.Spec.Argv)
		}
		if n := counted(t, ran); n != 1 {
			t.Fatalf("%s: the task ran %d times", when, n)
		}
		gs, err := c.guests.List(t.Context(), connect.NewRequest(&api.ListGuestsRequest{}))
		if err != nil || len(gs.Msg.Guests) > 1 {
			t.Fatalf("%s: guests: %v %v", when, gs, err)
		}
	}
	same("at once")
	other := &api.StartTaskRequest{Guest: g.Name, IdempotencyKey: "a task", Spec: &api.TaskSpec{Argv: []string{"true"}}}
	refused := func(when string) { // whoever alone knows the key knows its request, too
		t.Helper()
		if x, err := w.raw().run(t.Context(), other); word(err) != "key_reused" {
			t.Errorf("%s: another request with the key: %v %v", when, x, err)
		}
	}
	begun := func() bool {
		log, err := os.ReadFile(filepath.Join(w.home, "daemon.log"))
		if err != nil {
			t.Fatal(err)
		}
		return !strings.Contains(string(log), "the index is a new one")
	}
	if !begun() {
		t.Error("a first start warns of a new index")
	}
	// Other requests with these keys are refused, whatever they are.
	for _, bad := range []*api.StartTaskRequest{
		{Guest: g.Name, IdempotencyKey: "a task", Spec: &api.TaskSpec{Argv: []string{"true"}}},
		{Guest: g.Name, IdempotencyKey: "a guest", Spec: taskReq.Spec},
		{Guest: "another", IdempotencyKey: "a task", Spec: taskReq.Spec},
	} {
		if _, err := c.run(t.Context(), bad); word(err) != "key_reused" {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if _, err := c.start(t.Context(), &api.StartGuestRequest{Spec: &api.GuestSpec{Cpus: 1}, IdempotencyKey: "a guest"}); word(err) != "key_reused" {
		t.Errorf("another guest: %v", err)
	}
	if _, err := c.run(t.Context(), &api.StartTaskRequest{Guest: g.Name, Spec: taskReq.Spec, IdempotencyKey: strings.Repeat("k", 129)}); word(err) != "bad_key" {
		t.Errorf("a long key: %v", err)
	}
	w.kill()
	w.start()
	same("after the daemon's death")

	index := filepath.Join(w.home, "state", "index.db")
	w.kill()
	for _, f := range []string{index, index + "-wal"} {
		os.Remove(f)
	}
	w.start()
	same("without the index")
	refused("without the index")
	if begun() {
		t.Error("the index was lost, and nobody is told")
	}
	w.kill()
	os.Remove(index + "-wal") // it would mend it
	if err := os.WriteFile(index, []byte("this is no index, and was one a moment ago"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.start()
	same("with a damaged index")
	if aside, _ := filepath.Glob(index + ".damaged-*"); len(aside) == 0 {
		t.Error("the damaged index was not set aside")
	}

	if _, err := w.client().StopGuest(t.Context(), g.Name, time.Second); err != nil {
		t.Fatal(err)
	}
	same("while the guest is stopped")
	w.kill()
	for _, f := range []string{index, index + "-wal"} {
		os.Remove(f)
	}
	w.start()
	same("while the guest is stopped, without the index")
	refused("while the guest is stopped, without the index")
	if err := w.client().RemoveGuest(t.Context(), g.Name, true); err != nil {
		t.Fatal(err)
	}
	same("after the guest was removed")
	if x := lastWord(); x.State != api.TaskState_TASK_STATE_EXITED || x.Ending.GetStatus() != 0 {
		t.Errorf("what is remembered of the task: %v", x)
	}
	w.kill()
	w.start()
	same("after that, and the daemon's death")
	if x := lastWord(); x.State != api.TaskState_TASK_STATE_EXITED || len(x.Spec.GetEnv()) != 0 {
		t.Errorf("what is remembered of the task: %v", x)
	}
	// The control: another key makes another task, or would.
	other = proto.Clone(taskReq).(*api.StartTaskRequest)
	other.IdempotencyKey = "another task"
	if _, err := w.raw().run(t.Context(), other); word(err) != "not_found" {
		t.Errorf("a new key for a guest that is gone: %v", err)
	}
}

// A guest's folder that somebody took away settles its tasks: each acknowledged
// one has an ending.
func TestFolderGone(t *testing.T) {
	w := newRing2(t)
	w.start()
	c := w.client()
	g := w.guest(c, "box")
	p, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the index has heard of the guest", func() bool { // it is told without anybody's waiting
		r, err := w.raw().tasks.List(t.Context(), connect.NewRequest(&api.ListTasksRequest{}))
		return err == nil && len(r.Msg.Tasks) == 1
	})
	w.kill()
	k, err := os.FindProcess(int(g.KeeperPid))
	if err != nil {
		t.Fatal(err)
	}
	k.Kill()
	eventually(t, "the keeper is gone", func() bool { return len(w.processes()) == 0 })
	if err := os.RemoveAll(g.StateDir); err != nil {
		t.Fatal(err)
	}
	w.start()
	r, err := w.raw().tasks.List(t.Context(), connect.NewRequest(&api.ListTasksRequest{}))
	if err != nil || len(r.Msg.Tasks) != 1 {
		t.Fatalf("%v %v", r, err)
	}
	if x := r.Msg.Tasks[0]; x.Id != p.ID || x.State != api.TaskState_TASK_STATE_INTERRUPTED || !strings.Contains(x.Ending.Cause, "folder is gone") {
		t.Errorf("%v", x)
	}
}

// F02 with keys: who asks with a key until there is an answer, through the deaths
// of daemon and keeper at each point of a start, has one guest and one task.
func TestKeyedCrash(t *testing.T) {
	points := []string{"create: before the rename", "create: after the rename", "spawn: before", "spawn: after the keeper's word", "keeper: before ready",
		"start: before the acknowledgement", "task: before it is recorded", "task: recorded, before it runs", "task: before the daemon's acknowledgement"}
	for _, p := range crashPoints(t) {
		if strings.HasPrefix(p, "key: ") || strings.HasPrefix(p, "claim: ") {
			points = append(points, p)
		}
	}
	if len(points) < 16 {
		t.Fatalf("only %d points", len(points))
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newRing2(t)
			mark, ran := filepath.Join(w.work, "mark"), filepath.Join(w.work, "ran")
			w.env = []string{"CARREL_CRASH=" + point, "CARREL_CRASH_MARK=" + mark}
			spec := &api.GuestSpec{}
			if strings.HasPrefix(point, "claim: ") { // of a guest that was started before
				spec = pooled()
				if err := os.MkdirAll(filepath.Join(w.home, "config"), 0o700); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(w.home, "config", "policy.yaml"), onePool)
			}
			w.start()
			// insist asks until it is answered, and starts the daemon where it died.
			insist := func(what string, ask func(*raw) error) {
				t.Helper()
				var err error
				for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
					c := w.raw()
					err = ask(c)
					c.close()
					if err == nil {
						return
					}
					if connect.CodeOf(err) == connect.CodeUnavailable && word(err) == "" {
						w.d.Wait()
						w.start()
					}
				}
				t.Fatalf("%s: %v", what, err)
			}
			var g *api.Guest
			var x *api.Task
			begin := func() {
				t.Helper()
				insist("a guest", func(c *raw) (err error) {
					g, err = c.start(t.Context(), &api.StartGuestRequest{Spec: spec, IdempotencyKey: "g"})
					return err
				})
				insist("a task", func(c *raw) (err error) {
					x, err = c.run(t.Context(), &api.StartTaskRequest{Guest: g.Name, IdempotencyKey: "t", Spec: &api.TaskSpec{Argv: []string{"/bin/sh", "-c", "echo once >> " + ran}}})
					if word(err) == "not_running" { // its keeper died: the guest is started again
						c.start(t.Context(), &api.StartGuestRequest{Spec: &api.GuestSpec{Name: g.Name}})
					}
					return err
				})
			}
			begin()
			if _, err := os.Stat(mark); err != nil {
				t.Fatal("nothing came to this point")
			}
			name, id := g.Name, x.Id
			begin()
			if g.Name != name || x.Id != id {
				t.Errorf("asked again: guest %s and task %s, first %s and %s", g.Name, x.Id, name, id)
			}
			c := w.raw()
			gs, err := c.guests.List(t.Context(), connect.NewRequest(&api.ListGuestsRequest{}))
			if err != nil || len(gs.Msg.Guests) != 1 {
				t.Fatalf("guests: %v %v", gs, err)
			}
			var list []*api.Task
			eventually(t, "the task has ended", func() bool {
				r, err := c.tasks.List(t.Context(), connect.NewRequest(&api.ListTasksRequest{Guest: name}))
				if err != nil {
					t.Fatal(err)
				}
				list = r.Msg.Tasks
				return len(list) == 1 && over(list[0].State)
			})
			started := 0
			if err := audit.Show(filepath.Join(w.home, "state", "guests", name, "audit"), 0, func(line []byte) error {
				started += bytes.Count(line, []byte(`"guest.started"`))
				return nil
			}); err != nil || started == 0 {
				t.Errorf("the audit log of a guest that is somebody's has %d records of its start: %v", started, err)
			}
			n := counted(t, ran)
			switch list[0].State {
			case api.TaskState_TASK_STATE_EXITED:
				if n != 1 {
					t.Errorf("the task exited and ran %d times", n)
				}
			default:
				if n > 1 {
					t.Errorf("the task was interrupted and ran %d times", n)
				}
			}
		})
	}
}
