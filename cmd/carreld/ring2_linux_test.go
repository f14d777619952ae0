package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// The second ring: the real daemon, keepers and agents as processes, over the
// driver without a boundary. What a kill at any instant leaves is looked at from
// outside: by the API of the next daemon, by files that tasks wrote, by /proc.

var built struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	if socket := os.Getenv(probeSocket); socket != "" {
		probe(socket) // this process is another user of the machine
		return
	}
	if dir := os.Getenv(confinedDir); dir != "" {
		tryConfined(dir)
		return
	}
	if dir := os.Getenv(confinedUnpackDir); dir != "" {
		tryConfinedUnpack(dir)
		return
	}
	if dir := os.Getenv(confinedEgressDir); dir != "" {
		tryConfinedEgress(dir)
		return
	}
	if program := os.Getenv(watchedDaemon); program != "" {
		fmt.Fprintln(os.Stderr, runWatched(program))
		os.Exit(1)
	}
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// binaries builds the programs once, the daemon with the test driver and with
// its crash points.
func binaries(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "carrel-ring2-"); built.err != nil {
			return
		}
		for _, args := range [][]string{
			{"-tags", "carreltest", "./cmd/carreld"}, {"./cmd/carrel"}, {"./cmd/carrel-agent"},
		} {
			cmd := exec.Command("go", append([]string{"build", "-o", built.dir + "/"}, args...)...)
			cmd.Dir = "../.."
			if out, err := cmd.CombinedOutput(); err != nil {
				built.err = fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
				return
			}
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

// world is one CARREL_HOME with its daemon.
type world struct {
	t    *testing.T
	bin  string
	home string
	work string   // a folder that tasks write to
	env  []string // for the daemon
	d    *exec.Cmd
	disk *disk // what its daemons meet; nil: the machine's own
}

func newRing2(t *testing.T, env ...string) *world {
	t.Helper()
	w := &world{t: t, bin: binaries(t), env: env}
	top, err := os.MkdirTemp("", "carrel-w-")
	if err != nil {
		t.Fatal(err)
	}
	w.home, w.work = filepath.Join(top, "home"), filepath.Join(top, "work")
	for _, d := range []string{w.home, w.work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if c, err := client.Connect(context.Background(), client.Options{Home: w.home, Daemon: filepath.Join(w.bin, "carreld"), AnyVersion: true}); err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			c.Shutdown(ctx, true)
			cancel()
			c.Close()
		}
		if w.d != nil {
			w.d.Wait()
		}
		// A daemon that a client started lives a moment longer than its lock.
		left := w.processes()
		for deadline := time.Now().Add(patience); len(left) > 0 && time.Now().Before(deadline); left = w.processes() {
			time.Sleep(10 * time.Millisecond)
		}
		if len(left) > 0 {
			t.Errorf("processes are left: %q", left)
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(w.home, "daemon.log"))
			t.Logf("the daemon's log:\n%.8000s", log)
		}
		os.RemoveAll(top)
	})
	return w
}

// start starts a daemon and waits for its word.
func (w *world) start(env ...string) {
	w.t.Helper()
	if err := w.tryStart(env...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) tryStart(env ...string) error {
	r, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	log, err := os.OpenFile(filepath.Join(w.home, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	w.d = exec.Command(filepath.Join(w.bin, "carreld"), "daemon", "--ready-fd", "3")
	w.d.Env = append(append(append(os.Environ(), "CARREL_HOME="+w.home, "CARREL_CACHE="), w.env...), env...)
	w.d.ExtraFiles, w.d.Stderr = []*os.File{pw}, log
	if w.disk != nil {
		if err := w.disk.wrap(w.d); err != nil {
			return err
		}
	}
	err = w.d.Start()
	pw.Close()
	if err != nil {
		return err
	}
	if w.disk != nil {
		if err := w.disk.watch(); err != nil {
			return err
		}
	}
	word, _ := bufio.NewReader(r).ReadString('\n')
	if word != "ok\n" {
		w.d.Wait()
		return fmt.Errorf("the daemon said %q", word)
	}
	return nil
}

// kill ends the daemon as a power cut would.
func (w *world) kill() {
	w.d.Process.Signal(syscall.SIGKILL)
	w.d.Wait()
}

func (w *world) client() *client.Client {
	w.t.Helper()
	c, err := client.Connect(w.t.Context(), client.Options{Home: w.home, Daemon: filepath.Join(w.bin, "carreld"), NoStart: true})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

func (w *world) guest(c *client.Client, name string) *api.Guest {
	w.t.Helper()
	g, err := c.StartGuest(w.t.Context(), &api.GuestSpec{Name: name}, client.GuestOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return g
}

// processes lists what runs out of this world's binaries for its home.
func (w *world) processes() (left []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		exe, err := os.Readlink(d + "/exe")
		if err != nil || !strings.HasPrefix(exe, w.bin+"/") {
			continue
		}
		env, _ := os.ReadFile(d + "/environ")
		cmd, _ := os.ReadFile(d + "/cmdline")
		stat, _ := os.ReadFile(d + "/stat")
		if strings.Contains(string(env), "CARREL_HOME="+w.home+"\x00") && !strings.Contains(string(stat), ") Z ") {
			left = append(left, filepath.Base(d)+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return left
}

// patience bounds each wait for what has to come. A test that passes does not
// take longer for it, only one that fails; and a machine that is busy, and
// emulates others, has taken more than the 20 s that this once was.
const patience = 5 * time.Minute

// killOne is kill(2) for one process: 0 and what is below it mean whole groups of
// them, among which the tests themselves are, and are what a daemon that has just
// begun says of a keeper that it has not heard of.
func killOne(pid int, sig syscall.Signal) error {
	if pid <= 1 {
		return fmt.Errorf("%d is no process of a test's", pid)
	}
	return syscall.Kill(pid, sig)
}

// keeperOf waits until the daemon knows which process keeps a guest.
func keeperOf(t *testing.T, c *client.Client, name string) (pid int) {
	t.Helper()
	eventually(t, "the daemon knows the keeper", func() bool {
		g, err := c.Guest(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		pid = int(g.KeeperPid)
		return pid != 0
	})
	return pid
}

// eventually waits for a state that another process reaches by itself; what it
// looks at gives no event to wait for.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("%v went by and still not: %s", patience, what)
		}
		<-tick.C
	}
}

// onlyInFull leaves a test to make test-full: it is long, or looks at what a
// machine does that is busy to its limits, as CI's is already.
func onlyInFull(t *testing.T) {
	t.Helper()
	if os.Getenv("CARREL_SCALE") != "full" {
		t.Skip("make test-full runs it")
	}
}

// scaled is the catalogue's number with CARREL_SCALE=full, else CI's share.
func scaled(ci, full int) int {
	if os.Getenv("CARREL_SCALE") == "full" {
		return full
	}
	return ci
}
