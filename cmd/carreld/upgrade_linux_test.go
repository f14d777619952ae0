package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// theNextVersion is what the daemon of the next version says that it is.
const theNextVersion = "0.2.0-next"

// nextBinaries builds the programs of a version to come, whose index has a newer
// schema, into a folder beside those of this version.
func nextBinaries(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(binaries(t), "next")
	for _, args := range [][]string{{"-tags", "carreltest,carrelnext", "-ldflags", "-X main.release=" + theNextVersion, "./cmd/carreld"}, {"./cmd/carrel-agent"}} {
		cmd := exec.Command("go", append([]string{"build", "-o", dir + "/"}, args...)...)
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	return dir
}

// F16: a newer version takes over from this one while a guest runs, is killed at
// random instants of that, and gives way to this one again. The guest's task and
// its output go on through all of it, what either version acknowledged stays, and
// the way back is refused until what the refusal says is done.
func TestUpgrade(t *testing.T) {
	w := newRing2(t)
	now, next := w.bin, nextBinaries(t)
	w.start()
	c := w.client()
	g := w.guest(c, "old")
	feed, ran := filepath.Join(w.work, "feed"), filepath.Join(w.work, "ran")
	if err := syscall.Mkfifo(feed, 0o600); err != nil {
		t.Fatal(err)
	}
	task, err := c.StartTask(t.Context(), client.Task{Guest: "old", Args: []string{"/bin/sh", "-c", "while read x; do echo got $x; done < " + feed + "; exit 7"}})
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.OpenFile(feed, os.O_WRONLY, 0) // when the task reads
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	// at is a client of the daemon's own version.
	at := func() *client.Client {
		t.Helper()
		o := client.Options{Home: w.home, Daemon: filepath.Join(w.bin, "carreld"), NoStart: true}
		if w.bin == next {
			o.Version = theNextVersion
		}
		c, err := client.Connect(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	said, offset := 0, int64(0)
	// more has the task write a line, and reads it from the byte where it stopped.
	more := func(when string) {
		t.Helper()
		said++
		line := fmt.Sprintf("got %d %s\n", said, when)
		fmt.Fprintf(in, "%d %s\n", said, when)
		var got strings.Builder
		whole := make(chan struct{})
		var once sync.Once
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		p, err := at().Attach(ctx, "old", task.ID, client.AttachOptions{Offset: offset, Stdout: writerFunc(func(b []byte) (int, error) {
			got.Write(b)
			if strings.HasSuffix(got.String(), line) {
				once.Do(func() { close(whole) })
			}
			return len(b), nil
		})})
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		select {
		case <-whole:
		case <-p.Done():
		}
		leave()
		p.Wait()
		if offset = p.Next(); got.String() != line {
			t.Fatalf("%s: the output went on with %q, not %q", when, got.String(), line)
		}
	}
	keyed := func(key, name string) *api.StartTaskRequest {
		return &api.StartTaskRequest{Guest: name, IdempotencyKey: key, Spec: &api.TaskSpec{Argv: []string{"/bin/sh", "-c", "echo " + key + " >> " + ran}}}
	}
	asked := map[string]*api.StartTaskRequest{}
	ids := map[string]string{}
	run := func(when, key, name string) {
		t.Helper()
		asked[key] = keyed(key, name)
		x, err := w.raw().run(t.Context(), asked[key])
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		ids[key] = x.Id
	}
	// remembered asks for each with its key again: nothing runs twice.
	remembered := func(when string) {
		t.Helper()
		for key, req := range asked {
			x, err := w.raw().run(t.Context(), req)
			if err != nil || x.Id != ids[key] {
				t.Errorf("%s: %s again: %v %v", when, key, x.GetId(), err)
			}
		}
		eventually(t, "the tasks with keys have ended", func() bool {
			r, err := w.raw().tasks.List(t.Context(), connect.NewRequest(&api.ListTasksRequest{}))
			if err != nil {
				t.Fatal(err)
			}
			left := len(ids)
			for _, x := range r.Msg.Tasks {
				for _, id := range ids {
					if x.Id == id && over(x.State) {
						left--
					}
				}
			}
			return left == 0
		})
		b, err := os.ReadFile(ran)
		if err != nil {
			t.Fatal(err)
		}
		for key := range ids {
			if n := strings.Count(string(b), key+"\n"); n != 1 {
				t.Errorf("%s: %s ran %d times", when, key, n)
			}
		}
	}
	same := func(when, version string) {
		t.Helper()
		c := at()
		eventually(t, "the keeper is adopted", func() bool {
			x, err := c.Guest(t.Context(), "old")
			return err == nil && x.State == api.GuestState_GUEST_STATE_READY && x.KeeperPid == g.KeeperPid
		})
		if v := c.DaemonVersion().Version; v != version {
			t.Fatalf("%s: the daemon is %s, not %s", when, v, version)
		}
	}
	first := c.DaemonVersion().Version
	more("before")
	run("before", "keyA", "old")
	remembered("before")

	w.kill()
	fmt.Fprintf(in, "%d nobody\n", said+1) // what is written while there is no daemon is read later
	said++
	w.bin = next
	for range scaled(10, 200) {
		w.d = exec.Command(filepath.Join(w.bin, "carreld"), "daemon")
		w.d.Env = append(os.Environ(), "CARREL_HOME="+w.home, "CARREL_CACHE=")
		if err := w.d.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(60_000)) * time.Microsecond) // the random instant
		w.kill()
	}
	w.start()
	if _, err := client.Connect(t.Context(), client.Options{Home: w.home, NoStart: true}); client.CodeOf(err) != "version_skew" {
		t.Errorf("this version's client of the next one's daemon: %v", err)
	}
	same("the next version", theNextVersion)
	offset = 0
	all := "got 1 before\ngot 2 nobody\n"
	var got strings.Builder
	whole := make(chan struct{})
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	p, err := at().Attach(ctx, "old", task.ID, client.AttachOptions{Stdout: writerFunc(func(b []byte) (int, error) {
		if got.Write(b); got.Len() == len(all) {
			close(whole)
		}
		return len(b), nil
	})})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-whole:
	case <-p.Done():
	}
	leave()
	p.Wait()
	if offset = p.Next(); got.String() != all {
		t.Fatalf("the output is %q", got.String())
	}
	more("next")
	run("next", "keyB", "old")
	w.guest(at(), "new")
	run("next", "keyC", "new")
	remembered("next")

	w.kill()
	w.bin = now
	index := filepath.Join(w.home, "state", "index.db")
	copies, err := filepath.Glob(index + ".schema-*")
	if err != nil || len(copies) != 1 {
		t.Fatalf("copies from before the change: %q %v", copies, err)
	}
	err = w.tryStart()
	if err == nil || !strings.Contains(err.Error(), "newer version") || !strings.Contains(err.Error(), filepath.Base(copies[0])) {
		t.Fatalf("back to this version: %v", err)
	}
	if err := os.Rename(copies[0], index); err != nil { // as it was told
		t.Fatal(err)
	}
	w.start()
	same("back", first)
	more("back")
	run("back", "keyD", "old")
	run("back", "keyE", "new") // whose keeper is newer than the daemon
	remembered("back")
	// And to the next version again, which meets a copy of its own from the first time.
	w.kill()
	w.bin = next
	w.start()
	same("the next version again", theNextVersion)
	more("again")
	in.Close()
	q, err := at().Attach(t.Context(), "old", task.ID, client.AttachOptions{Offset: offset})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Wait(); err == nil || !strings.Contains(err.Error(), "7") {
		t.Errorf("the task that went through all of it ended with %v", err)
	}
	remembered("in the end")
}
