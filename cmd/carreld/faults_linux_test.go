package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/place"
)

func over(s api.TaskState) bool {
	return s == api.TaskState_TASK_STATE_EXITED || s == api.TaskState_TASK_STATE_INTERRUPTED
}

// F01: the daemon is killed at random instants while tasks are accepted. Every
// acknowledged task ends in exactly one final state, ran at most once, and is
// shown as succeeded only if it ran.
func TestKillDaemon(t *testing.T) {
	w := newRing2(t)
	w.start()
	kills := scaled(1000, 10000)
	if testing.Short() {
		kills = 30
	}
	killDaemonOften(t, w, &api.GuestSpec{}, kills, filepath.Join(w.work, "ran"))
}

// The same over the process wall.
func TestKillDaemonOfProcessWall(t *testing.T) {
	w, spec := newProcessWorld(t)
	w.start()
	killDaemonOften(t, w, spec, scaled(60, 1000), filepath.Join(spec.Shares[0].Path, "ran"))
}

// newProcessWorld returns a world, whose daemon is not started, and what to ask
// for guests behind the process wall there, with one folder to write to.
func newProcessWorld(t *testing.T) (*world, *api.GuestSpec) {
	t.Helper()
	w := newRing2(t)
	w.bin = vmBinaries(t)
	p, err := place.Home() // its host image is made there
	if err != nil {
		t.Fatal(err)
	}
	w.env = []string{"CARREL_CACHE=" + p.Cache}
	for _, d := range []string{filepath.Dir(w.work), w.work} { // the guest's user comes by here, too
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	ran := filepath.Join(w.work, "ran")
	if err := os.Mkdir(ran, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(ran, 0o777); err != nil {
		t.Fatal(err)
	}
	return w, &api.GuestSpec{Boundary: wallProcess, Image: hostImage, Shares: []*api.Share{{Path: ran, Mode: api.ShareMode_SHARE_MODE_RW}}}
}

// killDaemonOften is TestKillDaemon for a guest as spec says; marks is a file that
// its tasks can write to.
func killDaemonOften(t *testing.T, w *world, spec *api.GuestSpec, kills int, marks string) {
	spec.Name = "box"
	if _, err := w.client().StartGuest(t.Context(), spec, client.GuestOptions{}); err != nil {
		t.Fatal(err)
	}
	const each = 2            // tasks on their way at each kill
	acked := map[string]int{} // task id -> its number
	var starts []time.Duration
	for i := range kills {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		c, err := client.Connect(ctx, client.Options{Home: w.home, Daemon: filepath.Join(w.bin, "carreld"), NoStart: true})
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var all sync.WaitGroup
		for j := range each {
			n := i*each + j
			all.Go(func() {
				p, err := c.StartTask(ctx, client.Task{Guest: "box", Args: []string{"/bin/sh", "-c", fmt.Sprintf("echo %d >> %s", n, marks)}})
				if err == nil {
					mu.Lock()
					acked[p.ID] = n
					mu.Unlock()
				}
			})
		}
		if i%16 == 0 { // a slow machine acknowledges none before a random instant
			all.Wait()
		} else {
			time.Sleep(time.Duration(rand.IntN(8000)) * time.Microsecond) // the random instant
		}
		w.kill()
		begin := time.Now()
		w.start()
		starts = append(starts, time.Since(begin))
		cancel()
		all.Wait()
		c.Close()
	}
	c := w.client()
	var tasks []*api.Task
	eventually(t, "every acknowledged task has ended", func() bool {
		var err error
		if tasks, err = c.Tasks(t.Context(), "box"); err != nil {
			t.Fatal(err)
		}
		for _, x := range tasks {
			if !over(x.State) {
				return false
			}
		}
		return true
	})
	ran := map[int]int{}
	b, err := os.ReadFile(marks)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Fields(string(b)) {
		n, err := strconv.Atoi(l)
		if err != nil {
			t.Fatal(err)
		}
		ran[n]++
	}
	byID := map[string]*api.Task{}
	for _, x := range tasks {
		if byID[x.Id] != nil {
			t.Errorf("task %s is listed twice", x.Id)
		}
		byID[x.Id] = x
	}
	lost, twice := 0, 0
	for id, n := range acked {
		x := byID[id]
		switch {
		case x == nil:
			lost++
			t.Errorf("acknowledged task %d (%s) is lost", n, id)
		case x.State == api.TaskState_TASK_STATE_EXITED && x.Ending.Status == 0 && ran[n] != 1:
			t.Errorf("task %d is said to have succeeded and ran %d times", n, ran[n])
		case x.State == api.TaskState_TASK_STATE_INTERRUPTED:
			t.Errorf("task %d was interrupted by the daemon's death: %s", n, x.Ending.Cause)
		}
	}
	for n, k := range ran {
		if k > 1 {
			twice++
			t.Errorf("task %d ran %d times", n, k)
		}
	}
	t.Logf("%d kills, %d acknowledged tasks, %d lost, %d ran twice; a daemon served again after %s%s", kills, len(acked), lost, twice, bounds(starts), lossBound(kills, lost))
	if len(acked) == 0 {
		t.Fatal("no task was ever acknowledged: the test shows nothing")
	}
}

// lossBound says how often a kill loses a task at most, where none was lost: in n
// kills without a loss, the chance of one is below 3/n with 95 % confidence.
func lossBound(kills, lost int) string {
	if lost > 0 {
		return ""
	}
	return fmt.Sprintf("; 95 %% bound of a loss per kill: %.2g", 3/float64(kills))
}

// bounds of a series: the middle, the 99th of a hundred, the largest.
func bounds(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	s := append([]time.Duration(nil), d...)
	slices.Sort(s)
	at := func(q float64) time.Duration {
		return s[min(len(s)-1, int(q*float64(len(s))))].Round(100 * time.Microsecond)
	}
	return fmt.Sprintf("p50 %v, p99 %v, max %v (of %d)", at(0.5), at(0.99), s[len(s)-1].Round(100*time.Microsecond), len(s))
}

// F06: a task runs on while its daemon is killed and another adopts it; its
// output goes on from the byte at which the client stopped.
func TestAdopt(t *testing.T) {
	w := newRing2(t)
	w.start()
	// As the command line does, this client starts a daemon where none runs.
	c, err := client.Connect(t.Context(), client.Options{Home: w.home, Daemon: filepath.Join(w.bin, "carreld")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w.guest(c, "box")
	go1 := filepath.Join(w.work, "go")
	if err := syscall.Mkfifo(go1, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	first := make(chan struct{})
	var once sync.Once
	p, err := c.StartTask(t.Context(), client.Task{
		Guest: "box", Args: []string{"/bin/sh", "-c", "echo before; read x < " + go1 + "; echo after; exit 5"},
		Stdout: writerFunc(func(b []byte) (int, error) { once.Do(func() { close(first) }); return out.Write(b) }),
	})
	if err != nil {
		t.Fatal(err)
	}
	<-first
	before, err := c.Guest(t.Context(), "box")
	if err != nil {
		t.Fatal(err)
	}
	w.kill()
	if err := w.tryStart(); err != nil && !strings.Contains(err.Error(), "already") {
		t.Fatal(err) // "already": the client was quicker
	}
	f, err := os.OpenFile(go1, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, "go")
	f.Close()
	var ee *client.ExitError
	if err := p.Wait(); !errors.As(err, &ee) || ee.Status != 5 || out.String() != "before\nafter\n" {
		t.Fatalf("%v, output %q", err, out.String())
	}
	eventually(t, "the same keeper is adopted", func() bool {
		g, err := w.client().Guest(t.Context(), "box")
		return err == nil && g.KeeperPid == before.KeeperPid && g.State == api.GuestState_GUEST_STATE_READY
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// F01, F04: the keeper, or the agent, is killed under a running task. The task
// ends as interrupted, with the cause; the other guest does not notice.
func TestKillKeeperAndAgent(t *testing.T) {
	for _, victim := range []string{"keep", "serve"} {
		t.Run(victim, func(t *testing.T) {
			w := newRing2(t)
			w.start()
			c := w.client()
			w.guest(c, "box")
			w.guest(c, "other")
			ready := make(chan struct{})
			var once sync.Once
			p, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"/bin/sh", "-c", "echo up; sleep 1000"},
				Stdout: writerFunc(func(b []byte) (int, error) { once.Do(func() { close(ready) }); return len(b), nil })})
			if err != nil {
				t.Fatal(err)
			}
			<-ready
			g, err := c.Guest(t.Context(), "box")
			if err != nil {
				t.Fatal(err)
			}
			pid := int(g.KeeperPid)
			if victim == "serve" {
				if pid = childOf(t, pid, "serve"); pid == 0 {
					t.Fatal("the agent's process was not found")
				}
			}
			if err := killOne(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			var ee *client.ExitError
			if err := p.Wait(); !errors.As(err, &ee) || !ee.Interrupted || ee.Status != 125 || ee.Cause == "" {
				t.Fatalf("the task ended with %v", err)
			}
			eventually(t, "the guest is stopped", func() bool {
				g, err := c.Guest(t.Context(), "box")
				return err == nil && g.State == api.GuestState_GUEST_STATE_STOPPED && g.Cause != ""
			})
			// Whoever was killed could not take its sockets along.
			run := filepath.Join(w.home, "run")
			eventually(t, "its sockets are gone", func() bool {
				_, inner := os.Lstat(guest.SocketPath(run, "box"))
				_, outer := os.Lstat(guest.EdgeSocketPath(run, "box"))
				return errors.Is(inner, os.ErrNotExist) && errors.Is(outer, os.ErrNotExist)
			})
			if _, err := os.Lstat(guest.SocketPath(run, "other")); err != nil {
				t.Errorf("the control, a keeper that lives: %v", err)
			}
			eventually(t, "nothing of it runs", func() bool { return len(w.processes()) == 4 }) // daemon, other's keeper, egress process and agent
			q, err := c.StartTask(t.Context(), client.Task{Guest: "other", Args: []string{"true"}})
			if err != nil {
				t.Fatal(err)
			}
			if err := q.Wait(); err != nil {
				t.Fatalf("the other guest: %v", err)
			}
			// It can be started again, and remembers.
			w.guest(c, "box")
			tasks, err := c.Tasks(t.Context(), "box")
			if err != nil || len(tasks) != 1 || tasks[0].State != api.TaskState_TASK_STATE_INTERRUPTED {
				t.Fatalf("%v %v", tasks, err)
			}
		})
	}
}

// childOf finds the descendant of a process whose arguments have a word.
func childOf(t *testing.T, pid int, word string) int {
	t.Helper()
	var kids []string // children hang on the thread that made them
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range threads {
		b, _ := os.ReadFile(f)
		kids = append(kids, strings.Fields(string(b))...)
	}
	for _, k := range kids {
		cmd, _ := os.ReadFile("/proc/" + k + "/cmdline")
		n, _ := strconv.Atoi(k)
		if strings.Contains(string(cmd), "\x00"+word+"\x00") || strings.HasSuffix(string(cmd), "\x00"+word+"\x00") {
			return n
		}
		if n = childOf(t, n, word); n != 0 {
			return n
		}
	}
	return 0
}

// F08: one damaged guest is set aside with a repair hint, the others go on; a
// state folder that cannot be read at all refuses the start.
func TestDamagedState(t *testing.T) {
	w := newRing2(t)
	w.start()
	c := w.client()
	for _, n := range []string{"sound", "hurt"} {
		w.guest(c, n)
		if _, err := c.StopGuest(t.Context(), n, time.Second); err != nil {
			t.Fatal(err)
		}
	}
	w.kill()
	guests := filepath.Join(w.home, "state", "guests")
	spec := filepath.Join(guests, "hurt", "guest.json")
	whole, err := os.ReadFile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, whole[:len(whole)/2], []byte(`{"version":99}`), bytes.Replace(whole, []byte("hurt"), []byte("../x"), 1)} {
		if err := os.WriteFile(spec, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		w.start()
		c := w.client()
		g, err := c.Guest(t.Context(), "hurt")
		if err != nil || g.State != api.GuestState_GUEST_STATE_DAMAGED || !strings.Contains(g.Cause, "carrel rm") {
			t.Fatalf("%.20q: %v %v", bad, g, err)
		}
		if _, err := c.StartGuest(t.Context(), &api.GuestSpec{Name: "hurt"}, client.GuestOptions{}); err == nil {
			t.Fatal("a damaged guest was started")
		}
		w.guest(c, "sound")
		if _, err := c.StopGuest(t.Context(), "sound", time.Second); err != nil {
			t.Fatal(err)
		}
		w.kill()
	}
	// The control: mended, it starts.
	if err := os.WriteFile(spec, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.guest(w.client(), "hurt")
	w.client().StopGuest(t.Context(), "hurt", time.Second)
	w.kill()

	if err := os.Rename(guests, guests+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(guests, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.tryStart(); err == nil || !strings.Contains(err.Error(), guests) {
		t.Fatalf("a state folder that is none: %v", err)
	}
	os.Remove(guests)
	if err := os.Rename(guests+".away", guests); err != nil {
		t.Fatal(err)
	}
	w.start()
}

// F14: many clients start, use, stop and remove the same few names at once. Each
// answer is one that some order of the calls explains, and nothing hangs.
func TestManyClients(t *testing.T) {
	w := newRing2(t)
	w.start()
	total := int64(scaled(1000, 10000))
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience) // for all of them
	defer cancel()
	var n, won, lost atomic.Int64
	var all sync.WaitGroup
	for k := range 64 {
		all.Go(func() {
			c, err := client.Connect(ctx, client.Options{Home: w.home, Daemon: filepath.Join(w.bin, "carreld"), NoStart: true})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			r := rand.New(rand.NewPCG(uint64(k), 1))
			for n.Add(1) <= total {
				name := fmt.Sprintf("g%d", r.IntN(4))
				var err error
				switch r.IntN(5) {
				case 0, 1:
					_, err = c.StartGuest(ctx, &api.GuestSpec{Name: name}, client.GuestOptions{OnlyNew: r.IntN(2) == 0})
				case 2:
					var p *client.Process
					if p, err = c.StartTask(ctx, client.Task{Guest: name, Args: []string{"true"}}); err == nil {
						var ee *client.ExitError
						if err = p.Wait(); errors.As(err, &ee) && (ee.Interrupted || ee.Signal != 0) {
							err = nil // somebody stopped it
						}
					}
				case 3:
					_, err = c.StopGuest(ctx, name, time.Second)
				case 4:
					err = c.RemoveGuest(ctx, name, r.IntN(2) == 0)
				}
				switch code := client.CodeOf(err); {
				case err == nil:
					won.Add(1)
				case code == "name_taken" || code == "running" || code == "not_running" || code == "busy" || code == "not_found" || code == "start_failed":
					lost.Add(1)
				default:
					t.Errorf("%s: %q %v", name, code, err)
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d calls, %d did what they were asked, %d were told why not", total, won.Load(), lost.Load())
	if won.Load() < total/10 {
		t.Errorf("only %d of %d calls did anything", won.Load(), total)
	}
}

// Of two that ask for one name at the same time, one wins and one is told.
func TestOneWinner(t *testing.T) {
	w := newRing2(t)
	w.start()
	c := w.client()
	for i := range 20 {
		var won, taken atomic.Int32
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				_, err := c.StartGuest(t.Context(), &api.GuestSpec{Name: "box"}, client.GuestOptions{OnlyNew: true})
				switch {
				case err == nil:
					won.Add(1)
				case client.CodeOf(err) == "name_taken":
					taken.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		all.Wait()
		if won.Load() != 1 || taken.Load() != 1 {
			t.Fatalf("round %d: %d won, %d were told", i, won.Load(), taken.Load())
		}
		if err := c.RemoveGuest(t.Context(), "box", true); err != nil {
			t.Fatal(err)
		}
	}
}

// A port of the host goes with its guest: whoever has stopped that may open the same one
// for another.
func TestPortGoesWithGuest(t *testing.T) {
	w := newRing2(t)
	w.start()
	c := w.client()
	for range 3 {
		w.guest(c, "box")
		p, err := c.Publish(t.Context(), "box", &api.Port{GuestPort: 80})
		if err != nil {
			t.Fatal(err)
		}
		at := net.JoinHostPort(p.HostAddress, fmt.Sprint(p.HostPort))
		open := func() bool {
			conn, err := net.Dial("tcp", at)
			if err == nil {
				conn.Close()
			}
			return err == nil
		}
		if !open() {
			t.Error("control: nobody listens at ", at)
		}
		if _, err := c.StopGuest(t.Context(), "box", 0); err != nil {
			t.Fatal(err)
		}
		if open() {
			t.Error("the guest is stopped, and its port is open: ", at)
		}
	}
}

// Old sockets and pid files are recognised and replaced; no process that merely
// has the number of an old keeper is ever signalled.
func TestStaleFiles(t *testing.T) {
	w := newRing2(t)
	w.start()
	c := w.client()
	w.guest(c, "box")
	g, err := c.Guest(t.Context(), "box")
	if err != nil {
		t.Fatal(err)
	}
	w.kill()
	if err := killOne(int(g.KeeperPid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// The keeper's number now means this very test, as far as the file says.
	pidfile := filepath.Join(w.home, "state", "guests", "box", "keeper.json")
	if err := os.WriteFile(pidfile, fmt.Appendf(nil, `{"pid":%d,"start":1,"boot":"x"}`, os.Getpid()), 0o600); err != nil {
		t.Fatal(err)
	}
	w.start() // over the old d.sock, d.lock and the keeper's socket
	c = w.client()
	w.guest(c, "box")
	p, err := c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := w.tryStart(); err == nil || !strings.Contains(err.Error(), "already") {
		t.Fatalf("a second daemon: %v", err)
	}
}
