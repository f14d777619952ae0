package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// The index hears of a task's states late, twice, in any order, and across
// restarts. Whatever comes: a final state is never left, no state goes back, and
// an ending that says otherwise is told.
func TestStates(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 8))
		dir := t.TempDir()
		s := opened(t, dir)
		model := map[string]State{}
		for n := range 150 {
			id, now := fmt.Sprint("task", r.IntN(20)), State(1+r.IntN(4))
			was := model[id]
			conflict := was.Final() && now.Final() && was != now
			if !was.Final() && now > was {
				model[id] = now
			}
			var bad []Conflict
			var err error
			k := Known{Guest: "box", Created: time.Unix(1, 0), Tasks: []Task{{ID: id, State: now, Record: fmt.Append(nil, now)}}}
			switch how := r.IntN(20); {
			case how < 9:
				bad, err = s.Update(t.Context(), k)
			case how == 9:
				bad, err = s.Removed(t.Context(), k, func(k Task) Task { return Task{ID: k.ID, State: Interrupted, Record: []byte("4")} })
				for id, is := range model {
					if !is.Final() {
						model[id] = Interrupted
					}
				}
			default:
				s.Later(t.Context(), k)
				conflict = false // nobody is there to be told
			}
			if err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, n, err)
			}
			if conflict != (len(bad) == 1) || conflict && bad[0] != (Conflict{id, was, now}) {
				t.Fatalf("seed %d, step %d: %s from %d to %d: %v", seed, n, id, was, now, bad)
			}
			if r.IntN(40) == 0 {
				s.Close()
				s = opened(t, dir)
			}
		}
		list, err := s.Tasks(t.Context(), "", 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range list {
			if model[k.ID] != k.State || string(k.Record) != fmt.Sprint(k.State) {
				t.Errorf("seed %d: %s is %d with %q, not %d", seed, k.ID, k.State, k.Record, model[k.ID])
			}
			delete(model, k.ID)
		}
		if len(model) > 0 {
			t.Errorf("seed %d: not in the index: %v", seed, model)
		}
		// The file itself refuses what our code would never ask.
		i := slices.IndexFunc(list, func(k Task) bool { return k.State.Final() })
		if i < 0 {
			t.Fatalf("seed %d: no task ended: the test shows nothing", seed)
		}
		if err := s.do(t.Context(), func(x *tx) error { return x.exec("UPDATE tasks SET state = 2 WHERE id = ?", list[i].ID) }); err == nil {
			t.Errorf("seed %d: a final state was left", seed)
		}
		s.Close()
	}
}

func TestIndex(t *testing.T) {
	s := opened(t, t.TempDir())
	made := time.Unix(7, 5).UTC()
	for _, k := range []Known{
		{Guest: "box", Created: made, Tasks: []Task{{ID: "b", State: Queued}, {ID: "a", State: Exited}, {ID: "d", State: Running}}},
		{Guest: "other", Created: made, Tasks: []Task{{ID: "c", State: Running}}},
	} {
		if _, err := s.Update(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	names, err := s.Guests(t.Context())
	if err != nil || len(names) != 2 || names["box"] != made {
		t.Fatalf("%v %v", names, err)
	}
	settled := ""
	if _, err := s.Removed(t.Context(), Known{Guest: "box", Tasks: []Task{{ID: "b", State: Exited}}}, func(k Task) Task {
		settled += k.ID
		k.State = Interrupted
		return k
	}); err != nil || settled != "d" {
		t.Fatalf("settled %q, %v", settled, err)
	}
	if names, _ = s.Guests(t.Context()); len(names) != 1 {
		t.Errorf("after a removal: %v", names)
	}
	for guest, want := range map[string]string{"": "[a b c d]", "box": "[a b d]", "none": "[]"} {
		list, err := s.Tasks(t.Context(), guest, 10)
		ids := []string{}
		for _, k := range list {
			ids = append(ids, k.ID)
		}
		if err != nil || fmt.Sprint(ids) != want {
			t.Errorf("tasks of %q: %v %v", guest, ids, err)
		}
	}
	if list, _ := s.Tasks(t.Context(), "", 1); len(list) != 1 || list[0].ID != "d" {
		t.Errorf("the newest: %v", list)
	}
	if _, err := s.Update(t.Context(), Known{Guest: "box", Tasks: []Task{{ID: "e", State: 5}}}); err == nil {
		t.Error("a state that there is not")
	}
}
