package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/place"
)

// macBinaries builds what a Mac runs, as far as this host can run it: carreld with
// the portable backend of shares, packets that are framed in streams, and
// processes that enter a sandbox by sandbox-exec, for which a stand-in enforces
// the profile.
func macBinaries(t *testing.T) string {
	t.Helper()
	vmBinaries(t)
	dir := t.TempDir()
	build := func(out, program string) {
		cmd := exec.Command("go", "build", "-tags", "carrelmac", "-o", filepath.Join(dir, out), program)
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, b)
		}
	}
	build("carreld", "./cmd/carreld")
	build("sandbox-exec.good", "./cmd/carreld/testdata/sandboxexec")
	// One that makes no sandbox is what the processes have to notice.
	if err := os.WriteFile(filepath.Join(dir, "sandbox-exec.none"), []byte("#!/bin/sh\nshift 2\nexec \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestMacProcesses: what serves shares, reviews them and lets a guest out on a
// Mac does it for a machine here: the portable backend, over the stream that the
// guest opens by vsock, in processes that entered a sandbox by a profile. Without
// the tool, or within none that holds, each of them refuses to start.
func TestMacProcesses(t *testing.T) {
	bin := macBinaries(t)
	w := newRing2(t)
	w.bin = bin
	p, err := place.Home() // the image is the one that make image has built
	if err != nil {
		t.Fatal(err)
	}
	w.env = []string{"CARREL_CACHE=" + p.Cache}
	sandbox := func(which string) {
		t.Helper()
		at := filepath.Join(w.bin, "sandbox-exec")
		if err := os.Remove(at); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if which == "missing" {
			return
		}
		if err := os.Symlink("sandbox-exec."+which, at); err != nil {
			t.Fatal(err)
		}
	}
	refusals := map[string]string{"missing": "enter the sandbox", "none": "verify the sandbox"}
	ro, rw, rev := filepath.Join(w.work, "ro"), filepath.Join(w.work, "rw"), filepath.Join(w.work, "review")
	for _, dir := range []string{ro, rw, rev} {
		fill(t, dir)
	}
	w.start()
	c := w.client()
	ctx := t.Context()

	spec := &api.GuestSpec{Name: "box", MemoryMib: 1024, Shares: []*api.Share{{Path: ro, GuestPath: "/s/ro", Mode: api.ShareMode_SHARE_MODE_RO}}}
	for which, want := range refusals {
		sandbox(which)
		if _, err := c.StartGuest(ctx, spec, client.GuestOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("sandbox-exec %s: a guest's egress process: %v, want %q", which, err, want)
		}
	}
	sandbox("good")
	if _, err := c.StartGuest(ctx, spec, client.GuestOptions{}); err != nil {
		t.Fatalf("%v\nagain: go test -run %s ./cmd/carreld", err, t.Name())
	}
	live := &api.Share{Path: rw, GuestPath: "/s/rw", Mode: api.ShareMode_SHARE_MODE_RW}
	for which, want := range refusals {
		sandbox(which)
		if _, err := c.AddShare(ctx, "box", live); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("sandbox-exec %s: a share process: %v, want %q", which, err, want)
		}
	}
	sandbox("good")
	for _, s := range []*api.Share{live, {Path: rev, GuestPath: "/s/review", Mode: api.ShareMode_SHARE_MODE_REVIEW}} {
		f, err := c.AddShare(ctx, "box", s)
		if err != nil {
			t.Fatal(err)
		}
		if f.Carrier != "fuse" {
			t.Errorf("%s is carried by %s", s.Path, f.Carrier)
		}
	}
	for _, verb := range []string{"share", "egress"} {
		pids := sandboxed(t, w, verb)
		if len(pids) == 0 {
			t.Errorf("no %s process is in its sandbox", verb)
		}
	}

	// One that its keeper started.
	was := look(t, ro)
	if r := sh(t, c, "box", "root", "cd /s/ro && cat file; cat .env; echo evil >file; echo evil >new; rm file"); !strings.HasPrefix(r.out, "contents\n") || strings.Contains(r.out, "SECRET") || look(t, ro) != was {
		t.Errorf("%q, and the host's folder is\n%s", r.out, look(t, ro))
	}

	// A live share, and its task undone.
	task, err := c.StartTask(ctx, client.Task{Guest: "box", Args: []string{"/bin/sh", "-c", "cd /s/rw && cat file && cat .env; echo more >>file; echo x >made; echo evil >.git/hooks/pre-commit; mkdir d; mv made d/; ln -s file l; chmod 600 file"}})
	if err != nil {
		t.Fatal(err)
	}
	task.Wait()
	if got := read(t, filepath.Join(rw, "file")) + read(t, filepath.Join(rw, "d/made")) + read(t, filepath.Join(rw, ".git/hooks/pre-commit")); got != "contents\nmore\nx\n#!/bin/sh\n" {
		t.Errorf("the host's folder has %q", got)
	}
	nothing := func(*api.ApplyEvent) error { return nil }
	for which, want := range refusals {
		sandbox(which)
		if err := c.Undo(ctx, "box", client.UndoOptions{Task: task.ID}, nothing); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("sandbox-exec %s: a review process: %v, want %q", which, err, want)
		}
	}
	sandbox("good")
	if err := c.Undo(ctx, "box", client.UndoOptions{Task: task.ID}, nothing); err != nil {
		t.Error(err)
	}
	if got := look(t, rw); strings.Contains(got, "more") || strings.Contains(got, "/made") || strings.Contains(got, "/l ") {
		t.Errorf("after undo the folder is\n%s", got)
	}

	// A review, and what it applies.
	before := look(t, rev)
	if r := sh(t, c, "box", "", "cd /s/review && rm file && echo new >other && mkdir -p sub && echo y >sub/deep; cat .env; ls"); !strings.Contains(r.out, "other") || strings.Contains(r.out, "SECRET") {
		t.Errorf("%q", r.out)
	}
	if after := look(t, rev); after != before {
		t.Errorf("the host's folder was\n%sand is\n%s", before, after)
	}
	var changes []string
	if err := c.Diff(ctx, "box", client.DiffOptions{}, func(ch *api.Change) error { changes = append(changes, ch.Path); return nil }); err != nil || len(changes) < 3 {
		t.Errorf("%q, %v", changes, err)
	}
	if err := c.Apply(ctx, "box", client.ApplyOptions{AcceptWarnings: true}, nothing); err != nil {
		t.Error(err)
	}
	if got := look(t, rev); strings.Contains(got, "/file ") || !strings.Contains(got, "/other -rw-r--r-- new") || !strings.Contains(got, "/sub/deep -rw-r--r-- y") || !strings.Contains(got, "SECRET=1") {
		t.Errorf("after apply the folder is\n%s", got)
	}

	// Nothing here ends a process with its parent: a share's ends with its socket.
	g, err := c.Guest(ctx, "box")
	if err != nil {
		t.Fatal(err)
	}
	if err := killOne(int(g.KeeperPid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, verb := range []string{"share", "egress"} {
		for end := time.Now().Add(2 * time.Minute); len(sandboxed(t, w, verb)) > 0; <-tick.C {
			if time.Now().After(end) {
				t.Fatalf("a %s process outlives its keeper", verb)
			}
		}
	}
}

// sandboxed are the processes of a kind that have entered a sandbox: the kernel says
// that a filter holds them, and that they can get no right back.
func sandboxed(t *testing.T, w *world, verb string) (pids []string) {
	t.Helper()
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		exe, _ := os.Readlink(d + "/exe")
		cmd, _ := os.ReadFile(d + "/cmdline")
		if !strings.HasPrefix(exe, w.bin+"/") || !strings.Contains(string(cmd), "\x00"+verb+"\x00inside\x00") {
			continue
		}
		status, err := os.ReadFile(d + "/status")
		if err != nil || strings.Contains(string(status), "State:\tZ") {
			continue
		}
		if !strings.Contains(string(status), "NoNewPrivs:\t1\n") || !strings.Contains(string(status), "Seccomp:\t2\n") {
			t.Errorf("%s, a %s process, is held by nothing", d, verb)
		}
		pids = append(pids, filepath.Base(d))
	}
	return pids
}
