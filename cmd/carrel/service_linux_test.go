package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// insideEnv names the folder of a run of TestService that is process 1 of
// namespaces of its own, where it may have a systemd.
const insideEnv = "CARREL_TEST_SYSTEMD"

// TestService installs the daemon under a real systemd user manager, restarts it
// while a guest runs, and uninstalls it. The control: with systemd's own
// KillMode the same restart ends the guest.
//
// The manager has namespaces and a control group of its own, so that it is not
// the machine's, and all of it ends with its process 1.
func TestService(t *testing.T) {
	if top := os.Getenv(insideEnv); top != "" {
		serviceInside(t, top)
		return
	}
	if testing.Short() {
		t.Skip("a service manager and a guest: make test runs it")
	}
	if os.Geteuid() != 0 {
		t.Skip("only root may give a systemd its own control groups: CI is root")
	}
	for _, p := range []string{systemd, "/usr/bin/systemctl", "/usr/bin/systemd-analyze"} {
		if _, err := os.Stat(p); err != nil {
			t.Fatalf("%v (scripts/setup installs systemd)", err)
		}
	}
	bin := buildPrograms(t, []string{"-tags", "carreltest", "./cmd/carreld"}, []string{"./cmd/carrel", "./cmd/carrel-agent"})
	top, err := os.MkdirTemp("", "carrel-u-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	// A path with all that a unit could read otherwise.
	odd := filepath.Join(top, `a b%h$HOME;c`)
	if err := os.Rename(bin, odd); err != nil {
		t.Fatal(err)
	}
	group, remove := newGroup(t, filepath.Base(top))
	defer remove()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestService$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"="+top)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | unix.CLONE_NEWCGROUP,
		UseCgroupFD: true, CgroupFD: int(group.Fd()), Pdeathsig: syscall.SIGKILL,
	}
	// The kernel takes the end of the thread that starts it for this process's.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestService")) {
		log, _ := os.ReadFile(filepath.Join(top, "systemd.log"))
		t.Fatalf("%v\n%s\nsystemd's log:\n%.8000s", err, out, log)
	}
	t.Logf("%s", out)
}

const systemd = "/usr/lib/systemd/systemd"

// newGroup makes a control group of version 2, and returns what removes it, with
// those below.
func newGroup(t *testing.T, name string) (*os.File, func()) {
	t.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
		root += "/unified"
	}
	dir := filepath.Join(root, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f, func() {
		f.Close()
		var dirs []string
		filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			if err := os.Remove(d); err != nil {
				t.Errorf("a control group is left: %v", err)
			}
		}
	}
}

// inside is a user's session with a systemd.
type inside struct {
	t        *testing.T
	top, bin string
}

func serviceInside(t *testing.T, top string) {
	s := &inside{t: t, top: top, bin: filepath.Join(top, `a b%h$HOME;c`)}
	s.boot()
	unit := filepath.Join(top, "user", ".config", "systemd", "user", "carrel.service")

	out := s.must("carrel", "daemon", "install")
	if !strings.Contains(out, "wrote "+unit) {
		t.Errorf("install said %q", out)
	}
	if out := s.must("systemd-analyze", "--user", "verify", "--man=no", unit); strings.TrimSpace(out) != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	if out := s.must("systemctl", "--user", "is-enabled", "carrel"); out != "enabled\n" {
		t.Errorf("is-enabled: %s", out)
	}
	s.must("carrel", "daemon", "install") // again: the same
	first := s.mainPID()

	s.must("carrel", "start", "--no-share", "dev")
	before := s.processes()
	if len(before) < 2 {
		t.Fatalf("a guest's processes: %q", before)
	}
	s.must("systemctl", "--user", "restart", "carrel")
	second := s.mainPID()
	if second == first || second == "0" {
		t.Errorf("the daemon was %s and is %s", first, second)
	}
	if after := s.processes(); !slices.Equal(before, after) {
		t.Errorf("a restart of the service changed the guest's processes:\n%q\n%q", before, after)
	}
	if out := s.must("carrel", "exec", "dev", "--", "echo", "still here"); !strings.Contains(out, "still here") {
		t.Errorf("exec: %s", out)
	}

	// The daemon that is not the service's: the service says so, and stays down.
	s.must("carrel", "daemon", "stop")
	s.inactive()                                  // systemd sees its end a moment later
	s.must("carrel", "exec", "dev", "--", "true") // starts one
	if out, err := s.run("systemctl", "--user", "start", "carrel"); err == nil {
		t.Errorf("two daemons: %s", out)
	}
	if out := s.must("systemctl", "--user", "show", "-P", "NRestarts", "carrel"); out != "0\n" {
		t.Errorf("restarts: %s", out)
	}
	s.must("carrel", "daemon", "install") // takes over
	if after := s.processes(); !slices.Equal(before, after) {
		t.Errorf("an install changed the guest's processes:\n%q\n%q", before, after)
	}

	// The control.
	dropin := unit + ".d"
	if err := os.Mkdir(dropin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dropin, "kill.conf"), []byte("[Service]\nKillMode=control-group\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.must("systemctl", "--user", "daemon-reload")
	s.must("systemctl", "--user", "restart", "carrel")
	if after := s.processes(); len(after) > 0 {
		t.Errorf("control: with KillMode=control-group these were left: %q", after)
	}
	if out, err := s.run("carrel", "exec", "dev", "--", "true"); err == nil {
		t.Errorf("control: the guest still runs: %s", out)
	}

	out = s.must("carrel", "daemon", "uninstall")
	for _, want := range []string{"removed " + unit, "removed " + filepath.Join(filepath.Dir(unit), "default.target.wants", "carrel.service"), "yours, and left: " + dropin} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("uninstall does not say %q:\n%s", want, out)
		}
	}
	os.RemoveAll(dropin)
	if out, err := s.run("systemctl", "--user", "cat", "carrel"); err == nil {
		t.Errorf("systemd still knows it: %s", out)
	}
	if out, err := s.run("carrel", "daemon", "status"); err == nil {
		t.Errorf("the daemon still runs: %s", out)
	}

	s.must("carrel", "daemon", "install")
	s.must("carrel", "start", "dev")
	if out, err := s.run("carrel", "daemon", "uninstall", "--all"); err == nil || !strings.Contains(out, "--yes") {
		t.Errorf("without a yes: %v, %s", err, out)
	}
	if len(s.processes()) == 0 {
		t.Error("without a yes the guest was stopped")
	}
	t.Log(s.must("carrel", "daemon", "uninstall", "--all", "--yes"))
	left := s.processes()
	// An egress process ends a moment after its guest.
	for end := time.Now().Add(scriptPatience); len(left) > 0 && time.Now().Before(end); left = s.processes() {
		time.Sleep(10 * time.Millisecond)
	}
	if len(left) > 0 {
		t.Errorf("processes are left: %q", left)
	}
	for _, dir := range []string{s.home(), filepath.Join(top, "user")} {
		filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				t.Errorf("left behind: %s", p)
			}
			return nil
		})
	}
}

func (s *inside) home() string { return filepath.Join(s.top, "h") }

// boot gives this process 1 what a systemd user manager wants to see, and
// returns when it is ready.
func (s *inside) boot() {
	t := s.t
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", 0},
		{"tmpfs", "/sys/fs/cgroup", "tmpfs", 0},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0},
	} {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, ""); err != nil {
			t.Fatalf("mount %s: %v", m.target, err)
		}
	}
	// Where a system manager runs, as sd_booted(3) tells.
	runtime := filepath.Join(s.top, "rt")
	for _, dir := range []string{"/run/systemd/system", runtime, filepath.Join(s.top, "user"), s.home()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"DBUS_SESSION_BUS_ADDRESS", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "CARREL_CACHE", insideEnv} {
		os.Unsetenv(name)
	}
	for name, v := range map[string]string{"HOME": filepath.Join(s.top, "user"), "XDG_RUNTIME_DIR": runtime, "CARREL_HOME": s.home(), "PATH": s.bin + ":" + os.Getenv("PATH")} {
		os.Setenv(name, v)
	}
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(s.top, "ready"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	log, err := os.Create(filepath.Join(s.top, "systemd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	manager := exec.Command(systemd, "--user", "--log-target=console", "--log-level=info")
	manager.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(s.top, "ready"))
	manager.Stdout, manager.Stderr = log, log
	if err := manager.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := manager.Wait()
		ready.Close() // there is nothing to wait for any more
		fmt.Fprintln(os.Stderr, "systemd ended:", err)
	}()
	t.Cleanup(func() {
		manager.Process.Kill()
		<-ended
	})
	buf := make([]byte, 4<<10)
	for {
		n, err := ready.Read(buf)
		if err != nil {
			t.Fatalf("systemd is not ready: %v", err)
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
			return
		}
	}
}

func (s *inside) run(argv ...string) (string, error) {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}

func (s *inside) must(argv ...string) string {
	s.t.Helper()
	out, err := s.run(argv...)
	if err != nil {
		s.t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	return out
}

// inactive waits until systemd knows that the service's daemon has ended.
func (s *inside) inactive() {
	s.t.Helper()
	for end := time.Now().Add(scriptPatience); ; time.Sleep(10 * time.Millisecond) {
		out, _ := s.run("systemctl", "--user", "is-active", "carrel")
		if out == "inactive\n" {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("the service is %s", out)
		}
	}
}

func (s *inside) mainPID() string {
	s.t.Helper()
	return strings.TrimSpace(s.must("systemctl", "--user", "show", "-P", "MainPID", "carrel"))
}

// processes are those of guests: keepers, egress processes and agents, each with
// its start, by which it is known to be the same one.
func (s *inside) processes() (all []string) {
	s.t.Helper()
	ps, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range ps {
		b, err := os.ReadFile(p + "/cmdline")
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
				s.t.Fatal(err)
			}
			continue
		}
		argv := strings.Split(string(b), "\x00")
		what := filepath.Base(argv[0])
		if what == "carreld" && len(argv) > 1 && (argv[1] == "keep" || argv[1] == "egress") {
			what += " " + argv[1]
		} else if what != "carrel-agent" {
			continue
		}
		stat, err := os.ReadFile(p + "/stat")
		if err != nil {
			continue
		}
		// proc(5): the 22nd field, counted from the end of the name.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if fields[0] == "Z" {
			continue
		}
		all = append(all, what+" "+filepath.Base(p)+" "+fields[19])
	}
	slices.Sort(all)
	return all
}
