package guest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
)

func writeJournal(t *testing.T, path string) {
	t.Helper()
	j, _, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	a := &api.Task{Id: "A", State: api.TaskState_TASK_STATE_QUEUED, Spec: &api.TaskSpec{Argv: []string{"true"}}}
	b := &api.Task{Id: "B", State: api.TaskState_TASK_STATE_QUEUED}
	end := &api.Task{Id: "A", State: api.TaskState_TASK_STATE_EXITED, Ending: &api.Ending{Status: 3}}
	for _, r := range []*record{{Guest: &guestRecord{State: "ready"}}, taskRecord(a, "key"), taskRecord(b, ""), taskRecord(end, "")} {
		if err := j.add(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestJournalReadsBack(t *testing.T) {
	p := filepath.Join(t.TempDir(), "journal")
	writeJournal(t, p)
	h, _, err := ReadJournal(p)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Tasks) != 2 || h.Tasks[0].Ending.GetStatus() != 3 || h.Keys["key"].Task != "A" || h.last.State != "ready" {
		t.Fatalf("%+v", h)
	}
}

// F08: a journal cut at any byte is either read up to a whole line or refused;
// it never says that a task succeeded which had not ended.
func TestJournalCutAnywhere(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "journal")
	writeJournal(t, p)
	whole, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		q := filepath.Join(dir, "cut")
		if err := os.WriteFile(q, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		h, good, err := ReadJournal(q)
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if good > int64(n) {
			t.Fatalf("cut at %d: good to %d", n, good)
		}
		for _, task := range h.Tasks {
			if ended(task) {
				t.Fatalf("cut at %d: task %s has ended", n, task.Id)
			}
		}
		// What is appended after the repair is read back.
		j, _, err := openJournal(q)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.add(&record{Guest: &guestRecord{State: "gone"}}); err != nil {
			t.Fatal(err)
		}
		j.close()
		if h, _, err := ReadJournal(q); err != nil || h.last.State != "gone" {
			t.Fatalf("cut at %d, then appended: %v", n, err)
		}
	}
}

// F08: every flipped bit within a whole line is found.
func TestJournalBitFlips(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "journal")
	writeJournal(t, p)
	whole, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n')
	for i := range whole {
		for bit := range 8 {
			bad := bytes.Clone(whole)
			bad[i] ^= 1 << bit
			q := filepath.Join(dir, "flip")
			if err := os.WriteFile(q, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := ReadJournal(q)
			if err == nil && i == len(whole)-1 {
				continue // the last newline: that line was not acknowledged
			}
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("byte %d (last line from %d), bit %d: %v", i, last, bit, err)
			}
		}
	}
}

func TestJournalMissingIsEmpty(t *testing.T) {
	h, good, err := ReadJournal(filepath.Join(t.TempDir(), "none"))
	if err != nil || good != 0 || len(h.Tasks) != 0 {
		t.Fatal(h, good, err)
	}
}

func TestSettle(t *testing.T) {
	dir := t.TempDir()
	writeJournal(t, filepath.Join(dir, fileJournal))
	for range 2 { // the second finds nothing to do
		if err := Settle(dir, "killed"); err != nil {
			t.Fatal(err)
		}
		h, _, err := ReadJournal(filepath.Join(dir, fileJournal))
		if err != nil {
			t.Fatal(err)
		}
		b := h.task("B")
		if b.State != api.TaskState_TASK_STATE_INTERRUPTED || b.Ending.Status != StatusOurs || b.Ending.Cause != "killed" {
			t.Fatalf("B: %v", b)
		}
		if a := h.task("A"); a.State != api.TaskState_TASK_STATE_EXITED || a.Ending.Status != 3 {
			t.Fatalf("A: %v", a)
		}
	}
}

func FuzzJournalLine(f *testing.F) {
	f.Add([]byte(`00000000 {"time":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parseLine(line)
		if err == nil {
			(&History{Keys: map[string]Keyed{}}).add(r)
		}
	})
}
