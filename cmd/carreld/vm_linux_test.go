package main

import (
	"bytes"
	"context"
	"errors"
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
	"github.com/carrel-vm/carrel/guest/place"
)

// The third ring: the same processes with the real driver, a real machine and
// the real image. What a hostile root does in the guest is looked at from the
// host. One guest serves all tests that leave it whole.

var vmBuilt struct {
	once sync.Once
	dir  string
	err  error
}

func vmBinaries(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("the third ring needs a built image and real machines: make test runs it")
	}
	vmBuilt.once.Do(func() {
		binaries(t) // for the folder that TestMain removes
		vmBuilt.dir = filepath.Join(built.dir, "vm")
		for _, programs := range [][]string{{"./cmd/carrel", "./cmd/carreld"}, {"./cmd/carrel-agent"}} { // the process wall runs the agent itself
			cmd := exec.Command("go", append([]string{"build", "-o", vmBuilt.dir + "/"}, programs...)...)
			cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0") // as make build does
			if out, err := cmd.CombinedOutput(); err != nil {
				vmBuilt.err = fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
				return
			}
		}
	})
	if vmBuilt.err != nil {
		t.Fatal(vmBuilt.err)
	}
	return vmBuilt.dir
}

// newVM returns a world whose daemon drives real machines, with a guest that
// has one share of each mode.
func newVM(t *testing.T, spec *api.GuestSpec) (w *world, c *client.Client, ro, rw string) {
	t.Helper()
	w = newRing2(t)
	w.bin = vmBinaries(t)
	p, err := place.Home() // the image is the one that make image has built
	if err != nil {
		t.Fatal(err)
	}
	w.env = []string{"CARREL_CACHE=" + p.Cache}
	w.start()
	c = w.client()
	ro, rw = filepath.Join(w.work, "ro"), filepath.Join(w.work, "rw")
	for _, d := range []string{ro, rw} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	spec.Shares = append(spec.Shares,
		&api.Share{Path: ro, GuestPath: "/share/ro", Mode: api.ShareMode_SHARE_MODE_RO},
		&api.Share{Path: rw, GuestPath: "/share/rw", Mode: api.ShareMode_SHARE_MODE_RW})
	if _, err := c.StartGuest(t.Context(), spec, client.GuestOptions{}); err != nil {
		t.Fatalf("%v\nagain: make image, then go test -run %s ./cmd/carreld", err, t.Name())
	}
	return w, c, ro, rw
}

// result is how a command in a guest ended.
type result struct {
	out    string // stdout and stderr
	status int
	err    *client.ExitError
}

// sh runs a script in a guest as a user and returns how it ended.
func sh(t *testing.T, c *client.Client, guest, user, script string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience) // a guest's processor may be slower by hundreds of times
	defer cancel()
	var out bytes.Buffer
	p, err := c.StartTask(ctx, client.Task{Guest: guest, User: user, Args: []string{"/bin/sh", "-c", script}, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("%.80q: %v", script, err)
	}
	err = p.Wait()
	r := result{out: out.String()}
	if err != nil && !errors.As(err, &r.err) {
		t.Fatalf("%.80q: %v", script, err)
	}
	if r.err != nil {
		r.status = r.err.Status
	}
	return r
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestVM is all that one guest can serve.
func TestVM(t *testing.T) {
	w, c, ro, rw := newVM(t, &api.GuestSpec{Name: "vm", MemoryMib: 1024, DiskMib: 512})
	t.Run("ReadOnlyShare", func(t *testing.T) { testReadOnlyShare(t, c, ro, rw) })
	t.Run("NoDevices", func(t *testing.T) { testNoDevices(t, c, rw) })
	t.Run("LinksStayInside", func(t *testing.T) { testLinksStayInside(t, w, c, rw) })
	t.Run("NoSetuid", func(t *testing.T) { testNoSetuid(t, c, rw) })
	t.Run("AgentOutOfReach", func(t *testing.T) { testAgentOutOfReach(t, c) })
	t.Run("PlantedPath", func(t *testing.T) { testPlantedPath(t, c) })
	t.Run("SelfTest", func(t *testing.T) { testSelfTest(t, c) })
	t.Run("RootOfTheImage", func(t *testing.T) { testImageUnchanged(t, w, c) })
	t.Run("ConsoleFlood", func(t *testing.T) { testConsoleFlood(t, w, c) })
	t.Run("DiskFull", func(t *testing.T) { testDiskFull(t, c) })
	t.Run("Memory", func(t *testing.T) { testMemory(t, w, c) })
	t.Run("ForkBomb", func(t *testing.T) { testForkBomb(t, c) })
	t.Run("RootReplaced", func(t *testing.T) { testRootReplaced(t, c, ro) })
	t.Run("DaemonKilled", func(t *testing.T) { testDaemonKilled(t, w, c) })
	t.Run("ShareServerKilled", func(t *testing.T) { testShareServerKilled(t, w, c) })
}

// S01: what the guest's root does to its mounts changes nothing on the host.
func testReadOnlyShare(t *testing.T, c *client.Client, ro, rw string) {
	write(t, filepath.Join(ro, "canary"), "untouched")
	before, err := os.Stat(filepath.Join(ro, "canary"))
	if err != nil {
		t.Fatal(err)
	}
	const attack = `
		cd %[1]s
		mount -o remount,rw %[1]s
		echo changed > canary; echo new > created; rm -f canary; mv canary moved; chmod 777 canary; touch canary; ln canary hard
		truncate -s 0 canary; mkdir dir; ln -s x link
		mkdir -p /mnt/again && mount -t virtiofs %[2]s /mnt/again && { echo changed > /mnt/again/canary; echo new > /mnt/again/created; }
		umount /mnt/again; cat canary`
	r := sh(t, c, "vm", "root", fmt.Sprintf(attack, "/share/ro", "share0"))
	if got := read(t, filepath.Join(ro, "canary")); got != "untouched" {
		t.Errorf("the canary says %q\n%s", got, r.out)
	}
	after, err := os.Stat(filepath.Join(ro, "canary"))
	if err != nil || !after.ModTime().Equal(before.ModTime()) || after.Mode() != before.Mode() {
		t.Errorf("%v: %v, was %v", err, after, before)
	}
	if es, _ := os.ReadDir(ro); len(es) != 1 {
		t.Errorf("the folder has %d entries", len(es))
	}
	if !strings.HasSuffix(r.out, "untouched") {
		t.Errorf("the guest cannot read it: %s", r.out)
	}
	// The control: the very same on the share that may be written.
	write(t, filepath.Join(rw, "canary"), "untouched")
	sh(t, c, "vm", "root", "cd /share/rw && echo changed > canary && echo new > created")
	if got := read(t, filepath.Join(rw, "canary")); got != "changed\n" {
		t.Errorf("control: the canary says %q", got)
	}
	if got := read(t, filepath.Join(rw, "created")); got != "new\n" {
		t.Errorf("control: %q", got)
	}
}

// S04: no device, pipe or socket reaches the host.
func testNoDevices(t *testing.T, c *client.Client, rw string) {
	r := sh(t, c, "vm", "root", `cd /share/rw
		mknod null c 1 3; mknod disk b 8 0; mknod fifo p
		python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'
		touch regular`)
	for _, n := range []string{"null", "disk", "fifo", "sock"} {
		if fi, err := os.Lstat(filepath.Join(rw, n)); err == nil {
			t.Errorf("%s reached the host as %v\n%s", n, fi.Mode(), r.out)
		}
	}
	if fi, err := os.Lstat(filepath.Join(rw, "regular")); err != nil || !fi.Mode().IsRegular() {
		t.Errorf("control: %v %s", err, r.out)
	}
}

// S05: a link that the guest makes is its own affair: the host follows none.
func testLinksStayInside(t *testing.T, w *world, c *client.Client, rw string) {
	secret := filepath.Join(w.work, "secret")
	write(t, secret, "SECRET-OF-THE-HOST")
	write(t, filepath.Join(rw, "inside"), "of the share")
	r := sh(t, c, "vm", "root", fmt.Sprintf(`cd /share/rw
		ln -s %[1]s abs; ln -s ../secret rel; ln -s inside ok
		cat abs; cat rel; echo broken > abs; echo broken > rel; chmod 777 abs; cat ok`, secret))
	if strings.Contains(r.out, "SECRET") || read(t, secret) != "SECRET-OF-THE-HOST" {
		t.Errorf("the secret was reached: %s", r.out)
	}
	if fi, err := os.Stat(secret); err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("the secret's mode: %v %v", fi, err)
	}
	if got, err := os.Readlink(filepath.Join(rw, "abs")); err != nil || got != secret {
		t.Errorf("the link is not stored as what it says: %q %v", got, err)
	}
	if !strings.HasSuffix(r.out, "of the share") {
		t.Errorf("control: %s", r.out)
	}
}

// S07: no setuid, no setgid, no file capability reaches the host.
func testNoSetuid(t *testing.T, c *client.Client, rw string) {
	r := sh(t, c, "vm", "root", `cd /share/rw; cp /bin/true suid; chmod 6755 suid; mkdir -p sg; chmod 2777 sg
		python3 -c 'import os; os.setxattr("suid", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))'
		chmod 755 suid`)
	sh(t, c, "vm", "root", "chmod 4755 /share/rw/suid")
	for n, want := range map[string]os.FileMode{"suid": 0o755, "sg": 0o777 | os.ModeDir} {
		fi, err := os.Stat(filepath.Join(rw, n))
		if err != nil {
			t.Fatalf("%v %s", err, r.out)
		}
		if fi.Mode() != want {
			t.Errorf("%s has mode %v on the host, want %v", n, fi.Mode(), want)
		}
	}
	if n, err := syscall.Getxattr(filepath.Join(rw, "suid"), "security.capability", nil); err == nil {
		t.Errorf("a capability of %d bytes reached the host", n)
	}
}

// P11: the task's user can neither stop, trace, replace nor stand in for the
// agent, and has no vsock at all.
func testAgentOutOfReach(t *testing.T, c *client.Client) {
	const probe = `
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def tell(name, f):
    try: print(name, "DONE", f())
    except Exception as e: print(name, "denied")
tell("kill", lambda: os.kill(1, 9))
def ptrace():
    if libc.ptrace(16, 1, 0, 0) != 0: raise OSError()
tell("ptrace", ptrace)
tell("mem", lambda: open("/proc/1/mem", "rb"))
tell("exe", lambda: open("/proc/1/exe", "r+b"))
tell("environ", lambda: open("/proc/1/environ").read())
tell("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
tell("devmem", lambda: open("/dev/mem"))
tell("vda", lambda: open("/dev/vda", "rb"))
tell("inet", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
`
	r := sh(t, c, "vm", "", "python3 -c '"+probe+"'")
	for _, n := range []string{"kill", "ptrace", "mem", "exe", "environ", "vsock", "devmem", "vda"} {
		if !strings.Contains(r.out, n+" denied\n") {
			t.Errorf("%s was not denied:\n%s", n, r.out)
		}
	}
	if !strings.Contains(r.out, "inet DONE") {
		t.Errorf("control: %s", r.out)
	}
	// A second Hello finds nobody: the guest's root gets no boot stream, and
	// the guest goes on.
	r = sh(t, c, "vm", "root", "id -u; echo still here")
	if r.out != "0\nstill here\n" {
		t.Errorf("%q", r.out)
	}
}

// P14: what a task plants in PATH never runs as root.
func testPlantedPath(t *testing.T, c *client.Client) {
	r := sh(t, c, "vm", "", `mkdir -p ~/bin && for n in sh bash env mount id; do printf '#!/bin/sh\n/usr/bin/id -u >> /home/carrel/planted\n' > ~/bin/$n; chmod 755 ~/bin/$n; done; echo planted`)
	if r.out != "planted\n" {
		t.Fatal(r.out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, user := range []string{"", "root"} {
		p, err := c.StartTask(ctx, client.Task{Guest: "vm", User: user, Args: []string{"id"}, Env: []string{"PATH=/home/carrel/bin"}})
		if err != nil {
			t.Fatal(err)
		}
		p.Wait()
	}
	r = sh(t, c, "vm", "root", "cat /home/carrel/planted; rm -f /home/carrel/planted")
	// The control is the user's own task, and the root's that asked for it by
	// its own PATH; nothing else ran it.
	if r.out != "1000\n0\n" {
		t.Errorf("the planted programs ran as %q", r.out)
	}
}

// testSelfTest: in a guest as users have it, and to its root's task, the kernel shows all that it has. That a
// kernel which lacks something is found out is shown by TestSelfTest of hypervisor/qemu.
func testSelfTest(t *testing.T, c *client.Client) {
	if r := sh(t, c, "vm", "root", "/proc/1/exe selftest"); r.status != 0 {
		t.Errorf("status %d:\n%s", r.status, r.out)
	}
}

// The shared root image is read-only from outside the guest.
func testImageUnchanged(t *testing.T, w *world, c *client.Client) {
	r := sh(t, c, "vm", "root", `for d in /dev/vd?; do dd if=/dev/zero of=$d bs=512 count=1 conv=notrunc 2>&1; blockdev --setrw $d; done; echo x > /usr/bin/true; echo done`)
	if !strings.HasSuffix(r.out, "done\n") {
		t.Fatal(r.out)
	}
	if _, err := c.VerifyImage(t.Context(), "default"); err != nil {
		t.Errorf("the image was changed by a guest: %v", err)
	}
}

// R06: a console without end fills two bounded files and stops nobody.
func testConsoleFlood(t *testing.T, w *world, c *client.Client) {
	r := sh(t, c, "vm", "root", `timeout 5 sh -c 'while :; do head -c 65536 /dev/zero | tr "\0" x > /dev/console; done'; echo over`)
	if !strings.Contains(r.out, "over") {
		t.Fatal(r.out)
	}
	files, _ := filepath.Glob(filepath.Join(w.home, "state", "guests", "vm", "console.log*"))
	var n int64
	for _, f := range files {
		fi, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		n += fi.Size()
	}
	if n == 0 || n > 3<<20 {
		t.Errorf("%d bytes of console are kept in %d files", n, len(files))
	}
}

// R03: a full disk is the guest's own trouble.
func testDiskFull(t *testing.T, c *client.Client) {
	r := sh(t, c, "vm", "", `dd if=/dev/zero of=/tmp/fill bs=1M 2>&1; dd if=/dev/zero of=~/fill bs=1M count=20000 2>&1; rm -f /tmp/fill ~/fill; echo freed > ~/f && cat ~/f`)
	if !strings.Contains(r.out, "No space left") || !strings.HasSuffix(r.out, "freed\n") {
		t.Errorf("%s", r.out)
	}
}

// eater takes memory until it is stopped.
const eater = "x=[]\nwhile True: x.append(bytearray(16<<20))"

// R02: memory without end ends the task, not the agent, and the host gives no
// more than the guest was granted and what QEMU itself needs.
func testMemory(t *testing.T, w *world, c *client.Client) {
	// Bounded, since emulation fills memory slowly; the guest's own bound is one
	// level up in the same hierarchy.
	p, err := c.StartTask(t.Context(), client.Task{Guest: "vm", Args: []string{"python3", "-c", eater}, Limits: &api.TaskLimits{MemoryBytes: 128 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	var ee *client.ExitError
	if err := p.Wait(); !errors.As(err, &ee) || !ee.OOM || ee.Signal != 9 {
		t.Errorf("the task ended with %v", err)
	}
	if r := sh(t, c, "vm", "", "echo alive"); r.out != "alive\n" {
		t.Error(r.out)
	}
	g, err := c.Guest(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	qemu := childOf(t, int(g.KeeperPid), "-nodefaults")
	b := read(t, fmt.Sprintf("/proc/%d/status", qemu))
	var rss int64
	for _, l := range strings.Split(b, "\n") {
		fmt.Sscanf(l, "VmRSS: %d kB", &rss)
	}
	// 1 GiB of guest, and 1 GiB for QEMU's translated code (tb-size) at most.
	if rss == 0 || rss > 2<<20 {
		t.Errorf("QEMU holds %d kB", rss)
	}
	t.Logf("QEMU holds %d MiB for a guest of 1024 MiB", rss>>10)
}

// R01: a fork bomb is held in its cgroup; the agent answers, and ends it.
func testForkBomb(t *testing.T, c *client.Client) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	p, err := c.StartTask(ctx, client.Task{Guest: "vm", Args: []string{"/bin/bash", "-c", "echo up; b() { b | b & }; b; sleep 100"}, Limits: &api.TaskLimits{Pids: 200}})
	if err != nil {
		t.Fatal(err)
	}
	if r := sh(t, c, "vm", "", "echo alive"); r.out != "alive\n" {
		t.Errorf("%q", r.out)
	}
	p.Signal(client.SIGKILL)
	if err := p.Wait(); err == nil {
		t.Error("the bomb ended well")
	}
	// What was killed goes in the guest's own time, which the agent does not wait out.
	eventually(t, "no process is left of it", func() bool {
		return strings.TrimSpace(sh(t, c, "vm", "root", "ps -u carrel | wc -l").out) == "1"
	})
}

// S19: the shared folder is moved away and another put in its place: the guest
// goes on seeing the one that was granted, never the other.
func testRootReplaced(t *testing.T, c *client.Client, ro string) {
	if err := os.Rename(ro, ro+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(ro, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(ro, "other"), "OTHER")
	r := sh(t, c, "vm", "root", "sleep 2; ls /share/ro; cat /share/ro/other")
	if strings.Contains(r.out, "OTHER") || !strings.Contains(r.out, "canary") {
		t.Errorf("%s", r.out)
	}
	if err := os.RemoveAll(ro + ".old"); err != nil {
		t.Fatal(err)
	}
	r = sh(t, c, "vm", "root", "sleep 2; ls /share/ro; cat /share/ro/other")
	if strings.Contains(r.out, "OTHER") {
		t.Errorf("%s", r.out)
	}
}

// F04: a share's server is killed: the guest gets errors on that share, and
// everything else goes on; it can be stopped.
func testShareServerKilled(t *testing.T, w *world, c *client.Client) {
	g, err := c.Guest(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	pid := childOf(t, int(g.KeeperPid), "share")
	if pid == 0 {
		t.Fatal("no share process was found")
	}
	if err := killOne(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if r := sh(t, c, "vm", "", "echo alive"); r.out != "alive\n" {
		t.Errorf("%q", r.out)
	}
	begin := time.Now()
	if _, err := c.StopGuest(t.Context(), "vm", time.Second); err != nil {
		t.Fatal(err)
	}
	t.Logf("the stop took %v", time.Since(begin)) // on a quiet machine no more than guest.StopBound
	// A keeper lives a moment longer than its lock.
	eventually(t, "only the daemon runs", func() bool { return len(w.processes()) == 1 })
}

// F03, F05, F23: QEMU is killed, or stands still, the kernel panics, the guest ignores a stop:
// each is noticed, the task is interrupted with the cause, nothing is left.
func TestVMEnds(t *testing.T) {
	w, c, _, _ := newVM(t, &api.GuestSpec{Name: "vm", MemoryMib: 512})
	var limits *api.TaskLimits
	running := func(user, script string) *client.Process {
		t.Helper()
		up := make(chan struct{})
		var once sync.Once
		p, err := c.StartTask(t.Context(), client.Task{Guest: "vm", User: user, Args: []string{"/bin/sh", "-c", "echo up; " + script}, Limits: limits,
			Stdout: writerFunc(func(b []byte) (int, error) { once.Do(func() { close(up) }); return len(b), nil })})
		if err != nil {
			t.Fatal(err)
		}
		<-up
		return p
	}
	interrupted := func(p *client.Process) {
		t.Helper()
		var ee *client.ExitError
		if err := p.Wait(); !errors.As(err, &ee) || !ee.Interrupted || ee.Status != 125 || ee.Cause == "" {
			t.Errorf("the task ended with %v", err)
		} else {
			t.Logf("cause: %s", ee.Cause)
		}
		eventually(t, "only the daemon runs", func() bool { return len(w.processes()) == 1 })
	}
	again := func() {
		t.Helper()
		if _, err := c.StartGuest(t.Context(), &api.GuestSpec{Name: "vm"}, client.GuestOptions{}); err != nil {
			t.Fatal(err)
		}
	}

	p := running("", "sleep 1000")
	g, err := c.Guest(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := killOne(childOf(t, int(g.KeeperPid), "-nodefaults"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	interrupted(p)
	t.Logf("a killed QEMU was noticed and told within %v", time.Since(begin))

	again()
	limits = &api.TaskLimits{MemoryBytes: 64 << 20} // 2: panic also when a cgroup's memory is used up
	interrupted(running("root", "echo 2 > /proc/sys/vm/panic_on_oom; python3 -c '"+eater+"'"))
	limits = nil

	again()
	p = running("", "trap '' TERM INT HUP; while :; do sleep 1; done")
	begin = time.Now()
	if _, err := c.StopGuest(t.Context(), "vm", time.Second); err != nil {
		t.Fatal(err)
	}
	t.Logf("the stop of a task that ignores it took %v", time.Since(begin)) // on a quiet machine no more than guest.StopBound
	p.Wait()

	again()
	p = running("", "sleep 1000")
	if g, err = c.Guest(t.Context(), "vm"); err != nil {
		t.Fatal(err)
	}
	// A QEMU that stands still for a moment goes on with all that it had; one that
	// goes on no more is given up, and its task with it.
	qemu := childOf(t, int(g.KeeperPid), "-nodefaults")
	if err := killOne(qemu, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if gs, err := c.Guests(t.Context()); err != nil || len(gs) != 1 || gs[0].State != api.GuestState_GUEST_STATE_READY {
		t.Errorf("beside a QEMU that stands still: %v %v", gs, err)
	}
	if err := killOne(qemu, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if r := sh(t, c, "vm", "", "echo on"); r.out != "on\n" {
		t.Errorf("a machine that stood still and went on: %+v", r)
	}
	begin = time.Now()
	if err := killOne(qemu, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	interrupted(p)
	t.Logf("a QEMU that stands still was given up after %v", time.Since(begin))

	again()
	p = running("", "sleep 1000")
	if g, err = c.Guest(t.Context(), "vm"); err != nil {
		t.Fatal(err)
	}
	// F01 on a real machine: the keeper's death is the guest's.
	if err := killOne(int(g.KeeperPid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	interrupted(p)
}
