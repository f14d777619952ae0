package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/client"
)

// ownDisk makes and mounts a file system of its own in a file.
func ownDisk(t *testing.T, dir string, mib int64) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(mib<<20), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s(this test runs as root, with loop devices and e2fsprogs)", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// freeze has every write to a file system wait, as a hung disk does, and returns
// what lets it go on, which may be called twice.
func freeze(t *testing.T, dir string) (thaw func()) {
	t.Helper()
	const fifreeze, fithaw = 0xc0045877, 0xc0045878 // linux/fs.h
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), fifreeze, 0); err != nil {
		t.Fatalf("freeze %s: %v", dir, err)
	}
	frozen := true
	thaw = func() {
		if frozen {
			if err := unix.IoctlSetInt(int(f.Fd()), fithaw, 0); err != nil {
				t.Errorf("thaw %s: %v", dir, err)
			}
			f.Close()
		}
		frozen = false
	}
	t.Cleanup(thaw)
	return thaw
}

// F22: the disk under one guest's state hangs. Calls that need it end with their
// caller's deadline, all others are answered, another guest works, and when the
// disk goes on so does everything: nothing that was accepted is lost.
func TestHungDisk(t *testing.T) {
	onlyInFull(t)
	w := newRing2(t)
	// The disk holds one guest's folder, which is there before the daemon.
	w.start()
	c := w.client()
	w.guest(c, "hung")
	w.guest(c, "well")
	if _, err := c.StopGuest(t.Context(), "hung", time.Second); err != nil {
		t.Fatal(err)
	}
	w.kill()
	dir := filepath.Join(w.home, "state", "guests", "hung")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ownDisk(t, dir, 64)
	if out, err := exec.Command("cp", "-a", dir+".away/.", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if err := errors.Join(os.RemoveAll(dir+".away"), os.RemoveAll(filepath.Join(dir, "lost+found"))); err != nil {
		t.Fatal(err)
	}
	w.start()
	c = w.client()
	w.guest(c, "hung")
	if r := sh(t, c, "hung", "", "echo before"); r.out != "before\n" { // the control
		t.Fatalf("%+v", r)
	}

	thaw, hung := freeze(t, dir), time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // a client's own deadline
	_, err := c.StartTask(ctx, client.Task{Guest: "hung", Args: []string{"true"}})
	cancel()
	if err == nil {
		t.Error("a task was acknowledged on a disk that hangs")
	}
	for range 5 {
		if r := sh(t, c, "well", "", "echo well"); r.out != "well\n" {
			t.Errorf("another guest: %+v", r)
		}
		if list, err := c.Guests(t.Context()); err != nil || len(list) != 2 {
			t.Errorf("%v %v", list, err)
		}
	}
	w.guest(c, "new")
	t.Logf("others were served for %v", time.Since(hung).Round(time.Millisecond))
	thaw()
	if r := sh(t, c, "hung", "", "echo after"); r.out != "after\n" {
		t.Errorf("when the disk goes on: %+v", r)
	}
	if _, err := c.StopGuest(t.Context(), "hung", time.Second); err != nil {
		t.Fatal(err)
	}
	tasks, err := c.Tasks(t.Context(), "hung")
	if err != nil || len(tasks) < 2 {
		t.Fatalf("%v %v", tasks, err)
	}
	for _, x := range tasks {
		if !over(x.State) {
			t.Errorf("task %v has no ending", x)
		}
	}
}
