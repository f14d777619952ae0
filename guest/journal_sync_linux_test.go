package guest

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/audit"
	"github.com/carrel-vm/carrel/guest/disktest"
)

// F10: a sync that fails once is no acknowledgement, and nothing is built on what
// may be lost: what was acknowledged before, and whatever is after, is read back.
func TestJournalSyncFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, _, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { j.close() }()
	add := func(id string) error { return j.add(taskRecord(&api.Task{Id: id, Spec: trueSpec}, "")) }
	if err := add("before"); err != nil { // the control
		t.Fatal(err)
	}
	disktest.Sync(t, func() {
		if err := add("during"); !errors.Is(err, unix.EIO) {
			t.Errorf("a record that is not durable: %v", err)
		}
	})
	want := []string{"before"}
	if add("after") == nil {
		want = append(want, "after")
	}
	h, _, err := ReadJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range want {
		if h.task(id) == nil {
			t.Errorf("task %s was acknowledged and is lost", id)
		}
	}
	// Who comes after it begins with what can be read, and goes on.
	j.close()
	if j, _, err = openJournal(path); err != nil {
		t.Fatal(err)
	}
	if err := add("next keeper"); err != nil {
		t.Fatal(err)
	}
	if h, _, err = ReadJournal(path); err != nil || h.task("before") == nil || h.task("next keeper") == nil {
		t.Fatalf("%v %v", h, err)
	}
}

// F10: with a sync that fails go the notes since the last one that did not: what
// the kernel dropped of them is read back until the machine ends, and is a hole in
// the middle then. The control is a note that a sync has followed.
func TestJournalSyncFailsAfterNotes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, _, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { j.close() }()
	write := func(f func(*record) error, id string, s api.TaskState) {
		t.Helper()
		if err := f(taskRecord(&api.Task{Id: id, Spec: trueSpec, State: s}, "")); err != nil {
			t.Fatal(err)
		}
	}
	const queued, running = api.TaskState_TASK_STATE_QUEUED, api.TaskState_TASK_STATE_RUNNING
	round := func(confirmed, noted string) {
		t.Helper()
		write(j.note, confirmed, running)
		write(j.add, noted, queued)
		good := j.size
		write(j.note, noted, running)
		disktest.Sync(t, func() {
			if err := j.add(taskRecord(&api.Task{Id: "during", Spec: trueSpec}, "")); !errors.Is(err, unix.EIO) {
				t.Errorf("a record that is not durable: %v", err)
			}
		})
		h, end, err := ReadJournal(path)
		if err != nil || end != good || h.task(confirmed).State != running || h.task(noted).State != queued || h.task("during") != nil {
			t.Errorf("%d bytes are left, a sync has confirmed %d: %v %v", end, good, h, err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Size() != good || j.size != good {
			t.Errorf("the file has %d bytes, the next record comes to %d: %v", fi.Size(), j.size, err)
		}
	}
	write(j.add, "A", queued)
	round("A", "B")
	// The next keeper confirms what it begins with, noted by the one before or not.
	again := func() {
		t.Helper()
		j.close()
		if j, _, err = openJournal(path); err != nil {
			t.Fatal(err)
		}
	}
	again()
	write(j.note, "B", running)
	again()
	disktest.Sync(t, func() {
		if j.add(taskRecord(&api.Task{Id: "during", Spec: trueSpec}, "")) == nil {
			t.Error("no sync failed: the test shows nothing")
		}
	})
	h, _, err := ReadJournal(path)
	if err != nil || h.task("B").State != running {
		t.Fatalf("what a keeper began with is gone: %v %v", h, err)
	}
	// So does who rewrites it.
	again()
	if err := j.shrink(h); err != nil {
		t.Fatal(err)
	}
	write(j.add, "C", queued)
	round("C", "D")
	j.close()
	disktest.Sync(t, func() {
		if _, _, err := openJournal(path); !errors.Is(err, unix.EIO) {
			t.Errorf("a journal that cannot be confirmed was begun with: %v", err)
		}
	})
	again()
	if err := j.add(taskRecord(&api.Task{Id: "last", Spec: trueSpec}, "")); err != nil {
		t.Error(err)
	}
}

// F10: the caller of a task that could not be made durable is told so, and it
// does not run.
func TestTaskSyncFails(t *testing.T) {
	ran := make(chan int, 8)
	g := startFake(t, &hostile{call: func(c net.Conn, n int) {
		started(c)
		ran <- n
		say(c, exit(0, 0))
	}})
	dir := t.TempDir()
	j, _, err := openJournal(filepath.Join(dir, fileJournal))
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	l, err := audit.Open(filepath.Join(dir, dirAudit))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	k := &Keeper{g: g, dir: dir, journal: j, audit: l, log: log, tasks: map[string]*task{}, keys: map[string]Keyed{}, changed: make(chan struct{}),
		shares: newShares(nil, nil, log, func() {}), info: &api.Guest{Name: "g", State: api.GuestState_GUEST_STATE_READY}}
	defer k.running.Wait()
	defer k.shares.close()
	start := func() (*connect.Response[api.StartTaskResponse], error) {
		return k.Start(t.Context(), connect.NewRequest(&api.StartTaskRequest{Guest: "g", IdempotencyKey: "k", Spec: trueSpec}))
	}
	disktest.Sync(t, func() {
		r, err := start()
		if connect.CodeOf(err) != connect.CodeInternal || !errors.Is(err, unix.EIO) && r != nil {
			t.Errorf("a task that is not durable: %v, %v", r, err)
		}
	})
	select {
	case n := <-ran:
		t.Errorf("call %d of a task that nobody was promised", n)
	default:
	}
	if l, err := k.List(t.Context(), connect.NewRequest(&api.ListTasksRequest{Guest: "g"})); err != nil || len(l.Msg.Tasks) != 0 {
		t.Errorf("it is listed: %v %v", l, err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, dirTasks)); len(left) > 1 {
		t.Errorf("its output is left: %v", left)
	}
	// The control: a keeper whose disk works takes the same task.
	fresh, _, err := openJournal(filepath.Join(dir, "another"))
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.close()
	k.journal = fresh
	r, err := start()
	if err != nil {
		t.Fatal(err)
	}
	<-ran
	<-k.tasks[r.Msg.Task.Id].done
}

// F10: a guest is there whole or not at all.
func TestCreateSyncFails(t *testing.T) {
	dir := t.TempDir()
	spec := &api.GuestSpec{Name: "g"}
	disktest.Sync(t, func() {
		if err := Create(dir, "g", spec, Making{}); !errors.Is(err, unix.EIO) {
			t.Errorf("%v", err)
		}
	})
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if err := Create(dir, "g", spec, Making{}); err != nil { // the control
		t.Fatal(err)
	}
}
