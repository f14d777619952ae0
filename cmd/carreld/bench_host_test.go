//go:build bench

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// TestBenchHost measures on any host, with nothing but Carrel and Go, what
// docs/specification.md promises of every host: scripts/verify-host. TestBench has
// the peers that exist on Linux only. CARREL_BENCH_BIN is the folder of carrel and
// carreld, CARREL_BENCH_WALLS says behind what ("vm process", of which it takes
// those that are named), CARREL_BENCH_OUT is a folder for figures.json and figures.md.
func TestBenchHost(t *testing.T) {
	b := newHostBench(t)
	h := b.newHome("")
	b.add(figure{Name: "daemon_fresh", Value: b.holds(h.daemon), Unit: "MB", N: 1, How: "a daemon that has served nothing yet: " + residentHow}, limit{})
	for _, wall := range b.walls {
		b.cold(h, wall)
	}
	b.rest(h)
	b.calls(h)
	for _, wall := range b.walls {
		b.guest(h, wall)
	}
	if err := h.c.Shutdown(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	for _, wall := range b.walls {
		b.warm(wall)
	}
}

// hostBench is one run of it.
type hostBench struct {
	figures
	bin, dir string
	n        int // starts of each kind; of what is quick, more
	walls    []hostWall
	goals    bool // a machine here has a processor's help, as the goals with KVM have
	to       string
}

// hostWall is what guests are behind.
type hostWall struct {
	name  string
	flags []string
	image string
	// machine: what runs in it is for Linux, and not for the host.
	machine bool
	how     string
}

func newHostBench(t *testing.T) *hostBench {
	t.Helper()
	b := &hostBench{figures: figures{T: t, host: hostFacts(), commit: commit(), out: os.Stdout}, bin: os.Getenv("CARREL_BENCH_BIN"), n: 5, to: os.Getenv("CARREL_BENCH_OUT")}
	var err error
	if s := os.Getenv("CARREL_BENCH_N"); s != "" {
		if b.n, err = strconv.Atoi(s); err != nil || b.n < 1 {
			t.Fatalf("CARREL_BENCH_N is %q, not a number of 1 or more", s)
		}
	}
	if b.bin == "" {
		t.Fatal("CARREL_BENCH_BIN names no folder with carrel and carreld\nagain: scripts/verify-host")
	}
	if b.dir, err = os.MkdirTemp("", "carrel-b-"); err != nil { // a socket's path has to be short
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(b.dir) })
	if b.to != "" {
		f, err := os.Create(filepath.Join(b.to, "figures.json"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			f.Close()
			b.write()
		})
		b.out = f
	}
	b.goals = runtime.GOOS != "linux" // there TestBench says it, which knows whether there is a KVM
	for _, name := range strings.Fields(os.Getenv("CARREL_BENCH_WALLS")) {
		w := hostWall{name: name, flags: []string{"--boundary", name}}
		switch name {
		case "vm":
			w.machine, w.how = true, "in a machine"
		case "process":
			w.how, w.image, w.flags = "behind the process wall, with this host's own system", "host", append(w.flags, "--image", "host")
		default:
			t.Fatalf("CARREL_BENCH_WALLS has %q, which is neither vm nor process", name)
		}
		b.walls = append(b.walls, w)
	}
	t.Logf("%s, n=%d", b.host, b.n)
	return b
}

// goal is one for machines that have a processor's help, or none.
func (b *hostBench) goal(w hostWall, l limit) limit {
	if b.goals && w.machine {
		return l
	}
	return limit{}
}

// hostHome is a CARREL_HOME with a daemon.
type hostHome struct {
	b      *hostBench
	dir    string
	c      *client.Client
	daemon int
}

func (b *hostBench) newHome(policy string) *hostHome {
	b.Helper()
	dir, err := os.MkdirTemp(b.dir, "h")
	if err == nil && policy != "" {
		if err = os.Mkdir(filepath.Join(dir, "config"), 0o700); err == nil {
			err = os.WriteFile(filepath.Join(dir, "config", "policy.yaml"), []byte(policy), 0o600)
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Setenv("CARREL_HOME", dir) // the daemon's, which the client starts
	c, err := client.Connect(b.Context(), client.Options{Home: dir, Daemon: b.program("carreld"), AnyVersion: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		c.Shutdown(ctx, true) // it may have been told already
		c.Close()
	})
	st, err := c.Status(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return &hostHome{b: b, dir: dir, c: c, daemon: int(st.Pid)}
}

func (b *hostBench) program(name string) string {
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	return filepath.Join(b.bin, name)
}

func (h *hostHome) carrel(args ...string) *exec.Cmd {
	cmd := exec.Command(h.b.program("carrel"), args...)
	cmd.Env = append(os.Environ(), "CARREL_HOME="+h.dir)
	cmd.Dir = h.b.dir
	return cmd
}

// holds is what a process holds, in MB.
func (b *hostBench) holds(pid int) float64 {
	b.Helper()
	mb, _, err := usage(pid)
	if err == nil && mb == 0 {
		err = fmt.Errorf("process %d holds no memory", pid)
	}
	if err != nil {
		b.Fatal(err)
	}
	return mb
}

// calls times a call of the API beside the least that one costs.
func (b *hostBench) calls(h *hostHome) {
	at := filepath.Join(b.dir, "echo")
	echo := exec.Command(os.Args[0], "http-echo", at)
	if err := echo.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		echo.Process.Kill()
		echo.Wait()
	})
	e := echoClient(at)
	for deadline := time.Now().Add(time.Minute); ; <-time.After(10 * time.Millisecond) {
		c, err := echoDial(b.Context(), at)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			b.Fatalf("the echo does not listen: %v", err)
		}
	}
	ours, peer := b.turns(100*b.n, func() float64 {
		begin := time.Now()
		if gs, err := h.c.Guests(b.Context()); err != nil || len(gs) != 0 {
			b.Fatalf("%v %v", gs, err)
		}
		return ms(time.Since(begin))
	}, func() float64 { return b.echo(e) })
	b.tail("api_call", ours, limit{}, "a call by the Go client on a connection that is there: the list of guests, of which there are none")
	b.tail("echo_call", peer, limit{}, "20 bytes to an echo of net/http and back, HTTP/2 over what the daemon is asked on, on a connection that is there")
	b.ratio("api_call_over_echo", "echo_call", ours, peer, limit{}, "pairs of the two above")
}

// cold times runs in fresh guests, beside the start of a program.
func (b *hostBench) cold(h *hostHome, w hostWall) {
	run := append(append([]string{"run", "-q", "--no-share"}, w.flags...), "--", "true")
	ours, peer := b.turns(b.n,
		func() float64 { return b.took(h.carrel(run...)) },
		func() float64 { return b.took(h.carrel("version")) })
	b.latency(w.name+"_cold_run", "ms", ours, b.goal(w, most(400)), "`carrel "+strings.Join(run, " ")+"` to its exit: daemon running, image cached, nothing shared, no pool")
	b.latency(w.name+"_program", "ms", peer, limit{}, "`carrel version` to its exit: what the start of the command line itself takes")
}

// Sizes of what is measured in a share.
const (
	hostBulk  = 64 << 20
	hostFiles = 1000
)

// guest measures a guest that runs: tasks, its keeper, and a share.
func (b *hostBench) guest(h *hostHome, w hostWall) {
	dir := filepath.Join(b.dir, "share-"+w.name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	inside := dir
	if w.machine {
		inside = "/bench"
	}
	spec := &api.GuestSpec{Name: "bench-" + w.name, Boundary: w.name, Image: w.image, Shares: []*api.Share{{Path: dir, GuestPath: inside, Mode: api.ShareMode_SHARE_MODE_RW}}}
	g, err := h.c.StartGuest(b.Context(), spec, client.GuestOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.add(figure{Name: w.name + "_keeper", Value: b.holds(int(g.KeeperPid)), Unit: "MB", N: 1, How: "the keeper of a guest with one share that has run nothing, " + w.how + ": " + residentHow}, limit{})

	one := client.Task{Guest: g.Name, Args: []string{"true"}}
	direct, cli := b.turns(8*b.n,
		func() float64 { return b.task(h.c, one) },
		func() float64 { return b.took(h.carrel("exec", g.Name, "--", "true")) })
	b.latency(w.name+"_exec_client", "ms", direct, b.goal(w, most(10)), "`true` in a running guest through the Go client, from the call to its status, "+w.how)
	b.latency(w.name+"_exec_cli", "ms", cli, limit{}, "`carrel exec NAME -- true` from its start to its exit")

	b.share(h, w, g.Name, dir, inside)
	if _, err := h.c.StopGuest(b.Context(), g.Name, 10*time.Second); err != nil {
		b.Fatal(err)
	}
	if err := h.c.RemoveGuest(b.Context(), g.Name, true); err != nil {
		b.Fatal(err)
	}
}

// share compares a guest's work in a folder that it may change with the host's in
// the same one, by the same program, built for each. Both work on names that are
// new to them: what a guest reads has been written by the host and is in no cache
// of the guest's.
func (b *hostBench) share(h *hostHome, w hostWall, guest, dir, inside string) {
	b.compile(filepath.Join(dir, "host-files.exe"), runtime.GOOS)
	program := filepath.Join(dir, "host-files.exe")
	if w.machine {
		b.compile(filepath.Join(dir, "guest-files"), "linux")
		program = inside + "/guest-files"
	}
	turn := 0
	for _, op := range []struct {
		word       string
		amount     int
		units      float64
		unit, does string
	}{
		{"write", hostBulk, hostBulk >> 20, "MiB/s", "64 MiB to a new file, in blocks of 1 MiB"},
		{"read", hostBulk, hostBulk >> 20, "MiB/s", "64 MiB of a file that the host wrote, in blocks of 1 MiB"},
		{"create", hostFiles, hostFiles, "files/s", "1,000 files created, 12 bytes written to each"},
	} {
		speed := func(run func(name string) string) func() float64 {
			return func() float64 {
				turn++
				name := fmt.Sprint(op.word, turn)
				at := filepath.Join(dir, name)
				if op.word == "read" {
					if err := os.WriteFile(at, make([]byte, op.amount), 0o644); err != nil {
						b.Fatal(err)
					}
				}
				said := strings.TrimSpace(run(name))
				seconds, err := strconv.ParseFloat(said, 64)
				if err != nil || seconds <= 0 {
					b.Fatalf("benchfiles %s says %q", op.word, said)
				}
				if err := os.RemoveAll(at); err != nil {
					b.Fatal(err)
				}
				return op.units / seconds
			}
		}
		ours, peer := b.turns(b.n,
			speed(func(name string) string {
				var said, complaint bytes.Buffer
				p, err := h.c.StartTask(b.Context(), client.Task{Guest: guest, Dir: inside, Stdout: &said, Stderr: &complaint,
					Args: []string{program, op.word, inside + "/" + name, fmt.Sprint(op.amount)}})
				if err == nil {
					err = p.Wait()
				}
				if err != nil {
					b.Fatalf("benchfiles %s in the guest: %v: %s", op.word, err, complaint.String())
				}
				return said.String()
			}),
			speed(func(name string) string {
				out, err := exec.Command(filepath.Join(dir, "host-files.exe"), op.word, filepath.Join(dir, name), fmt.Sprint(op.amount)).Output()
				if err != nil {
					b.Fatalf("benchfiles %s on the host: %v", op.word, err)
				}
				return string(out)
			}))
		b.median(w.name+"_share_"+op.word, op.unit, ours, limit{}, op.does+"; a guest in a shared folder, "+w.how)
		b.median(w.name+"_host_"+op.word, op.unit, peer, limit{}, "the same by the host in that folder")
		b.ratio(w.name+"_share_over_host_"+op.word, w.name+"_host_"+op.word, ours, peer, limit{}, "pairs of the two above, in speed")
	}
}

// compile builds benchfiles for a system and this host's kind of processor.
func (b *hostBench) compile(out, system string) {
	b.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/benchfiles")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system, "GOARCH="+runtime.GOARCH)
	if text, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %v\n%s", cmd.Args, err, text)
	}
}

// rest measures the daemon when nothing runs any more, as TestBench does: after
// cold runs.
func (b *hostBench) rest(h *hostHome) {
	const rest, window = 10 * time.Second, 10 * time.Second
	<-time.After(rest) // Go gives memory back in the background after work
	_, before, err := usage(h.daemon)
	if err != nil {
		b.Fatal(err)
	}
	<-time.After(window)
	mb, after, err := usage(h.daemon)
	if err != nil {
		b.Fatal(err)
	}
	b.add(figure{Name: "daemon_idle_wakeups", Value: (after - before) / window.Seconds(), Unit: "per s", N: 1,
		How: fmt.Sprintf("context switches of all its threads in %v, %v after the last cold run", window, rest)}, nothing)
	b.add(figure{Name: "daemon_idle", Value: mb, Unit: "MB", N: 1, How: "the daemon after the cold runs, no guest left: " + residentHow}, most(30))
}

// warm times runs from a pool, and the daemon's own part of them.
func (b *hostBench) warm(w hostWall) {
	policy := "version: 1\npool: {size: 1, boundary: " + w.name
	flags, shared := w.flags, "an empty folder shared for review"
	if !w.machine { // Seatbelt can give a guest that runs no folder
		policy += ", disk: 0B, image: " + w.image
		flags, shared = append([]string{"--no-share"}, flags...), "nothing shared"
	}
	h := b.newHome(policy + "}\n")
	defer h.c.Shutdown(b.Context(), true)
	empty := filepath.Join(h.dir, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		b.Fatal(err)
	}
	var runs, claims []float64
	for range b.n {
		if !b.full(h) {
			b.Logf("not measured: %s_warm_run and %s_claim: no guest of the pool became ready within %v (a host where a running guest can be given no shares has none)", w.name, w.name, poolPatience)
			return
		}
		cmd := h.carrel(append(append([]string{"run", "-q", "--timings", "--json"}, flags...), "--", "true")...)
		cmd.Dir = empty
		var said strings.Builder
		cmd.Stderr, cmd.Stdout = &said, io.Discard
		begin := time.Now()
		if err := cmd.Run(); err != nil {
			b.Fatalf("%v: %v\n%s", cmd.Args, err, said.String())
		}
		runs = append(runs, ms(time.Since(begin)))
		claims = append(claims, b.claimed(said.String()))
	}
	b.latency(w.name+"_warm_run", "ms", runs, limit{}, "`carrel run -- true` to its exit, "+w.how+", "+shared+", a guest of the pool warm")
	b.latency(w.name+"_claim", "ms", claims, most(claimGoal), "of such a run, by `--timings`: the daemon's part \"claimed from the pool\"")
}

// poolPatience bounds the wait for a warm guest.
const poolPatience = 3 * time.Minute

// full waits until the pool is, and nothing of a run before is left.
func (b *hostBench) full(h *hostHome) bool {
	b.Helper()
	for deadline := time.Now().Add(poolPatience); time.Now().Before(deadline); <-time.After(50 * time.Millisecond) {
		st, err := h.c.Status(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if st.Guests == 0 && st.GuestsWarm == 1 {
			return true
		}
	}
	return false
}

// write makes the table of what was measured.
func (b *hostBench) write() {
	head := "Every goal that applies here is met."
	if slices.ContainsFunc(b.all, func(f figure) bool { return f.Met != nil && !*f.Met }) {
		head = "Goals are missed."
	}
	if b.Failed() {
		head = "**It did not come to its end**: what was measured until then."
	}
	text := fmt.Sprintf("Measured on %s, at commit %s. %s\n\n%s", b.host, b.commit, head, b.rows())
	if err := os.WriteFile(filepath.Join(b.to, "figures.md"), []byte(text), 0o644); err != nil {
		b.Error(err)
	}
}
