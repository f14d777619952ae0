package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// fullKeeper takes as many tasks as it has places.
type fullKeeper struct {
	apiconnect.UnimplementedTaskServiceHandler
	mu     sync.Mutex
	places int
	took   []string
}

func (k *fullKeeper) Start(_ context.Context, r *connect.Request[api.StartTaskRequest]) (*connect.Response[api.StartTaskResponse], error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.places == 0 {
		return nil, api.NewError(connect.CodeResourceExhausted, "too_many_tasks", "64 tasks run", "")
	}
	k.places--
	k.took = append(k.took, r.Msg.Spec.Argv[0])
	return connect.NewResponse(&api.StartTaskResponse{Task: &api.Task{Id: r.Msg.Spec.Argv[0]}}), nil
}

// A thousand tasks of one do not keep out the single one of another, and who goes
// away leaves nothing.
func TestPlacesFair(t *testing.T) {
	k := &fullKeeper{}
	mux := http.NewServeMux()
	mux.Handle(apiconnect.NewTaskServiceHandler(k))
	srv := httptest.NewServer(mux)
	defer srv.Close()
	d := &Daemon{ctx: t.Context()}
	e := newEntry("box", &api.Guest{Name: "box"})
	d.table = map[string]*entry{"box": e}
	e.keeper = &keeper{tasks: apiconnect.NewTaskServiceClient(srv.Client(), srv.URL)}
	start := func(ctx context.Context, session, name string, wait bool) error {
		ctx = context.WithValue(ctx, callerKey{}, caller{session, session})
		_, err := d.startTask(ctx, e, &api.StartTaskRequest{Guest: "box", Spec: &api.TaskSpec{Argv: []string{name}}}, wait)
		return err
	}
	waits := func(n int) { // until so many do, beside the one whose turn it is
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			e.places.mu.Lock()
			is, turn := len(e.places.waiting), e.places.running
			e.places.mu.Unlock()
			if is == n && turn == 1 {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d wait and %d are in turn, not %d", is, turn, n)
			}
		}
	}
	var all sync.WaitGroup
	begin := func(session, name string) {
		all.Go(func() {
			if err := start(t.Context(), session, name, true); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	for i := range 5 {
		begin("many", fmt.Sprint("many", i))
		waits(i)
	}
	if err := start(t.Context(), "other", "rude", false); wordOf(err) != "too_many_tasks" || !strings.Contains(err.Error(), "others wait") {
		t.Errorf("one that does not wait: %v", err)
	}
	gone, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- start(gone, "third", "gone", true) }()
	waits(5)
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("one that goes away: %v", err)
	}
	waits(4)
	begin("one", "one")
	waits(5)
	for range 6 {
		k.mu.Lock()
		n := len(k.took)
		k.places = 1
		k.mu.Unlock()
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			e.mu.Lock()
			e.changedLocked() // as when a task has ended
			e.mu.Unlock()
			k.mu.Lock()
			now := len(k.took)
			k.mu.Unlock()
			if now > n {
				break
			}
			if time.Now().After(end) {
				t.Fatal("nobody takes the place")
			}
		}
	}
	all.Wait()
	if got := strings.Join(k.took, " "); got != "many0 many1 one many2 many3 many4" {
		t.Errorf("places were had by %s", got)
	}
	if !e.places.idle() || len(e.places.served) > 0 {
		t.Error("something is left in the queue")
	}
	k.places = 1 // the control: with a place nobody waits
	if err := start(t.Context(), "other", "rude", false); err != nil {
		t.Error(err)
	}
}
