//go:build torture

package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// torture is a world in which clients work while processes are killed.
type torture struct {
	*world
	spec  *api.GuestSpec // of every guest, without its name
	names []string
	r     *rand.Rand // the driver's
	marks string     // a folder of crash marks
	// ballast is a file that fills the small disk on which the world is; empty: it
	// is on the machine's own.
	ballast string

	mu    sync.Mutex
	gen   int           // daemons that were started
	newer chan struct{} // closed when the next one serves
	jobs  []*job
	told  map[api.TaskState]int // endings that clients were told
	last  error                 // what a client was refused with, or how its call broke

	moved  chan struct{} // something came of the clients' work
	exited chan struct{} // closed when this daemon has ended
	died   time.Time     // when its death was ordered, or seen
	toll   toll
}

// toll is what came of it.
type toll struct {
	Kills          map[string]int
	Daemon, Guest  []time.Duration // from a kill to the next answer
	Took           time.Duration
	Exited, Broken int // tasks by their ending: exited, interrupted
	Unanswered     int // requests that were never answered
	Lost, Twice    int
	Orphans        int
	Failures       int            // times at which the disk failed, or was full
	Stood          map[string]int // processes that stood still for a moment
}

func (t *toll) kills() (n int) {
	for _, k := range t.Kills {
		n += k
	}
	return n
}

// F01, F02, F03, F04: clients submit, attach, cancel and read while daemon, keeper,
// egress process, agent, and where there are some
// hypervisor, wall and share process are killed at random instants or stand still,
// and daemon and keeper are killed at named points too.
func TestTorture(t *testing.T) {
	t.Run("bare", func(t *testing.T) {
		w := newRing2(t)
		x := &torture{world: w, spec: &api.GuestSpec{}, marks: filepath.Join(w.work, "marks")}
		x.run(t, scaled(500, 10000))
	})
	t.Run("process", func(t *testing.T) {
		w, spec := newProcessWorld(t)
		x := &torture{world: w, spec: spec}
		x.run(t, scaled(100, 2000))
	})
	// Machines under emulation start slowly, so it is fewer here.
	t.Run("machine", func(t *testing.T) {
		w, spec := newProcessWorld(t)
		spec.Boundary, spec.Image, spec.Cpus, spec.MemoryMib = wallVM, "", 1, 512
		x := &torture{world: w, spec: spec}
		x.run(t, scaled(50, 500))
	})
	t.Run("failing", func(t *testing.T) {
		w := newRing2(t)
		w.disk = &disk{bin: w.bin}
		x := &torture{world: w, spec: &api.GuestSpec{}, marks: filepath.Join(w.work, "marks")}
		x.run(t, scaled(250, 5000))
	})
	t.Run("full", func(t *testing.T) {
		w := newRing2(t)
		x := &torture{world: w, spec: &api.GuestSpec{}, ballast: smallDisk(t, w.home)}
		x.run(t, scaled(250, 5000))
	})
}

// smallDisk makes a folder a file system of its own, on a file of 24 MiB, and
// returns the name of a file to fill it with.
func smallDisk(t *testing.T, dir string) string {
	t.Helper()
	img := filepath.Join(t.TempDir(), "disk")
	for _, args := range [][]string{{"truncate", "-s", "24M", img}, {"mkfs.ext4", "-q", "-m", "0", img}, {"mount", "-o", "loop", img, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s (this test runs as root)", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, out)
		}
	})
	return filepath.Join(dir, "ballast")
}

func (x *torture) run(t *testing.T, kills int) {
	if n, err := strconv.Atoi(os.Getenv("CARREL_TORTURE_KILLS")); err == nil && n > 0 {
		kills = n
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("CARREL_TORTURE_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("again: CARREL_TORTURE_SEED=%d go test -run '%s' ./cmd/carreld (the instants are never the same)", seed, t.Name())
	x.r, x.names, x.newer, x.toll.Kills, x.toll.Stood = rand.New(rand.NewPCG(seed, 1)), []string{"one", "two"}, make(chan struct{}), map[string]int{}, map[string]int{}
	x.told, x.moved = map[api.TaskState]int{}, make(chan struct{}, 1)
	if x.marks != "" {
		if err := os.Mkdir(x.marks, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(x.work, "ran"), 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	begin := time.Now()
	x.serve()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute+time.Duration(kills)*2*time.Second)
	defer cancel()
	wctx, enough := context.WithCancel(ctx)
	var clients sync.WaitGroup
	for n := range 3 {
		clients.Go(func() { x.client(ctx, wctx, n, rand.New(rand.NewPCG(seed, uint64(n)+2))) })
	}
	for (x.toll.kills() < kills || !x.shows() || x.toll.kills() < 2*kills && len(x.spared()) > 0) && !t.Failed() && ctx.Err() == nil {
		x.strike(ctx)
	}
	enough()
	settled := make(chan struct{})
	go func() { clients.Wait(); close(settled) }()
wait:
	for { // a daemon that is still to die at some point does so now
		select {
		case <-x.exited:
			x.count("daemon at a point")
			x.serve()
		case <-settled:
			break wait
		}
	}
	if ctx.Err() != nil {
		t.Errorf("after %v nothing more came of it: %d kills %v, endings told %v, the last error: %v", time.Since(begin), x.toll.kills(), x.toll.Kills, x.told, x.last)
	}
	if s := x.spared(); len(s) > 0 {
		t.Errorf("%d kills %v, and of these kinds none: %q", x.toll.kills(), x.toll.Kills, s)
	}
	if t.Failed() {
		return
	}
	x.env = slices.DeleteFunc(x.env, func(e string) bool { return strings.HasPrefix(e, "CARREL_CRASH") })
	x.killDaemon()
	x.check(ctx)
	x.toll.Took = time.Since(begin)
	x.leave()
	x.toll.report(t)
}

// serve starts daemons until one serves.
func (x *torture) serve() {
	base := slices.DeleteFunc(slices.Clone(x.env), func(e string) bool { return strings.HasPrefix(e, "CARREL_CRASH") })
	died := x.died
	for tries := 0; ; tries++ {
		x.env = base
		if x.marks != "" && x.r.IntN(3) == 0 && tries < 5 {
			points := crashPoints(x.t)
			x.env = append(slices.Clone(base), "CARREL_CRASH="+points[x.r.IntN(len(points))], fmt.Sprintf("CARREL_CRASH_MARK=%s/%d-%d", x.marks, x.gen, tries))
		}
		err := x.tryStart()
		if err == nil {
			break
		}
		x.count("daemon at a point")
		if tries > 20 {
			x.t.Fatalf("no daemon comes up any more: %v", err)
		}
	}
	if !died.IsZero() {
		x.toll.Daemon = append(x.toll.Daemon, time.Since(died))
	}
	x.died = time.Time{}
	d, exited := x.d, make(chan struct{})
	go func() { d.Wait(); close(exited) }()
	x.exited = exited
	x.mu.Lock()
	x.gen++
	close(x.newer)
	x.newer = make(chan struct{})
	x.mu.Unlock()
}

func (x *torture) generation() (int, <-chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.gen, x.newer
}

func (x *torture) count(what string) { x.toll.Kills[what]++ }

func (x *torture) killDaemon() {
	x.died = time.Now()
	x.d.Process.Kill()
	<-x.exited
	x.serve()
}

// shows says whether enough has come of it to show anything.
func (x *torture) shows() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.told[api.TaskState_TASK_STATE_EXITED] >= 3 && x.told[api.TaskState_TASK_STATE_INTERRUPTED] >= 1
}

// spared lists the kinds of process of which a world like this one has some, and of
// which none was killed, after so many kills that this is no chance: of 160, four
// were the fewest of a kind, and a run goes on to twice its kills for one.
func (x *torture) spared() (kinds []string) {
	const enough = 150
	if x.toll.kills() < enough {
		return nil
	}
	all := []string{"daemon", "keeper", "egress process", "agent"}
	switch x.spec.Boundary {
	case wallProcess:
		all = append(all, "bwrap", "wall process", "share process")
	case wallVM:
		all = append(all, "hypervisor", "share process")
	}
	return slices.DeleteFunc(all, func(kind string) bool { return x.toll.Kills[kind] > 0 })
}

// strike waits until something has come of the clients' work since the last one,
// and from then for a random instant, and kills something.
func (x *torture) strike(ctx context.Context) {
	select {
	case <-x.moved:
	case <-x.exited: // seen to below
	case <-ctx.Done():
		return
	}
	select {
	case <-time.After(time.Duration(x.r.IntN(25_000)) * time.Microsecond): // the random instant
	case <-x.exited: // it came to its point
		x.died = time.Now()
		x.count("daemon at a point")
		x.serve()
		return
	case <-ctx.Done():
		return
	}
	if (x.disk != nil || x.ballast != "") && x.r.IntN(6) == 0 {
		x.hurt()
		return
	}
	stands := false
	if x.r.IntN(16) == 0 {
		if x.stand("daemon", x.d.Process.Pid) {
			return
		}
		stands = true
	}
	if stands || x.r.IntN(5) < 3 {
		x.count("daemon")
		x.killDaemon()
		return
	}
	if x.spec.Boundary == wallVM && x.r.IntN(6) == 0 {
		x.endAgent(ctx)
		return
	}
	kinds := x.victims()
	if x.r.IntN(4) == 0 { // processes are forked seldom: one is waited for
		for end := time.Now().Add(200 * time.Millisecond); len(kinds[forked]) == 0 && time.Now().Before(end); {
			kinds = x.victims()
		}
		if pids := kinds[forked]; len(pids) > 0 {
			if killOne(pids[0], syscall.SIGKILL) == nil {
				x.count(forked)
			}
			return // whose it was lives on, unless it was to be part of a guest's machine
		}
	}
	delete(kinds, forked)
	if len(kinds) == 0 {
		return
	}
	names := slices.Sorted(maps.Keys(kinds))
	kind := names[x.r.IntN(len(names))]
	pid := kinds[kind][x.r.IntN(len(kinds[kind]))]
	owner, keeper := x.owner(ctx, pid)
	if x.r.IntN(5) == 0 && x.stand(victim(kind), pid) {
		return
	}
	began := time.Now()
	if killOne(pid, syscall.SIGKILL) != nil {
		return
	}
	x.count(victim(kind))
	if kind == "share" && owner != "" { // its guest goes on without it: what is asked for is a guest that has it
		c := x.raw()
		c.guests.Stop(ctx, connect.NewRequest(&api.StopGuestRequest{Name: owner}))
		c.close()
	}
	if owner != "" && x.again(ctx, owner, keeper) {
		x.toll.Guest = append(x.toll.Guest, time.Since(began))
	}
	if x.r.IntN(20) == 0 { // its tasks are to be remembered all the same
		c := x.raw()
		defer c.close()
		c.guests.Remove(ctx, connect.NewRequest(&api.RemoveGuestRequest{Name: x.names[x.r.IntN(len(x.names))], Force: true}))
	}
}

// endAgent ends the agent inside a machine, as only the guest's own root can: it is
// the first process there, which dies of no signal that it has no handler for, and
// Go has one for this.
func (x *torture) endAgent(ctx context.Context) {
	c := x.raw()
	defer c.close()
	name := x.names[x.r.IntN(len(x.names))]
	r, err := c.guests.Inspect(ctx, connect.NewRequest(&api.InspectGuestRequest{Name: name}))
	if err != nil || r.Msg.Guest.GetState() != api.GuestState_GUEST_STATE_READY {
		return
	}
	began := time.Now()
	if _, err := c.run(ctx, &api.StartTaskRequest{Guest: name, Spec: &api.TaskSpec{User: "root", Argv: []string{"/bin/sh", "-c", "kill -TERM 1"}}}); err != nil {
		return // it may have come to it all the same
	}
	x.count("agent")
	if x.again(ctx, name, r.Msg.Guest.KeeperPid) {
		x.toll.Guest = append(x.toll.Guest, time.Since(began))
	}
}

// stand has a process stand still for a random moment, of two seconds at most, which
// is nobody's end. In one case of four it is to be killed then, as it stands, and
// stand says that it goes on no more.
func (x *torture) stand(kind string, pid int) (goesOn bool) {
	if killOne(pid, syscall.SIGSTOP) != nil {
		return true // it has ended
	}
	x.toll.Stood[kind]++
	most := 50
	if x.r.IntN(4) == 0 {
		most = 2000
	}
	time.Sleep(time.Duration(x.r.IntN(most)) * time.Millisecond)
	if x.r.IntN(4) == 0 {
		return false
	}
	killOne(pid, syscall.SIGCONT)
	return true
}

// hurt has the disk fail, or be full, for a random moment while the clients work.
// What has met a sync that failed writes nothing more, so those processes are
// killed then.
func (x *torture) hurt() {
	x.toll.Failures++
	sync := false
	if x.ballast != "" {
		f, err := os.OpenFile(x.ballast, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			x.t.Fatal(err)
		}
		for block := make([]byte, 64<<10); err == nil && len(block) > 0; {
			if _, err = f.Write(block); errors.Is(err, syscall.ENOSPC) {
				block, err = block[:len(block)/2], nil // to the last byte
			}
		}
		f.Close()
		if err != nil {
			x.t.Fatal(err)
		}
	} else {
		switch x.r.IntN(3) {
		case 0:
			sync = true
			x.disk.fail(syscall.EIO, syncs...)
		case 1:
			x.disk.fail(syscall.EDQUOT, writes...)
		case 2:
			x.disk.fail(syscall.EROFS, edits...)
		}
	}
	select {
	case <-time.After(time.Duration(x.r.IntN(300)) * time.Millisecond):
	case <-x.exited:
	}
	if x.ballast != "" {
		if err := os.Remove(x.ballast); err != nil {
			x.t.Fatal(err)
		}
	} else {
		x.disk.fail(0)
	}
	if !sync {
		return
	}
	for _, pid := range x.victims()["keep"] {
		if killOne(pid, syscall.SIGKILL) == nil {
			x.count("keeper")
		}
	}
	x.count("daemon")
	x.killDaemon()
}

// forked is the kind of a process that was listed between its fork and its exec,
// when it has its parent's words still: at a kill it may be anything, a task too.
const forked = "process just forked"

// victims lists what can be killed beside the daemon, by kind.
func (x *torture) victims() map[string][]int {
	kinds := map[string][]int{}
	for _, p := range x.processes() {
		number, words, _ := strings.Cut(p, " ")
		pid, err := strconv.Atoi(number)
		verb := strings.Fields(words)
		if err != nil || len(verb) < 2 {
			continue
		}
		its, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", parent(pid)))
		switch {
		case words == strings.ReplaceAll(string(its), "\x00", " "):
			kinds[forked] = append(kinds[forked], pid)
		case verb[1] != "daemon":
			kinds[verb[1]] = append(kinds[verb[1]], pid)
		}
		if verb[1] == "keep" {
			if pid := childOf(x.t, pid, "-machine"); pid != 0 { // an option of QEMU's
				kinds["hypervisor"] = append(kinds["hypervisor"], pid)
			}
			// What follows has nothing of the daemon's environment, by which processes finds the others.
			if pid := childOf(x.t, pid, "share"); pid != 0 {
				kinds["share"] = append(kinds["share"], pid)
			}
			if wall := childOf(x.t, pid, "wall"); wall != 0 {
				kinds["wall"] = append(kinds["wall"], wall)
				if bwrap := childOf(x.t, wall, "wall"); bwrap != 0 { // which is told what it is to run
					kinds["bwrap"] = append(kinds["bwrap"], bwrap)
					if agent := childOf(x.t, bwrap, "wall"); agent != 0 {
						kinds["serve"] = append(kinds["serve"], agent)
					}
				}
			}
		}
	}
	return kinds
}

// parent is a process's parent, 0 if it is gone.
func parent(pid int) int {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(f[1])
	return n
}

// victim names a kind of process as a reader knows it.
func victim(verb string) string {
	if n, ok := map[string]string{"keep": "keeper", "serve": "agent", "egress": "egress process", "wall": "wall process", "share": "share process", "review": "review process"}[verb]; ok {
		return n
	}
	return verb
}

// owner is the guest of whose machine a process is part, with its keeper's pid:
// without the process the guest ends.
func (x *torture) owner(ctx context.Context, pid int) (name string, keeper int32) {
	c := x.raw()
	defer c.close()
	r, err := c.guests.List(ctx, connect.NewRequest(&api.ListGuestsRequest{}))
	if err != nil {
		return "", 0
	}
	for p := pid; p > 1; {
		for _, g := range r.Msg.Guests {
			if int(g.KeeperPid) == p && g.State == api.GuestState_GUEST_STATE_READY {
				return g.Name, g.KeeperPid
			}
		}
		p = parent(p)
	}
	return "", 0
}

// again starts a guest whose machine was killed, and says whether it came up with
// another keeper.
func (x *torture) again(ctx context.Context, name string, old int32) bool {
	c := x.raw()
	defer c.close()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	var last string
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end) && ctx.Err() == nil; <-tick.C {
		select {
		case <-x.exited:
			return false
		default:
		}
		g, err := c.start(ctx, x.request(name))
		if err != nil && word(err) == "running" {
			r, ierr := c.guests.Inspect(ctx, connect.NewRequest(&api.InspectGuestRequest{Name: name}))
			if ierr != nil {
				continue
			}
			g, err = r.Msg.Guest, nil
		}
		if err == nil && g.State == api.GuestState_GUEST_STATE_READY && g.KeeperPid != old && g.KeeperPid != 0 {
			return true
		}
		last = fmt.Sprintf("%v; state %v, keeper %d", err, g.GetState(), g.GetKeeperPid())
	}
	if ctx.Err() == nil {
		x.t.Errorf("guest %s, whose keeper was %d, does not come back: %s", name, old, last)
	}
	return false
}

func (x *torture) request(name string) *api.StartGuestRequest {
	spec := proto.Clone(x.spec).(*api.GuestSpec)
	spec.Name = name
	return &api.StartGuestRequest{Spec: spec}
}

// leave ends all and looks for what is left over.
func (x *torture) leave() {
	t := x.t
	c, err := client.Connect(t.Context(), client.Options{Home: x.home, Daemon: filepath.Join(x.bin, "carreld"), NoStart: true})
	if err != nil {
		t.Fatal(err)
	}
	gs, err := c.Guests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range gs {
		if g.State == api.GuestState_GUEST_STATE_DAMAGED {
			t.Errorf("damaged: %s", g.Cause)
		}
		if err := c.RemoveGuest(t.Context(), g.Name, true); err != nil {
			t.Errorf("remove %s: %v", g.Name, err)
		}
	}
	if err := c.Shutdown(t.Context(), true); err != nil {
		t.Error(err)
	}
	c.Close()
	<-x.exited
	eventually(t, "no process is left", func() bool { x.toll.Orphans = len(x.processes()); return x.toll.Orphans == 0 })
	for _, dir := range []string{"state/guests", "state/volumes"} {
		left, err := os.ReadDir(filepath.Join(x.home, dir))
		if err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v %v", dir, left, err)
		}
	}
	filepath.WalkDir(filepath.Join(x.home, "run"), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type()&os.ModeSocket != 0 {
			t.Errorf("a socket is left: %s", p)
		}
		return nil
	})
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(strings.ReplaceAll(string(mounts), " "+x.home+" ", " "), x.home) || x.ballast == "" && strings.Contains(string(mounts), x.home) || strings.Contains(string(mounts), x.work) {
		t.Errorf("a mount is left: %v\n%s", err, mounts)
	}
	// The index is sound by SQLite's own word.
	db, err := sql.Open("sqlite", filepath.Join(x.home, "state", "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var sound string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&sound); err != nil || sound != "ok" {
		t.Errorf("the index: %q %v", sound, err)
	}
	if aside, _ := filepath.Glob(filepath.Join(x.home, "state", "index.db.*")); len(aside) > 0 {
		t.Errorf("beside the index: %q", aside)
	}
	if out, err := exec.Command("find", filepath.Join(x.home, "state"), "-name", ".rm-*", "-o", "-name", ".new-*").Output(); err != nil || len(out) > 0 {
		t.Errorf("half made or half removed: %s %v", out, err)
	}
}
