package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/place"
)

// The scripts use the program as a person does. In the second ring each has a
// daemon and a home of its own, and its guests are ordinary processes: no
// overlay is mounted, no user changed, nothing shut out. In the third ring some
// of them run again on real machines, beside each other on one daemon. What
// differs between the rings stands behind the conditions [vm] and [!vm].

const scripts = "testdata/script"

// behindWalls are the scripts that run behind real walls, too. The others look
// at what comes before a guest, or need a daemon that nobody else uses.
var behindWalls = []string{"cp", "guests", "logs", "review", "run", "share", "signals", "task", "terminal"}

// suiteTime bounds one ring's scripts, so that one that hangs is named.
const suiteTime = 15 * time.Minute

// scriptPatience bounds each wait for what has to come. A script that passes does not
// take longer for it, and a busy machine may be slower than any guess.
const scriptPatience = 5 * time.Minute

func TestScripts(t *testing.T) {
	bin := buildPrograms(t, []string{"-tags", "carreltest", "./cmd/carreld"}, []string{"./cmd/carrel", "./cmd/carrel-agent"})
	runScripts(t, testscript.Params{Dir: scripts}, false, false, func() (*home, error) { return newHome(bin, "") })
}

// besides are the scripts that run with an agent as macOS would have it, beside
// its tasks, beside those of its own. Of the others those about shares need an agent that mounts, and the
// rest does not depend on the agent.
var besides = []string{"cp", "guests", "logs", "run", "signals", "task", "terminal"}

// TestScriptsBeside runs them over what of macOS's driver runs here, without a
// wall.
func TestScriptsBeside(t *testing.T) {
	files := []string{"testdata/beside/proxy.txt"}
	for _, name := range besides {
		files = append(files, filepath.Join(scripts, name+".txt"))
	}
	bin := buildPrograms(t, []string{"-tags", "carreltest,carrelbeside", "./cmd/carreld", "./cmd/carrel-agent"}, []string{"./cmd/carrel"})
	runScripts(t, testscript.Params{Files: files}, false, false, func() (*home, error) { return newHome(bin, "") })
}

// TestScriptsWall runs them behind the process wall.
func TestScriptsWall(t *testing.T) {
	dir := t.TempDir()
	var files []string
	for _, name := range behindWalls {
		b, err := os.ReadFile(filepath.Join(scripts, name+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name+".txt")
		// As a person would say it: a wall weaker than the strongest is asked for.
		asked := said.ReplaceAllFunc(b, func(line []byte) []byte { return asks.ReplaceAll(line, []byte("carrel $1 --boundary process -")) })
		if err := os.WriteFile(file, asked, 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	bin := buildPrograms(t, []string{"./cmd/carrel", "./cmd/carreld"}, []string{"./cmd/carrel-agent"})
	runScripts(t, testscript.Params{Files: files}, true, false, func() (*home, error) { return newHome(bin, imageCache(t)) })
}

// said are the lines of a script that run something, and asks the commands in
// them that a wall can be asked of.
var (
	said = regexp.MustCompile(`(?m)^(\[!?[a-z]+\] )?(ends|exec|signal|terminal) .*$`)
	asks = regexp.MustCompile(`\bcarrel (run|start) -`) // one without flags is of a guest that is there
)

func TestScriptsVM(t *testing.T) {
	if testing.Short() {
		t.Skip("the third ring needs a built image and real machines: make test runs it")
	}
	var files []string
	for _, name := range append([]string{"doctor", "image"}, behindWalls...) {
		files = append(files, filepath.Join(scripts, name+".txt"))
	}
	bin := buildPrograms(t, []string{"./cmd/carrel", "./cmd/carreld"}, []string{"./cmd/carrel-agent"}) // which doctor looks for
	h, err := newHome(bin, imageCache(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the scripts, which are parallel
		if err := h.end(); err != nil {
			t.Error(err)
		}
	})
	runScripts(t, testscript.Params{Files: files}, true, true, func() (*home, error) { return h, nil })
}

// imageCache holds the image that make image has built.
func imageCache(t *testing.T) string {
	p, err := place.Home()
	if err != nil {
		t.Fatal(err)
	}
	return p.Cache
}

// runScripts runs scripts of one ring, each in the home that it is given; one
// that is not a machine's home ends with its script.
func runScripts(t *testing.T, p testscript.Params, wall, vm bool, at func() (*home, error)) {
	p.WorkdirRoot, p.Deadline, p.Cmds, p.Condition = t.TempDir(), time.Now().Add(suiteTime), scriptCommands, ring(wall, vm)
	p.Setup = func(env *testscript.Env) error {
		h, err := at()
		if err != nil {
			return err
		}
		h.enter(env)
		if !vm {
			env.Defer(func() {
				if err := h.end(); err != nil {
					env.T().Fatal(err)
				}
			})
		}
		return nil
	}
	testscript.Run(t, p)
}

func ring(wall, vm bool) func(string) (bool, error) {
	return func(cond string) (bool, error) {
		switch cond {
		case "wall":
			return wall, nil
		case "vm":
			return vm, nil
		}
		return false, fmt.Errorf("unknown condition %q: only wall and vm are there", cond)
	}
}

// buildPrograms builds into one folder, with one call of go build per list.
func buildPrograms(t *testing.T, calls ...[]string) string {
	t.Helper()
	bin := t.TempDir()
	for _, args := range calls {
		cmd := exec.Command("go", append([]string{"build", "-o", bin + "/"}, args...)...)
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0") // as make build does
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	return bin
}

// home is one daemon's folder, and a user's.
type home struct{ bin, top, carrel, user, cache string }

func newHome(bin, cache string) (*home, error) {
	top, err := os.MkdirTemp("", "carrel-s-")
	if err != nil {
		return nil, err
	}
	h := &home{bin: bin, top: top, carrel: filepath.Join(top, "home"), user: filepath.Join(top, "user"), cache: cache}
	for _, d := range []string{h.carrel, h.user, filepath.Join(h.user, ".ssh")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// enter makes a script use h. Its current folder, $WORK, is its project.
func (h *home) enter(env *testscript.Env) {
	env.Setenv("PATH", h.bin+":"+os.Getenv("PATH"))
	env.Setenv("HOME", h.user)
	env.Setenv("CARREL_HOME", h.carrel)
	env.Setenv("CARREL_CACHE", h.cache)
	env.Setenv("TZ", "UTC")
}

// end stops all that runs for h, removes it, and says what was left running.
func (h *home) end() error {
	defer os.RemoveAll(h.top)
	stop := exec.Command(filepath.Join(h.bin, "carrel"), "daemon", "stop", "--guests")
	stop.Env = append(os.Environ(), "CARREL_HOME="+h.carrel, "CARREL_CACHE="+h.cache)
	if out, err := stop.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", stop.Args, err, out)
	}
	// The daemon lives a moment longer than the lock that was waited for.
	left := h.processes()
	for deadline := time.Now().Add(scriptPatience); len(left) > 0 && time.Now().Before(deadline); left = h.processes() {
		time.Sleep(10 * time.Millisecond)
	}
	if len(left) > 0 {
		log, _ := os.ReadFile(filepath.Join(h.carrel, "state", "daemon.log"))
		return fmt.Errorf("processes are left: %q\nthe daemon's log:\n%s", left, log)
	}
	return nil
}

// processes lists what runs for h: by its environment, which QEMU has not, or
// by a path of h among its arguments.
func (h *home) processes() (left []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		env, _ := os.ReadFile(d + "/environ")
		cmd, _ := os.ReadFile(d + "/cmdline")
		stat, _ := os.ReadFile(d + "/stat")
		mine := bytes.Contains(append([]byte{0}, env...), []byte("\x00CARREL_HOME="+h.carrel+"\x00")) || bytes.Contains(cmd, []byte(h.carrel+"/"))
		if mine && !bytes.Contains(stat, []byte(") Z ")) {
			left = append(left, filepath.Base(d)+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return left
}

var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"appears":  appears,
	"becomes":  becomes,
	"ends":     ends,
	"json":     isJSON,
	"signal":   signalled,
	"terminal": onTerminal,
}

// ends STATUS PROGRAM [ARG...] runs a program that must end with STATUS.
func ends(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: ends STATUS PROGRAM [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var ee *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &ee) {
		got = ee.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("the status is %d, not %d", got, want)
	}
}

// appears FILE... waits until each file is there: a task that runs beside the
// script makes it, and no event of that reaches the script.
func appears(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: appears FILE...")
	}
	ts.Check(waitForFiles(ts, args))
}

// becomes STATE GUEST... waits until carrel ls shows each guest in that state.
func becomes(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: becomes STATE GUEST...")
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(scriptPatience); ; <-tick.C {
		out, err := command(ts, []string{"carrel", "ls"}).Output()
		missing := slices.IndexFunc(args[1:], func(name string) bool {
			return !regexp.MustCompile(`(?m)^` + name + ` +` + args[0] + ` `).Match(out)
		})
		if err == nil && missing < 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v went by, and %s is not %s: %v\n%s", scriptPatience, args[1+missing], args[0], err, out)
		}
	}
}

func waitForFiles(ts *testscript.TestScript, files []string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(scriptPatience); ; <-tick.C {
		missing := slices.IndexFunc(files, func(f string) bool {
			_, err := os.Stat(ts.MkAbs(f))
			return err != nil
		})
		if missing < 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%v went by without %s", scriptPatience, files[missing])
		}
	}
}

// signal STATUS NAME FILE PROGRAM [ARG...] runs a program, sends it the signal
// when the file is there, and expects it to end with STATUS. What it says is
// left in the files signal.out and signal.err.
func signalled(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: signal STATUS NAME FILE PROGRAM [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	sig := unix.SignalNum("SIG" + args[1])
	if sig == 0 {
		ts.Fatalf("there is no signal %s", args[1])
	}
	var stdout, stderr bytes.Buffer
	cmd := command(ts, args[3:])
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A signal that this process ignores, as a background job may, the program
	// would ignore, too; one that this process catches it would not.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, sig)
	err = cmd.Start()
	signal.Stop(caught)
	ts.Check(err)
	err = waitForFiles(ts, args[2:3])
	if err != nil {
		sig = unix.SIGKILL
	}
	cmd.Process.Signal(sig)
	cmd.Wait()
	ts.Logf("[signalled]\n%s%s", &stdout, &stderr)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("signal.out"), stdout.Bytes(), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs("signal.err"), stderr.Bytes(), 0o644))
	if got := cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("the status is %d, not %d", got, want)
	}
}

// command is a program as the script would run it. One that outlives a script's
// whole time is killed by the test's own end.
func command(ts *testscript.TestScript, args []string) *exec.Cmd {
	cmd := exec.Command(inPath(ts, args[0]), args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "CARREL_HOME", "CARREL_CACHE", "TMPDIR", "TZ"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	return cmd
}

// inPath finds a program as the script would.
func inPath(ts *testscript.TestScript, program string) string {
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		p := filepath.Join(dir, program)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode().Perm()&0o111 != 0 {
			return p
		}
	}
	ts.Fatalf("there is no %s in PATH", program)
	return ""
}

// json COUNT stdout|stderr|FILE checks that a file is so many JSON values, with
// nothing between them.
func isJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: json COUNT stdout|stderr|FILE")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile(args[1])))
	for n := 0; ; n++ {
		var v any
		err := dec.Decode(&v)
		if errors.Is(err, io.EOF) {
			if n != want {
				ts.Fatalf("%s has %d JSON values, not %d", args[1], n, want)
			}
			return
		}
		ts.Check(err)
	}
}
