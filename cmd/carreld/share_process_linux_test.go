package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/place"
)

// sharedFolders are one folder for each mode, all with the same in them.
type sharedFolders struct{ ro, rw, review, plain string }

// newShared returns a world with such folders, and a guest behind a wall that
// has them at /s/MODE.
func newShared(t *testing.T, boundary, image string) (*world, *client.Client, sharedFolders) {
	t.Helper()
	w := newRing2(t)
	w.bin = vmBinaries(t)
	p, err := place.Home() // the image is the one that make image has built
	if err != nil {
		t.Fatal(err)
	}
	w.env = []string{"CARREL_CACHE=" + p.Cache}
	for _, d := range []string{filepath.Dir(w.work), w.work} { // the guest's user comes by here, too
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	var f sharedFolders
	spec := &api.GuestSpec{Name: "box", MemoryMib: 1024, Boundary: boundary, Image: image}
	for _, x := range []struct {
		at   *string
		name string
		mode api.ShareMode
	}{
		{&f.ro, "ro", api.ShareMode_SHARE_MODE_RO}, {&f.rw, "rw", api.ShareMode_SHARE_MODE_RW},
		{&f.review, "review", api.ShareMode_SHARE_MODE_REVIEW}, {&f.plain, "plain", api.ShareMode_SHARE_MODE_RW},
	} {
		*x.at = filepath.Join(w.work, x.name)
		fill(t, *x.at)
		spec.Shares = append(spec.Shares, &api.Share{Path: *x.at, GuestPath: "/s/" + x.name, Mode: x.mode, Plain: x.name == "plain"})
	}
	if boundary == wallVM { // more than there are slots for
		for _, name := range []string{"fifth", "sixth"} {
			dir := filepath.Join(w.work, name)
			fill(t, dir)
			spec.Shares = append(spec.Shares, &api.Share{Path: dir, GuestPath: "/s/" + name, Mode: api.ShareMode_SHARE_MODE_RO})
		}
	}
	w.start()
	c := w.client()
	g, err := c.StartGuest(t.Context(), spec, client.GuestOptions{})
	if err != nil {
		t.Fatalf("%v\nagain: go test -run %s ./cmd/carreld", err, t.Name())
	}
	if boundary != "" && g.Boundary != boundary {
		t.Fatalf("the guest is behind the wall %q, not %q", g.Boundary, boundary)
	}
	return w, c, f
}

// fill makes a project with a secret and a hook.
func fill(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, ".git/hooks"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"file": "contents\n", ".env": "SECRET=1\n", ".git/hooks/pre-commit": "#!/bin/sh\n"} {
		write(t, filepath.Join(dir, name), text)
	}
}

// look is what a folder holds.
func look(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		b.WriteString(strings.TrimPrefix(path, dir) + " " + fi.Mode().String())
		if fi.Mode().IsRegular() {
			b.WriteString(" " + read(t, path))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestSharedProcess: what the modes and the lists of names say is enforced
// behind the process wall as it is in a machine. A plain share is the control.
func TestSharedProcess(t *testing.T) {
	w, c, f := newShared(t, wallProcess, hostImage)
	t.Run("Names", func(t *testing.T) { testSharedNames(t, c, f) })
	t.Run("Imported", func(t *testing.T) { testImported(t, w, c) })
	t.Run("Live", func(t *testing.T) { testLive(t, w, c) })
	t.Run("ServerKilled", func(t *testing.T) { testSharedServerKilled(t, w, c) })
}

func testSharedNames(t *testing.T, c *client.Client, f sharedFolders) {
	before := map[string]string{}
	for _, dir := range []string{f.ro, f.review} {
		before[dir] = look(t, dir)
	}
	modes, users := []string{"ro", "rw", "review"}, []string{"", "root"}
	for _, mode := range modes {
		for _, user := range users {
			r := sh(t, c, "box", user, "cd /s/"+mode+"; cat file; ls -a; cat .env")
			if !strings.HasPrefix(r.out, "contents\n") || strings.Contains(r.out, "SECRET") || strings.Contains(r.out, "\n.env\n") {
				t.Errorf("%s as %q: %q", mode, user, r.out)
			}
		}
	}
	for _, mode := range modes {
		for _, user := range users { // in the review it changes the guest's own layer
			sh(t, c, "box", user, "cd /s/"+mode+"; echo evil >>.env; echo evil >.git/hooks/pre-commit; echo evil >.git/hooks/post-merge; mv .git/hooks .git/gone; mv .git gone; ln -s /tmp .envrc; echo evil >.ENVRC")
		}
	}
	if r := sh(t, c, "box", "", "cat /s/plain/.env; echo evil >/s/plain/.git/hooks/pre-commit; echo fresh >/s/rw/made; echo more >>/s/rw/file; cat /s/rw/made"); r.out != "SECRET=1\nfresh\n" {
		t.Errorf("control: %q", r.out)
	}
	if got := read(t, filepath.Join(f.plain, ".git/hooks/pre-commit")); got != "evil\n" {
		t.Errorf("control: a plain share's hook is %q", got)
	}
	if got := read(t, filepath.Join(f.rw, "made")) + read(t, filepath.Join(f.rw, "file")); got != "fresh\ncontents\nmore\n" {
		t.Errorf("control: a live share has %q", got)
	}
	if got := look(t, f.rw); strings.Contains(got, "evil") || strings.Contains(got, "post-merge") || strings.Contains(strings.ToLower(got), ".envrc") || !strings.Contains(got, "SECRET=1") {
		t.Errorf("a live share has %s", got)
	}
	r := sh(t, c, "box", "", "cd /s/review; rm file; echo new >other; cat other; ls /s/ro; echo x >/s/ro/file")
	if !strings.HasPrefix(r.out, "new\n") || r.status == 0 {
		t.Errorf("review: %q, status %d", r.out, r.status)
	}
	for dir, was := range before {
		if now := look(t, dir); now != was {
			t.Errorf("%s was\n%sand is\n%s", dir, was, now)
		}
	}
}

// F04 behind a wall of processes: the share fails, and nothing else.
func testSharedServerKilled(t *testing.T, w *world, c *client.Client) {
	g, err := c.Guest(t.Context(), "box")
	if err != nil {
		t.Fatal(err)
	}
	for pid := childOf(t, int(g.KeeperPid), "share"); pid != 0; pid = childOf(t, int(g.KeeperPid), "share") {
		if err := killOne(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is reaped", func() bool { return killOne(pid, 0) != nil })
	}
	if r := sh(t, c, "box", "", "cat /s/rw/file; echo alive; cat /s/plain/file"); strings.Count(r.out, "contents\n") != 1 || !strings.Contains(r.out, "alive\n") {
		t.Errorf("%q", r.out)
	}
	eventually(t, "the guest's shares say that they serve nothing", func() bool {
		g, err := c.Guest(t.Context(), "box")
		if err != nil || len(g.Shares) != 4 { // one was taken away, and one came
			t.Fatalf("%v, %v", g, err)
		}
		return g.Shares[0].Cause != "" && g.Shares[0].Carrier == "fuse" && g.Shares[2].Carrier == "bind" && g.Shares[2].Cause == ""
	})
	if _, err := c.StopGuest(t.Context(), "box", 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "only the daemon runs", func() bool { return len(w.processes()) == 1 })
}

// TestSharedGVisor is TestSharedProcess behind gVisor, where the wall mounts
// what the share's server serves.
func TestSharedGVisor(t *testing.T) {
	_, c, f := newShared(t, wallGVisor, "")
	testSharedNames(t, c, f)
	// Another one beside it: what runsc calls them differs.
	ctx := t.Context()
	if _, err := c.StartGuest(ctx, &api.GuestSpec{Name: "two", MemoryMib: 512, Boundary: wallGVisor}, client.GuestOptions{}); err != nil {
		t.Fatal(err)
	}
	// There is no disk, so what waits in a review would not outlive a start.
	p, err := c.StartTask(ctx, client.Task{Guest: "box", Args: []string{"/bin/sh", "-c", "echo x >/s/review/waits"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.StopGuest(ctx, "box", time.Second); err != nil {
		t.Fatal(err)
	}
	again := func() error {
		_, err := c.StartGuest(ctx, &api.GuestSpec{Name: "box"}, client.GuestOptions{})
		return err
	}
	if err := again(); client.CodeOf(err) != "changes_waiting" {
		t.Errorf("it starts over changes that wait: %v", err)
	}
	if _, err := c.Discard(ctx, "box"); err != nil {
		t.Fatal(err)
	}
	if err := again(); err != nil {
		t.Errorf("control: %v", err)
	}
}
