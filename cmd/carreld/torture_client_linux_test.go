//go:build torture

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// job is one request of a client's, from its key to what became of it.
type job struct {
	n     int // its number, which the task writes down when it runs
	guest string
	sleep bool // it sleeps until it is cancelled
	id    string
	// The ending that the client was told, if it was.
	ending *api.Task
	out    bytes.Buffer
}

const jobLines = 150

// output is what a job prints, whole.
func (j *job) output() string {
	if j.sleep {
		return "up\n"
	}
	var b strings.Builder
	for i := range jobLines {
		fmt.Fprintf(&b, "job %d line %d\n", j.n, i)
	}
	return b.String()
}

func (j *job) script(ran string) string {
	if j.sleep {
		return fmt.Sprintf("echo ran >> %s/%d || exit 3; echo up; exec sleep 1000", ran, j.n)
	}
	return fmt.Sprintf("echo ran >> %s/%d || exit 3; i=0; while [ $i -lt %d ]; do echo job %d line $i; i=$((i+1)); done", ran, j.n, jobLines, j.n)
}

// ran is a folder in which each job has a file, with a line for each time that it
// ran: two machines that add to one file would write over each other.
func (x *torture) ran() string { return filepath.Join(x.work, "ran") }

// client submits jobs until more ends, and follows each to its ending.
func (x *torture) client(ctx, more context.Context, who int, r *rand.Rand) {
	c, err := client.Connect(ctx, client.Options{Home: x.home, Daemon: filepath.Join(x.bin, "carreld"), NoStart: true})
	for err != nil && ctx.Err() == nil { // it may just be dead
		x.next(ctx, 0)
		c, err = client.Connect(ctx, client.Options{Home: x.home, Daemon: filepath.Join(x.bin, "carreld"), NoStart: true})
	}
	if err != nil {
		x.t.Error(err)
		return
	}
	defer c.Close()
	for k := 0; more.Err() == nil; k++ {
		j := &job{n: k*10 + who, guest: x.names[r.IntN(len(x.names))], sleep: r.IntN(6) == 0}
		x.mu.Lock()
		x.jobs = append(x.jobs, j)
		x.mu.Unlock()
		x.submit(ctx, more, j)
		if j.id == "" {
			continue
		}
		if j.sleep || r.IntN(5) > 0 {
			x.follow(ctx, c, j)
		}
	}
}

// progress tells the driver that something came of the clients' work: a task was
// accepted, or a client was told of this ending.
func (x *torture) progress(end api.TaskState) {
	x.mu.Lock()
	x.told[end]++
	x.mu.Unlock()
	select {
	case x.moved <- struct{}{}:
	default:
	}
}

// next waits for a daemon after that of generation gen, or a moment.
func (x *torture) next(ctx context.Context, gen int) {
	now, newer := x.generation()
	if now > gen && gen > 0 {
		return
	}
	select {
	case <-newer:
	case <-time.After(20 * time.Millisecond): // what failed may have been the guest's end
	case <-ctx.Done():
	}
}

// submit asks with one key until there is an answer, as an app would.
func (x *torture) submit(ctx, more context.Context, j *job) {
	c := x.raw()
	defer c.close()
	req := &api.StartTaskRequest{Guest: j.guest, IdempotencyKey: "job " + strconv.Itoa(j.n), Spec: &api.TaskSpec{Argv: []string{"/bin/sh", "-c", j.script(x.ran())}}}
	for tries := 0; ctx.Err() == nil; tries++ {
		gen, _ := x.generation()
		task, err := c.run(ctx, req)
		switch w := word(err); {
		case err == nil:
			j.id = task.Id
			x.progress(0)
			return
		case w == "not_running" || w == "not_found":
			if more.Err() != nil && tries > 3 {
				return // it was never answered
			}
			if _, err := c.start(ctx, x.request(j.guest)); err != nil {
				x.refused(err)
				x.next(ctx, gen)
			}
		case w == "too_many_tasks" || w == "busy" || w == "disk" || w == "index":
			x.next(ctx, gen)
		case w != "":
			x.t.Errorf("job %d: %v", j.n, err)
			return
		default: // the daemon died
			x.refused(err)
			x.next(ctx, gen)
		}
	}
}

// refused keeps what a client was told last, for when nothing more comes of it.
func (x *torture) refused(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.last = err
}

// follow attaches until it is told the job's ending, and goes on each time from
// the byte where it stopped. A sleeper is cancelled when it is up.
func (x *torture) follow(ctx context.Context, c *client.Client, j *job) {
	offset := int64(0)
	for ctx.Err() == nil {
		gen, _ := x.generation()
		up := make(chan struct{})
		var once sync.Once
		if j.sleep {
			offset = 0
			j.out.Reset()
		}
		p, err := c.Attach(ctx, j.guest, j.id, client.AttachOptions{Offset: offset, Stdout: writerFunc(func(b []byte) (int, error) {
			once.Do(func() { close(up) })
			return j.out.Write(b)
		})})
		if err != nil {
			x.t.Errorf("job %d: attach: %v", j.n, err)
			return
		}
		if j.sleep {
			select {
			case <-up:
			case <-p.Done():
			}
			for tries := 0; ; tries++ {
				select {
				case <-p.Done():
				default:
					x.cancel(ctx, j)
					if tries > 0 {
						x.next(ctx, gen)
					}
					continue
				}
				break
			}
		}
		err = p.Wait()
		offset = p.Next()
		var ee *client.ExitError
		if err == nil || errors.As(err, &ee) {
			j.ending = p.Task()
			x.progress(j.ending.GetState())
			return
		}
		if w := client.CodeOf(err); w == "not_found" || w == "no_task" {
			return // its guest was removed; what became of it is remembered
		}
		x.next(ctx, gen)
	}
}

// cancel kills a job's processes, and returns when the job has ended or the
// connection has: a signal has no answer of its own.
func (x *torture) cancel(ctx context.Context, j *job) {
	c := x.raw()
	defer c.close()
	st := c.tasks.Attach(ctx)
	defer st.CloseResponse()
	defer st.CloseRequest()
	for _, m := range []*api.AttachRequest{
		{Kind: &api.AttachRequest_Open{Open: &api.AttachOpen{Guest: j.guest, Task: j.id, Input: true}}},
		{Kind: &api.AttachRequest_Signal{Signal: 9}},
	} {
		if st.Send(m) != nil {
			break // Receive says why
		}
	}
	for {
		m, err := st.Receive()
		if err != nil || m.GetEnd() != nil {
			return
		}
	}
}

// check holds what the daemon says now to what the clients were told and to what
// the tasks wrote down.
func (x *torture) check(ctx context.Context) {
	t := x.t
	c := x.raw()
	defer c.close()
	last := map[string]*api.Task{}
	eventually(t, "every task has ended", func() bool {
		r, err := c.tasks.List(ctx, connect.NewRequest(&api.ListTasksRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		clear(last)
		open := 0
		for _, k := range r.Msg.Tasks {
			if last[k.Id] != nil {
				t.Fatalf("task %s is listed twice", k.Id)
			}
			last[k.Id] = k
			if !over(k.State) {
				open++
			}
		}
		return open == 0
	})
	ran := map[int]int{}
	for _, j := range x.jobs {
		b, err := os.ReadFile(filepath.Join(x.ran(), strconv.Itoa(j.n)))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		ran[j.n] = strings.Count(string(b), "ran\n")
	}
	whole := 0
	for _, j := range x.jobs {
		if ran[j.n] > 1 {
			x.toll.Twice++
			t.Errorf("job %d ran %d times", j.n, ran[j.n])
		}
		if j.id == "" {
			x.toll.Unanswered++
			continue
		}
		k := last[j.id]
		if k == nil {
			x.toll.Lost++
			t.Errorf("job %d was acknowledged as %s, and is lost", j.n, j.id)
			continue
		}
		// A sleeper is done when its client has cancelled it, which it does when it is
		// up. Any other ending by a signal is the driver's doing, and no success.
		// Status 3 says that the job could not write down that it ran: its machine was
		// ending, and the share had gone first.
		good := k.State == api.TaskState_TASK_STATE_EXITED && (!j.sleep && k.Ending.GetSignal() == 0 || j.sleep && j.out.Len() > 0)
		// A guest whose share process was killed is stopped, which ends its tasks.
		if good && j.sleep && k.Ending.GetSignal() == 15 {
			good = false
		}
		if good && len(x.spec.Shares) > 0 && k.Ending.GetStatus() == 3 && ran[j.n] == 0 {
			good = false
		}
		if good {
			x.toll.Exited++
		} else {
			x.toll.Broken++
		}
		switch {
		case good && ran[j.n] != 1:
			t.Errorf("job %d (sleeper: %v) is said to have exited with %v and ran %d times", j.n, j.sleep, k.Ending, ran[j.n])
		case good && !j.sleep && k.Ending.GetStatus() != 0, good && j.sleep && k.Ending.GetSignal() != 9:
			t.Errorf("job %d ended with %v", j.n, k.Ending)
		case k.State == api.TaskState_TASK_STATE_EXITED && k.Ending.GetStatus() == 0 && (j.sleep || ran[j.n] != 1):
			t.Errorf("job %d (sleeper: %v) is a false success: %v, and ran %d times", j.n, j.sleep, k.Ending, ran[j.n])
		case j.ending != nil && (j.ending.State != k.State || j.ending.Ending.GetStatus() != k.Ending.GetStatus()):
			t.Errorf("job %d: the client was told %v %v, and now it is %v %v", j.n, j.ending.State, j.ending.Ending, k.State, k.Ending)
		}
		if out := j.output(); j.ending != nil && good && j.out.String() != out {
			t.Errorf("job %d exited, and its output of %d bytes is not the %d that it wrote", j.n, j.out.Len(), len(out))
		} else if !strings.HasPrefix(out, j.out.String()) {
			t.Errorf("job %d was interrupted, and its output is none that it wrote: %.200q", j.n, j.out.String())
		} else if good && j.ending != nil {
			whole++
		}
	}
	if whole == 0 || x.toll.Broken == 0 {
		t.Errorf("%d jobs came through whole and %d were interrupted: the test shows nothing", whole, x.toll.Broken)
	}
	x.reread(ctx, last)
}

// reread reads the output of tasks that are still there, from the middle.
func (x *torture) reread(ctx context.Context, last map[string]*api.Task) {
	c := x.world.client()
	n := 0
	for i := len(x.jobs) - 1; i >= 0 && n < 20; i-- {
		j := x.jobs[i]
		if k := last[j.id]; k == nil || k.State != api.TaskState_TASK_STATE_EXITED || k.Ending.GetSignal() != 0 || k.Ending.GetStatus() != 0 || j.sleep {
			continue
		}
		var out bytes.Buffer
		p, err := c.Attach(ctx, j.guest, j.id, client.AttachOptions{Stdout: &out})
		if err != nil {
			x.t.Fatal(err)
		}
		if err := p.Wait(); client.CodeOf(err) == "not_found" || client.CodeOf(err) == "no_task" {
			continue
		}
		if n++; out.String() != j.output() {
			x.t.Errorf("job %d, read again: %d bytes, not %d", j.n, out.Len(), len(j.output()))
		}
	}
}

// report prints what came of it, and adds a row to the table of
// docs/reliability.md where it is told the file and nothing failed.
func (r *toll) report(t *testing.T) {
	stood := 0
	for _, n := range r.Stood {
		stood += n
	}
	t.Logf("kills %d %v, %d times the disk failed, %d processes stood still %v, in %v; tasks acknowledged %d (exited %d, interrupted %d), requests never answered %d; lost %d, ran twice %d, orphans %d; a daemon served again after %s; a guest was ready again after %s%s",
		r.kills(), r.Kills, r.Failures, stood, r.Stood, r.Took.Round(time.Second), r.Exited+r.Broken, r.Exited, r.Broken, r.Unanswered, r.Lost, r.Twice, r.Orphans, bounds(r.Daemon), bounds(r.Guest), lossBound(r.kills(), r.Lost))
	path := os.Getenv("CARREL_TORTURE_TABLE")
	if path == "" || t.Failed() {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	each := func(m map[string]int) (by []string) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			by = append(by, fmt.Sprintf("%s %d", k, m[k]))
		}
		return by
	}
	by := append(each(r.Kills), fmt.Sprintf("and the disk failed %d times, %d processes stood still (%s)", r.Failures, stood, strings.Join(each(r.Stood), ", ")))
	if _, err := fmt.Fprintf(f, "| %s | %s | %d: %s | %d | %d | %d | %d | %s | %s | %s |\n", time.Now().UTC().Format(time.DateOnly), strings.TrimPrefix(t.Name(), "TestTorture/"), r.kills(), strings.Join(by, ", "),
		r.Exited+r.Broken, r.Lost, r.Twice, r.Orphans, bounds(r.Daemon), bounds(r.Guest), fmt.Sprintf("%.2g", 3/float64(r.kills()))); err != nil {
		t.Fatal(err)
	}
}
