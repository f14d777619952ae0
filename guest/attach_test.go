package guest

import (
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
)

// Whoever attaches to an ephemeral guest's task is counted while the task's state
// changes: the race detector sees it if the two touch the same field, and an id that
// is empty for a moment would not be the main task's.
func TestAttachWhileRecorded(t *testing.T) {
	j, _, err := openJournal(filepath.Join(t.TempDir(), fileJournal))
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	live := &task{id: "T", now: &api.Task{Id: "T", Spec: trueSpec}, done: make(chan struct{})}
	other := &task{id: "U", now: &api.Task{Id: "U", Spec: trueSpec}, done: make(chan struct{})}
	k := &Keeper{tasks: map[string]*task{"T": live, "U": other}, order: []string{"U", "T"}, main: "T", journal: j, log: slog.New(slog.DiscardHandler),
		req: KeepRequest{Spec: &api.GuestSpec{Ephemeral: true}}, away: time.NewTimer(time.Hour)}
	const n = 1000
	var both sync.WaitGroup
	both.Go(func() {
		for range n {
			k.record(live, j.note, func(a *api.Task) { a.State = api.TaskState_TASK_STATE_RUNNING })
		}
	})
	both.Go(func() {
		for i := range n {
			if got, isMain := k.attached([]string{"T", ""}[i%2]); got != live || !isMain {
				t.Error("an attached caller was not counted")
				return
			}
		}
	})
	both.Wait()
	if k.callers != n {
		t.Errorf("%d callers, of %d", k.callers, n)
	}
	// The controls: another task, and none.
	if got, isMain := k.attached("U"); got != other || isMain {
		t.Error("a task that is not the main one was taken for it")
	}
	if got, isMain := k.attached("V"); got != nil || isMain || k.callers != n {
		t.Error("a task that is not there was found")
	}
}
