package guest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
)

// Tasks are accepted, run and end in any order, and the keeper is killed in
// between, with the loss of whatever nobody waited for. Every acknowledged task
// is in exactly one final state in the end, and one that was told stays.
func TestTaskStates(t *testing.T) {
	interrupted := 0
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 8))
		dir := t.TempDir()
		path := filepath.Join(dir, fileJournal)
		j, _, err := openJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		told := map[string]api.TaskState{} // what somebody was told of each task
		var open []string
		durable := int64(0) // of the journal
		look := func(when string) {
			t.Helper()
			h, _, err := ReadJournal(path)
			if err != nil {
				t.Fatalf("seed %d, %s: %v", seed, when, err)
			}
			if len(h.Tasks) != len(told) {
				t.Fatalf("seed %d, %s: %d tasks, %d were acknowledged", seed, when, len(h.Tasks), len(told))
			}
			for _, x := range h.Tasks {
				was, now := told[x.Id], x.State
				if was == 0 || (was == api.TaskState_TASK_STATE_EXITED || was == api.TaskState_TASK_STATE_INTERRUPTED) && was != now {
					t.Fatalf("seed %d, %s: task %s was told to be %v and is %v", seed, when, x.Id, was, now)
				}
			}
		}
		for n := range 60 {
			switch what := r.IntN(10); {
			case what < 4: // accepted
				id := fmt.Sprintf("%03d", n)
				if err := j.add(taskRecord(&api.Task{Id: id, State: api.TaskState_TASK_STATE_QUEUED, Spec: &api.TaskSpec{Argv: []string{"true"}}}, "key "+id)); err != nil {
					t.Fatal(err)
				}
				told[id], durable = api.TaskState_TASK_STATE_QUEUED, j.size
				open = append(open, id)
			case what < 6 && len(open) > 0: // runs, which nobody waits for
				if err := j.note(taskRecord(&api.Task{Id: open[r.IntN(len(open))], State: api.TaskState_TASK_STATE_RUNNING}, "")); err != nil {
					t.Fatal(err)
				}
			case what < 9 && len(open) > 0: // exits
				i := r.IntN(len(open))
				if err := j.add(taskRecord(&api.Task{Id: open[i], State: api.TaskState_TASK_STATE_EXITED, Ending: &api.Ending{}}, "")); err != nil {
					t.Fatal(err)
				}
				told[open[i]], durable = api.TaskState_TASK_STATE_EXITED, j.size
				open = append(open[:i], open[i+1:]...)
			case what == 9: // the keeper is killed, and the machine with it
				size := j.size
				j.close()
				if err := os.Truncate(path, durable+r.Int64N(size-durable+1)); err != nil {
					t.Fatal(err)
				}
				look("after a kill")
				for range 1 + r.IntN(2) { // whoever settles may be killed too
					if err := Settle(dir, "killed"); err != nil {
						t.Fatal(err)
					}
				}
				for _, id := range open {
					told[id] = api.TaskState_TASK_STATE_INTERRUPTED
					interrupted++
				}
				open = nil
				look("settled")
				if j, _, err = openJournal(path); err != nil {
					t.Fatal(err)
				}
				durable = j.size
			}
		}
		j.close()
		if err := Settle(dir, "killed"); err != nil {
			t.Fatal(err)
		}
		h, _, err := ReadJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range h.Tasks {
			if !ended(x) {
				t.Errorf("seed %d: task %s is %v in the end", seed, x.Id, x.State)
			}
			if h.Keys["key "+x.Id].Task != x.Id {
				t.Errorf("seed %d: the key of task %s is lost", seed, x.Id)
			}
		}
		look("in the end")
	}
	if interrupted == 0 {
		t.Error("no task was ever interrupted: the test shows nothing")
	}
}
