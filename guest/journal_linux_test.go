package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/api"
)

// F09: a disk that is full once costs the record that did not fit, and no other:
// what was acknowledged is read back, and what follows too.
func TestJournalFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("carrel-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mount a small disk: %v (this test runs as root)", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path, ballast := filepath.Join(dir, "journal"), filepath.Join(dir, "ballast")
	j, _, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	if err := os.WriteFile(ballast, make([]byte, 40<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	add := func(id string) error {
		return j.add(taskRecord(&api.Task{Id: id, Spec: &api.TaskSpec{Argv: []string{strings.Repeat("a", 600)}}}, ""))
	}
	acked := 0
	for add(fmt.Sprint(acked)) == nil {
		if acked++; acked > 1000 {
			t.Fatal("the small disk was never full: the test shows nothing")
		}
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := add("later"); err != nil {
		t.Fatal(err)
	}
	h, _, err := ReadJournal(path)
	if err != nil || len(h.Tasks) != acked+1 || h.task("later") == nil {
		t.Fatalf("%d acknowledged, %d read back: %v", acked+1, len(h.Tasks), err)
	}
}

// A journal of large tasks stays within its bound, and one beyond it is said to
// be damaged rather than read in part.
func TestJournalBound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, h, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { j.close() }()
	large := &api.TaskSpec{Argv: []string{strings.Repeat("\x01", 250<<10)}} // six bytes each as JSON
	for i := range 60 {
		task := &api.Task{Id: fmt.Sprint(i), Spec: large, State: api.TaskState_TASK_STATE_EXITED}
		h.Tasks = append(h.Tasks, task)
		if err := j.add(taskRecord(task, "")); err != nil {
			t.Fatal(err)
		}
		if j.large() {
			if err := j.shrink(h); err != nil {
				t.Fatal(err)
			}
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() > largeFile+maxLine {
		t.Fatalf("%d bytes: %v", fi.Size(), err)
	}
	if got, _, err := ReadJournal(path); err != nil || got.task("59") == nil {
		t.Fatalf("the newest is lost: %v", err)
	}
	if err := j.add(taskRecord(&api.Task{Id: "x", Spec: &api.TaskSpec{Argv: []string{strings.Repeat("\x01", 500<<10)}}}, "")); err == nil {
		t.Fatal("a record longer than a line may be was taken")
	}
	if _, _, err := ReadJournal(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, maxJournal+1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadJournal(path); err == nil {
		t.Fatal("a journal beyond its bound was read")
	}
}
