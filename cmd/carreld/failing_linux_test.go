package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// F09, F10: while a task runs, the disk under daemon and keeper fails: a sync, or
// every write with EDQUOT or EROFS. Nothing is acknowledged that was not written;
// who waits is told no ending that a later reader does not find; the daemon lives;
// and with a sound disk again all goes on, after a sync that failed with new
// processes.
func TestFailingDisk(t *testing.T) {
	for _, x := range []struct {
		name  string
		errno syscall.Errno
		calls []uint32
		says  string
		// again: only new processes write again.
		again bool
	}{
		{"sync", syscall.EIO, syncs, "input/output error", true},
		{"quota", syscall.EDQUOT, writes, "quota", false},
		{"quota of blocks", syscall.EDQUOT, []uint32{unix.SYS_PWRITE64}, "quota", false}, // as when a file's last block was given already
		{"read-only", syscall.EROFS, edits, "read-only", false},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			w := newRing2(t)
			w.disk = &disk{bin: w.bin}
			w.start()
			c := w.client()
			w.guest(c, "box")
			ran, gate := filepath.Join(w.work, "ran"), filepath.Join(w.work, "gate")
			if err := syscall.Mkfifo(gate, 0o600); err != nil {
				t.Fatal(err)
			}
			before, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"true"}})
			if err != nil {
				t.Fatal(err)
			}
			if err := before.Wait(); err != nil {
				t.Fatal(err)
			}
			if w.disk.asked.Load() == 0 {
				t.Fatal("the control: a task was recorded and the filter saw nothing of it")
			}
			up := make(chan struct{})
			var once sync.Once
			during, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"/bin/sh", "-c", "echo up; read x < " + gate + "; exit 0"},
				Stdout: writerFunc(func(b []byte) (int, error) { once.Do(func() { close(up) }); return len(b), nil })})
			if err != nil {
				t.Fatal(err)
			}
			<-up

			w.disk.fail(x.errno, x.calls...)
			raw := w.raw()
			req := &api.StartTaskRequest{Guest: "box", IdempotencyKey: "k", Spec: &api.TaskSpec{Argv: []string{"/bin/sh", "-c", "echo once >> " + ran}}}
			for range 2 { // the second is refused, too
				if _, err := raw.run(t.Context(), req); word(err) != "disk" || !strings.Contains(err.Error(), x.says) {
					t.Fatalf("a task that cannot be recorded: %v", err)
				}
			}
			if _, err := raw.start(t.Context(), &api.StartGuestRequest{Spec: &api.GuestSpec{Name: "new"}}); err == nil && x.name != "quota of blocks" {
				t.Error("a guest was made on a disk that fails")
			}
			goOn(t, gate)
			var ee *client.ExitError
			if err := during.Wait(); !errors.As(err, &ee) || !ee.Interrupted || !strings.Contains(ee.Cause, "could not be written down") {
				t.Fatalf("a task whose end cannot be recorded ended with %v", err)
			}
			if w.disk.failed.Load() == 0 {
				t.Fatal("no call failed: the test shows nothing")
			}
			states := func() map[string]api.TaskState {
				r, err := w.raw().tasks.List(t.Context(), connect.NewRequest(&api.ListTasksRequest{Guest: "box"}))
				if err != nil {
					t.Fatalf("the daemon: %v", err)
				}
				m := map[string]api.TaskState{}
				for _, k := range r.Msg.Tasks {
					m[k.Id] = k.State
				}
				return m
			}
			want := map[string]api.TaskState{before.ID: api.TaskState_TASK_STATE_EXITED, during.ID: api.TaskState_TASK_STATE_INTERRUPTED}
			if got := states(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("while the disk fails: %v, not %v", got, want)
			}

			w.disk.fail(0)
			if x.again {
				_, err := raw.run(t.Context(), req)
				var ce *connect.Error
				if word(err) != "disk" || !errors.As(err, &ce) || !strings.Contains(cure(err), "carrel stop box") {
					t.Fatalf("after a sync that failed the same keeper took a task: %v", err)
				}
				w.kill() // the index, too
				w.start()
				c = w.client()
				if _, err := c.StopGuest(t.Context(), "box", time.Second); err != nil {
					t.Fatal(err)
				}
				w.guest(c, "box")
			}
			task, err := w.raw().run(t.Context(), req)
			if err != nil {
				t.Fatalf("with a sound disk again: %v", err)
			}
			want[task.Id] = api.TaskState_TASK_STATE_EXITED
			eventually(t, "the task has ended", func() bool { return over(states()[task.Id]) })
			// What is said now, other processes say, too: nobody was told an ending that the
			// journal does not have.
			w.kill()
			w.start()
			c = w.client()
			if err := killOne(keeperOf(t, c, "box"), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the guest is stopped", func() bool {
				g, err := c.Guest(t.Context(), "box")
				return err == nil && g.State == api.GuestState_GUEST_STATE_STOPPED
			})
			if got := states(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("by the journal alone: %v, not %v", got, want)
			}
			if again, err := w.raw().run(t.Context(), req); err != nil || again.Id != task.Id || counted(t, ran) != 1 {
				t.Errorf("the key again: %v %v; it ran %d times", again, err, counted(t, ran))
			}
			// A guest whose end cannot be written down is set aside as long as that is so,
			// and no longer.
			g := w.guest(c, "box")
			w.disk.fail(x.errno, x.calls...)
			if err := killOne(int(g.KeeperPid), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the guest is set aside", func() bool {
				g, err := c.Guest(t.Context(), "box")
				return err == nil && g.State == api.GuestState_GUEST_STATE_DAMAGED
			})
			if _, err := w.raw().start(t.Context(), &api.StartGuestRequest{Spec: &api.GuestSpec{Name: "box"}}); word(err) != "damaged" {
				t.Errorf("a guest that is set aside: %v", err)
			}
			w.disk.fail(0)
			w.guest(c, "box")
			if got := states(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("set aside and back: %v, not %v", got, want)
			}
			if left, err := os.ReadDir(filepath.Join(w.home, "state", "guests", "box", "tasks")); err != nil || len(left) != len(want) {
				t.Errorf("spools: %v %v, for %d tasks", left, err, len(want))
			}
			if aside, _ := filepath.Glob(filepath.Join(w.home, "state", "index.db.*")); len(aside) > 0 {
				t.Errorf("beside the index: %q", aside)
			}
		})
	}
}

// goOn lets a task go on that reads a line from a pipe with a name.
func goOn(t *testing.T, gate string) {
	t.Helper()
	f, err := os.OpenFile(gate, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, "go")
	f.Close()
}

// cure is what an error of the API says to do.
func cure(err error) string {
	var ce *connect.Error
	if errors.As(err, &ce) {
		for _, d := range ce.Details() {
			if v, err := d.Value(); err == nil {
				if e, ok := v.(*api.ErrorDetail); ok {
					return e.Cure
				}
			}
		}
	}
	return ""
}

// F03, F04: a process of a guest's stands still. The daemon and the other guest do not;
// what stood goes on as if nothing had been; and a guest whose process stands can
// be removed, with all that it has but an egress process that stands still.
func TestStoppedProcesses(t *testing.T) {
	for _, victim := range []string{"keep", "serve", "egress"} {
		t.Run(victim, func(t *testing.T) {
			t.Parallel()
			w := newRing2(t)
			w.start()
			c := w.client()
			g := w.guest(c, "box")
			pid := int(g.KeeperPid)
			switch victim {
			case "serve":
				pid = childOf(t, pid, victim)
			case "egress": // the daemon's child
				pid = 0
				for _, p := range w.processes() {
					if n, words, _ := strings.Cut(p, " "); strings.Contains(words+" ", " egress ") {
						pid, _ = strconv.Atoi(n)
					}
				}
			}
			if pid == 0 {
				t.Fatalf("no %s process was found: %q", victim, w.processes())
			}
			w.guest(c, "other")
			gate := filepath.Join(w.work, "gate")
			if err := syscall.Mkfifo(gate, 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			up := make(chan struct{})
			var once sync.Once
			p, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"/bin/sh", "-c", "echo up; read x < " + gate + "; echo down; exit 3"},
				Stdout: writerFunc(func(b []byte) (int, error) { once.Do(func() { close(up) }); return out.Write(b) })})
			if err != nil {
				t.Fatal(err)
			}
			<-up
			stood := time.Now()
			if err := killOne(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			goOn(t, gate) // the task itself does not stand
			q, err := c.StartTask(t.Context(), client.Task{Guest: "other", Args: []string{"true"}})
			if err != nil {
				t.Fatal(err)
			}
			if err := q.Wait(); err != nil {
				t.Fatalf("the other guest: %v", err)
			}
			if gs, err := c.Guests(t.Context()); err != nil || len(gs) != 2 {
				t.Fatalf("the daemon: %v %v", gs, err)
			}
			if err := killOne(pid, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			var ee *client.ExitError
			stand := time.Since(stood)
			switch err := p.Wait(); {
			case victim == "serve" && stand > 45*time.Second && errors.As(err, &ee) && ee.Interrupted:
				t.Logf("the agent stood still for %v on this busy machine, and its guest was given up: %v", stand, err) // guest: pingDeath
				return
			case !errors.As(err, &ee) || ee.Status != 3 || ee.Interrupted || out.String() != "up\ndown\n":
				t.Fatalf("what stood and went on ended with %v, output %q", err, out.String())
			}
			if err := killOne(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			if err := c.RemoveGuest(t.Context(), "box", true); err != nil {
				t.Fatalf("remove a guest that stands still: %v", err)
			}
			if victim == "egress" { // it sees that its guest is gone when it goes on
				if err := killOne(pid, syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "nothing of it is left", func() bool { return len(w.processes()) == 4 }) // daemon, and the other's keeper, egress process and agent
		})
	}
}
