package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// gate is a task's input, which ends when the gate opens.
type gate chan struct{}

func (g gate) Read([]byte) (int, error) { <-g; return 0, io.EOF }

// held is what a process holds of the machine.
type held struct{ memory, files, threads int }

// holds looks at a process. What a profile or a page cache holds is not in it.
func holds(t *testing.T, pid int) (h held) {
	t.Helper()
	status := read(t, fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		switch name {
		case "RssAnon":
			h.memory = n << 10
		case "Threads":
			h.threads = n
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil || h.memory == 0 {
		t.Fatalf("process %d: %v, %+v", pid, err, h)
	}
	h.files = len(fds)
	return h
}

// R10: more tasks than a guest runs at once are refused at once and by name;
// those that were accepted run once and are on record, for the next daemon too;
// another guest's tasks run meanwhile, and nobody's memory grows with what is
// refused.
func TestTaskStorm(t *testing.T) {
	w := newRing2(t)
	w.start()
	c := w.client()
	box := w.guest(c, "box")
	w.guest(c, "other")
	open := make(gate)
	var waiting []*client.Process
	for range guest.MaxTasks {
		p, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"cat"}, Stdin: open})
		if err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, p)
	}
	daemon, keeper := holds(t, w.d.Process.Pid), holds(t, int(box.KeeperPid))

	var n, refused atomic.Int64
	total := int64(scaled(1000, 10_000))
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			for n.Add(1) <= total {
				_, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"true"}})
				var ce *client.Error
				if client.CodeOf(err) != "too_many_tasks" || !errors.As(err, &ce) || ce.Cure == "" {
					t.Errorf("one task too many: %v", err)
					return
				}
				refused.Add(1)
			}
		})
	}
	all.Go(func() {
		for range 10 {
			if r := sh(t, c, "other", "", "echo fair"); r.out != "fair\n" {
				t.Errorf("meanwhile in another guest: %+v", r)
			}
		}
	})
	all.Wait()
	if list, err := c.Tasks(t.Context(), "box"); err != nil || len(list) != guest.MaxTasks {
		t.Errorf("%d tasks are listed: %v", len(list), err)
	}
	for what, x := range map[string][2]held{"daemon": {daemon, holds(t, w.d.Process.Pid)}, "keeper": {keeper, holds(t, int(box.KeeperPid))}} {
		t.Logf("the %s before and after %d refusals: %+v", what, refused.Load(), x)
		if x[1].memory > x[0].memory+128<<20 {
			t.Errorf("the %s takes %d MiB more", what, (x[1].memory-x[0].memory)>>20)
		}
	}
	close(open)
	for _, p := range waiting {
		if err := p.Wait(); err != nil {
			t.Errorf("one that was accepted: %v", err)
		}
	}

	// The control: the same storm from clients that wait for their turn. No more
	// than 4096 ended tasks are remembered.
	ran := filepath.Join(w.work, "ran")
	total = int64(scaled(300, 3900))
	n.Store(0)
	var mu sync.Mutex
	ids := map[string]int64{}
	for range guest.MaxTasks {
		all.Go(func() {
			for {
				i := n.Add(1)
				if i > total {
					return
				}
				for {
					p, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"/bin/sh", "-c", fmt.Sprintf("echo %d >> %s", i, ran)}})
					if client.CodeOf(err) == "too_many_tasks" {
						continue // an ending is told a moment before its place is free
					}
					if err == nil {
						err = p.Wait()
					}
					if err != nil {
						t.Errorf("task %d: %v", i, err)
						return
					}
					mu.Lock()
					ids[p.ID] = i
					mu.Unlock()
					break
				}
			}
		})
	}
	all.Wait()
	w.kill()
	w.start()
	list, err := w.client().Tasks(t.Context(), "box")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, x := range list {
		if _, ok := ids[x.Id]; ok {
			seen++
			if x.State != api.TaskState_TASK_STATE_EXITED || x.Ending.GetStatus() != 0 {
				t.Errorf("task %s is on record as %v", x.Id, x)
			}
		}
	}
	times := map[string]int{}
	for _, l := range strings.Fields(read(t, ran)) {
		times[l]++
	}
	for i := range total {
		if k := times[fmt.Sprint(i+1)]; k != 1 {
			t.Errorf("task %d ran %d times", i+1, k)
		}
	}
	if int64(seen) != total || int64(len(ids)) != total {
		t.Errorf("%d tasks were accepted, of %d; %d are on record", len(ids), total, seen)
	}
}

// R11: guests are bounded in number. One more is refused by name, the others go
// on, and one that is removed makes room.
func TestManyGuests(t *testing.T) {
	w := newRing2(t)
	w.start()
	w.guest(w.client(), "first")
	w.client().StopGuest(t.Context(), "first", 0)
	w.kill()
	// All but the last are made as files, stopped: what is refused is the same, and
	// a thousand keepers would be the machine's own limit.
	const limit = 1024
	guests := filepath.Join(w.home, "state", "guests")
	spec := read(t, filepath.Join(guests, "first", "guest.json"))
	for i := range limit - 2 {
		name := fmt.Sprintf("g%d", i)
		if err := os.Mkdir(filepath.Join(guests, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(guests, name, "guest.json"), []byte(strings.ReplaceAll(spec, `"first"`, `"`+name+`"`)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.start()
	c := w.client()
	w.guest(c, "last") // the control: there is room for it
	list, err := c.Guests(t.Context())
	if err != nil || len(list) != limit {
		t.Fatalf("%d guests: %v", len(list), err)
	}
	for _, g := range list {
		if g.State == api.GuestState_GUEST_STATE_DAMAGED {
			t.Fatalf("%s: %s", g.Name, g.Cause)
		}
	}
	for range 3 {
		_, err = c.StartGuest(t.Context(), &api.GuestSpec{Name: "more"}, client.GuestOptions{})
		var ce *client.Error
		if client.CodeOf(err) != "too_many_guests" || !errors.As(err, &ce) || !strings.Contains(ce.Cure, "carrel rm") {
			t.Errorf("one guest too many: %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(guests, "more")); err == nil {
		t.Error("something of the refused guest is left")
	}
	if r := sh(t, c, "last", "", "echo still here"); r.out != "still here\n" {
		t.Errorf("%+v", r)
	}
	w.guest(c, "g0") // a stopped one is none more
	if err := c.RemoveGuest(t.Context(), "g1", false); err != nil {
		t.Fatal(err)
	}
	w.guest(c, "more")
}

// A million lines of a task, read and unread, in one piece and in two streams,
// arrive whole where somebody reads, end where nobody does, and no process of
// ours grows with them.
func TestMillionLines(t *testing.T) {
	w := newRing2(t)
	w.start()
	c := w.client()
	g := w.guest(c, "box")
	const lines = 1_000_000
	want := sha256.New()
	for i := range lines {
		fmt.Fprintln(want, i+1)
	}
	sh(t, c, "box", "", "seq 1000") // what a first task makes grow
	daemon, keeper := holds(t, w.d.Process.Pid), holds(t, int(g.KeeperPid))

	var out, errs hash.Hash = sha256.New(), sha256.New()
	p, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"/bin/sh", "-c", "seq 1000000; seq 1000000 >&2"}, Stdout: out, Stderr: errs})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Sum(nil), want.Sum(nil)) || !bytes.Equal(errs.Sum(nil), want.Sum(nil)) {
		t.Error("what arrived is not what was written")
	}
	// A line a write, which nobody reads.
	unread := new(api.StartTaskResponse)
	w.must("TaskService/Start", &api.StartTaskRequest{Guest: "box", Spec: &api.TaskSpec{Argv: []string{"/bin/sh", "-c", "i=0; while [ $i -lt 100000 ]; do echo line $i; i=$((i+1)); done"}}}, unread)
	waited := new(api.WaitTaskResponse)
	for !over(waited.GetTask().GetState()) { // a call waits for a while only
		w.must("TaskService/Wait", &api.WaitTaskRequest{Guest: "box", Task: unread.Task.Id, TimeoutNanos: 5e9}, waited)
	}
	if waited.Task.Ending.GetStatus() != 0 {
		t.Errorf("%v", waited.Task)
	}
	for what, x := range map[string][2]held{"daemon": {daemon, holds(t, w.d.Process.Pid)}, "keeper": {keeper, holds(t, int(g.KeeperPid))}} {
		t.Logf("the %s before and after: %+v", what, x)
		if x[1].memory > x[0].memory+128<<20 {
			t.Errorf("the %s takes %d MiB more", what, (x[1].memory-x[0].memory)>>20)
		}
	}
	// Our own logs say that there were tasks, not what they said.
	for _, log := range []string{filepath.Join(w.home, "daemon.log"), filepath.Join(w.home, "state", "guests", "box", "keeper.log")} {
		if fi, err := os.Stat(log); err == nil && fi.Size() > 1<<20 {
			t.Errorf("%s has %d bytes", log, fi.Size())
		}
	}
}
