package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// settles waits for a state that other processes reach by themselves; what it
// looks at gives no event. The bound is only against waiting for ever.
func settles(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("5 minutes went by and still not: %s", what)
		}
		<-tick.C
	}
}

// soaked is what there is between two rounds.
type soaked struct {
	at                     time.Duration
	daemon, keeper, egress held
	sockets                int   // entries of the run folder
	kept                   int64 // bytes of the state, without what is remembered of tasks and events
}

// F19: rounds of mixed work, each with a fault, for as long as a person says:
//
//	CARREL_SOAK=24h go test -timeout 25h -v -run 'TestSoak$' ./cmd/carreld
//
// or ten minutes with CARREL_SCALE=full. Nothing that was
// accepted fails unless its own guest was killed, and what processes hold does
// not grow from round to round.
func TestSoak(t *testing.T) {
	length := 10 * time.Minute
	if s := os.Getenv("CARREL_SOAK"); s == "" {
		onlyInFull(t)
	} else {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatalf("CARREL_SOAK is %q: %v", s, err)
		}
	}
	w := newRing2(t)
	w.start()
	c, err := client.Connect(t.Context(), client.Options{Home: w.home, Daemon: filepath.Join(w.bin, "carreld")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w.guest(c, "steady")
	began := time.Now()
	var all []soaked
	tasks, faults := 0, map[string]int{}
	for i := 0; time.Since(began) < length; i++ {
		fault := soakFaults[i%len(soakFaults)]
		tasks += w.soakRound(t, c, i, fault)
		faults[fault]++
		if t.Failed() {
			t.Fatalf("round %d, %s", i, fault)
		}
		all = append(all, w.soaked(t, c, time.Since(began)))
	}
	t.Logf("%d rounds in %v: %d tasks, faults %v", len(all), time.Since(began).Round(time.Second), tasks, faults)
	lines, grown := judgeSoak(all)
	t.Logf("\n%s", strings.Join(lines, "\n"))
	for _, g := range grown {
		t.Error(g)
	}
}

// soakFaults are what happens in a round, in turn.
var soakFaults = []string{"none", "daemon killed", "keeper killed", "agent killed", "keeper stopped and continued", "client gone"}

// soakRound does some of everything, and returns how many tasks it had.
func (w *world) soakRound(t *testing.T, c *client.Client, i int, fault string) (tasks int) {
	passing := fmt.Sprintf("p%d", i)
	w.guest(c, passing)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	open := make(gate)
	type one struct {
		p    *client.Process
		out  *bytes.Buffer
		want string
		code int
		mine bool // of the guest that is to suffer
	}
	var ones []one
	start := func(guest, want string, code int, task client.Task) {
		out := new(bytes.Buffer)
		task.Guest, task.Stdout = guest, out
		p, err := c.StartTask(ctx, task)
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		ones = append(ones, one{p, out, want, code, guest == passing})
	}
	big := strings.Repeat("0123456789abcdef\n", 1+rand.IntN(1<<14))
	for _, g := range []string{"steady", passing} {
		start(g, "hello\n", 0, client.Task{Args: []string{"echo", "hello"}})
		start(g, "", 7, client.Task{Args: []string{"/bin/sh", "-c", "exit 7"}})
		start(g, big, 0, client.Task{Args: []string{"cat"}, Stdin: strings.NewReader(big)})
		start(g, "up\n", 0, client.Task{Args: []string{"/bin/sh", "-c", "echo up; cat"}, Stdin: open}) // under the fault
	}
	file := filepath.Join(w.work, "file")
	write(t, file, big)
	if err := c.Put(ctx, "steady", file, file+".in", client.CopyOptions{}); err != nil {
		t.Errorf("put: %v", err)
	}
	if b := read(t, file+".in"); b != big {
		t.Errorf("%d bytes were put, %d arrived", len(big), len(b))
	}
	g, err := c.Guest(ctx, passing)
	if err != nil {
		t.Fatal(err)
	}
	suffers := false
	switch keeper := int(g.KeeperPid); fault {
	case "daemon killed":
		killOne(w.daemonPid(t), syscall.SIGKILL)
		if w.d != nil {
			w.d.Wait()
		}
		if err := w.tryStart(); err != nil && !strings.Contains(err.Error(), "already") {
			t.Fatal(err) // "already": the client was quicker
		}
	case "keeper killed":
		suffers = true
		killOne(keeper, syscall.SIGKILL)
	case "agent killed":
		suffers = true
		agent := childOf(t, keeper, "serve")
		if agent == 0 {
			t.Fatal("the agent's process was not found")
		}
		killOne(agent, syscall.SIGKILL)
	case "keeper stopped and continued":
		killOne(keeper, syscall.SIGSTOP)
		if r := sh(t, c, "steady", "", "echo meanwhile"); r.out != "meanwhile\n" {
			t.Errorf("beside a stopped keeper: %+v", r)
		}
		killOne(keeper, syscall.SIGCONT)
	case "client gone":
		gone, err := client.Connect(ctx, client.Options{Home: w.home, Daemon: filepath.Join(w.bin, "carreld"), NoStart: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := gone.StartTask(ctx, client.Task{Guest: "steady", Args: []string{"true"}}); err != nil {
			t.Error(err)
		}
		gone.Close()
	}
	close(open)
	var waits sync.WaitGroup
	for n, x := range ones {
		waits.Go(func() {
			err := x.p.Wait()
			var ee *client.ExitError
			switch {
			case x.mine && suffers && errors.As(err, &ee) && ee.Interrupted:
			case fault == "daemon killed" && x.want == big && errors.Is(err, client.ErrInputLost):
				// The daemon died with input on its way, which nobody sends twice. The task
				// has seen all of it, or waits for the rest until somebody ends it.
				var out bytes.Buffer
				p, err := c.Attach(ctx, x.p.Guest, x.p.ID, client.AttachOptions{Stdout: &out})
				if err == nil {
					p.Signal(client.Signal(syscall.SIGKILL)) // fails where the task has ended
					err = p.Wait()
				}
				whole := err == nil && out.String() == big
				part := errors.As(err, &ee) && !ee.Interrupted && ee.Signal == client.Signal(syscall.SIGKILL) && strings.HasPrefix(big, out.String())
				if !whole && !part {
					t.Errorf("task %d, whose input was lost: %v, with %d bytes of output", n, err, out.Len())
				}
			case err == nil && x.code == 0 || errors.As(err, &ee) && !ee.Interrupted && ee.Status == x.code:
				if x.out.String() != x.want {
					t.Errorf("task %d: %d bytes of output, want %d", n, x.out.Len(), len(x.want))
				}
			default:
				t.Errorf("task %d (%v): %v", n, x.p.Task().GetSpec().GetArgv(), err)
			}
		})
	}
	waits.Wait()
	if err := c.RemoveGuest(ctx, passing, true); err != nil {
		t.Errorf("remove: %v", err)
	}
	return len(ones)
}

// daemonPid finds the daemon, which a client may have started.
func (w *world) daemonPid(t *testing.T) (pid int) {
	t.Helper()
	settles(t, "a daemon runs", func() bool {
		for _, l := range w.processes() {
			if n, rest, _ := strings.Cut(l, " "); strings.Contains(rest, "carreld daemon ") {
				pid, _ = strconv.Atoi(n)
			}
		}
		return pid != 0
	})
	return pid
}

// soaked waits until nothing of the round is left, and looks at what is.
func (w *world) soaked(t *testing.T, c *client.Client, at time.Duration) soaked {
	t.Helper()
	settles(t, "daemon, and the steady guest's keeper, egress process and agent alone", func() bool { return len(w.processes()) == 4 })
	g, err := c.Guest(t.Context(), "steady")
	if err != nil || g.State != api.GuestState_GUEST_STATE_READY {
		t.Fatalf("the steady guest: %v %v", g, err)
	}
	s := soaked{at: at, daemon: holds(t, w.daemonPid(t)), keeper: holds(t, int(g.KeeperPid))}
	for _, l := range w.processes() {
		if n, rest, _ := strings.Cut(l, " "); strings.Contains(rest, "carreld egress") {
			pid, _ := strconv.Atoi(n)
			s.egress = holds(t, pid)
		}
	}
	run, err := os.ReadDir(filepath.Join(w.home, "run"))
	if err != nil {
		t.Fatal(err)
	}
	s.sockets = len(run)
	filepath.WalkDir(filepath.Join(w.home, "state"), func(p string, d fs.DirEntry, err error) error {
		// What is remembered has bounds of its own: ended tasks, audit, events.
		switch name := d.Name(); {
		case err != nil, name == "tasks", name == "audit":
			return fs.SkipDir
		case !d.Type().IsRegular(), name == "journal", strings.HasPrefix(name, "index"), strings.HasSuffix(name, ".log"):
		default:
			if fi, err := d.Info(); err == nil {
				s.kept += fi.Size()
			}
		}
		return nil
	})
	return s
}

// judgeSoak compares the middle of the first third of the rounds with that of
// the last: one that grows by something each round is seen whatever a single
// round looks like.
func judgeSoak(all []soaked) (lines, grown []string) {
	third := max(1, len(all)/3)
	middle := func(part []soaked, of func(soaked) int) int {
		var vs []int
		for _, s := range part {
			vs = append(vs, of(s))
		}
		slices.Sort(vs)
		return vs[len(vs)/2]
	}
	hours := (all[len(all)-1].at - all[0].at).Hours() * 2 / 3 // between the thirds' middles
	for _, x := range []struct {
		what string
		of   func(soaked) int
		most int // growth that is none: threads and heaps settle in the first rounds
	}{
		{"the daemon's memory", func(s soaked) int { return s.daemon.memory }, 48 << 20},
		{"the keeper's memory", func(s soaked) int { return s.keeper.memory }, 48 << 20},
		{"the egress process's memory", func(s soaked) int { return s.egress.memory }, 48 << 20},
		{"the daemon's open files", func(s soaked) int { return s.daemon.files }, 8},
		{"the keeper's open files", func(s soaked) int { return s.keeper.files }, 8},
		{"the egress process's open files", func(s soaked) int { return s.egress.files }, 8},
		{"the daemon's threads", func(s soaked) int { return s.daemon.threads }, 16},
		{"the keeper's threads", func(s soaked) int { return s.keeper.threads }, 16},
		{"the egress process's threads", func(s soaked) int { return s.egress.threads }, 16},
		{"entries of the run folder", func(s soaked) int { return s.sockets }, 0},
		{"bytes of the state", func(s soaked) int { return int(s.kept) }, 64 << 10},
	} {
		first, last := middle(all[:third], x.of), middle(all[len(all)-third:], x.of)
		perHour := 0.0
		if hours > 0 {
			perHour = float64(last-first) / hours
		}
		lines = append(lines, fmt.Sprintf("%-32s %9d, then %9d (%+.0f an hour)", x.what, first, last, perHour))
		if last > first+x.most {
			grown = append(grown, fmt.Sprintf("%s grew from %d to %d", x.what, first, last))
		}
	}
	return lines, grown
}

// The control of judgeSoak: a leak of one file a round is seen, and rounds that
// differ by chance are none.
func TestSoakJudges(t *testing.T) {
	var leak, chance []soaked
	for i := range 30 {
		at := time.Duration(i) * time.Minute
		leak = append(leak, soaked{at: at, sockets: 5, daemon: held{files: 10 + i}})
		chance = append(chance, soaked{at: at, sockets: 5, daemon: held{files: 10 + 20*(i%2)}})
	}
	if _, grown := judgeSoak(leak); len(grown) != 1 || !strings.Contains(grown[0], "the daemon's open files") {
		t.Errorf("a leak: %q", grown)
	}
	if _, grown := judgeSoak(chance); len(grown) != 0 {
		t.Errorf("chance: %q", grown)
	}
}
