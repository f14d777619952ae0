package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/daemon/emptydisk"
	"github.com/carrel-vm/carrel/guest/place"
)

// newDisks is a world of real machines without a guest; before is called when
// its home is there and its daemon is not yet.
func newDisks(t *testing.T, before func(*world)) (*world, *client.Client) {
	t.Helper()
	w := newRing2(t)
	w.bin = vmBinaries(t)
	p, err := place.Home() // the image is the one that make image has built
	if err != nil {
		t.Fatal(err)
	}
	w.env = []string{"CARREL_CACHE=" + p.Cache}
	if before != nil {
		before(w)
	}
	w.start()
	return w, w.client()
}

func startGuest(t *testing.T, c *client.Client, spec *api.GuestSpec) error {
	t.Helper()
	_, err := c.StartGuest(t.Context(), spec, client.GuestOptions{OnEvent: func(ev *api.StartGuestEvent) {
		if n := ev.GetNotice(); n != "" {
			t.Logf("guest %s: %s", spec.Name, n)
		}
	}})
	return err
}

func mustStart(t *testing.T, c *client.Client, spec *api.GuestSpec) {
	t.Helper()
	if err := startGuest(t, c, spec); err != nil {
		t.Fatalf("%v\nagain: make image, then go test -run %s ./cmd/carreld", err, t.Name())
	}
}

// refusedWith checks the word of a refusal, and that it has all of the parts.
func refusedWith(t *testing.T, err error, code string, parts ...string) {
	t.Helper()
	if client.CodeOf(err) != code {
		t.Errorf("%v, want %s", err, code)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%q does not say %q", err, p)
		}
	}
}

// takesOf is what a file takes on its disk.
func takesOf(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestVMDisks is what becomes of the host's disk under guests that have disks.
func TestVMDisks(t *testing.T) {
	w, c := newDisks(t, nil)
	mustStart(t, c, &api.GuestSpec{Name: "disks", MemoryMib: 512, DiskMib: 512})
	t.Run("GivenBack", func(t *testing.T) { testGivenBack(t, w, c) })
	t.Run("Full", func(t *testing.T) { testFullDisk(t, c) })
	t.Run("GivenBackAtStop", func(t *testing.T) { testGivenBackAtStop(t, w, c) })
	t.Run("Volumes", func(t *testing.T) { testVolumes(t, w, c) })
	t.Run("FullMemory", func(t *testing.T) { testFullMemory(t, c) })
	t.Run("MadeWithoutMkfs", func(t *testing.T) { testMadeWithoutMkfs(t, w, c) })
}

// The disk that is made where there is no mkfs, as on Windows, is one that a
// guest's kernel mounts, fills and leaves in order.
func testMadeWithoutMkfs(t *testing.T, w *world, c *client.Client) {
	const mib = 1 << 20
	spec := &api.GuestSpec{Name: "made", MemoryMib: 512, DiskMib: 8192}
	run := func(script string) string {
		t.Helper()
		mustStart(t, c, spec)
		r := sh(t, c, spec.Name, "", script)
		if _, err := c.StopGuest(t.Context(), spec.Name, 0); err != nil {
			t.Fatal(err)
		}
		if r.status != 0 {
			t.Fatalf("%s: %s", script, r.out)
		}
		return strings.TrimSpace(r.out)
	}
	run("true") // which makes a disk as ever
	disk := filepath.Join(w.home, "state/guests", spec.Name, "scratch.img")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := emptydisk.Make(f, emptydisk.Options{Size: 8192 * mib, Reserved: 64 * mib, Journal: 32 * mib, Raw: true}); err != nil {
		t.Fatal(err)
	}
	const look = "sha256sum < ~/big && ls ~/many | wc -l"
	wrote := run("dd if=/dev/urandom of=$HOME/big bs=1M count=40 conv=fsync 2>/dev/null && mkdir ~/many && cd ~/many && seq 3000 | xargs touch && " + look)
	if !strings.HasSuffix(wrote, "\n3000") {
		t.Errorf("it wrote %q", wrote)
	}
	fsck := exec.Command("sh", "-c", `PATH=$PATH:/usr/sbin:/sbin exec e2fsck -fn "$1"`, "sh", disk)
	out, err := fsck.CombinedOutput()
	if err != nil {
		t.Errorf("e2fsck (Debian package e2fsprogs, scripts/setup): %v: %s", err, out)
	}
	t.Logf("%s", out)
	if read := run(look); read != wrote {
		t.Errorf("it wrote %q, and reads %q", wrote, read)
	}
}

// What a guest deletes is free on the host, while it runs.
func testGivenBack(t *testing.T, w *world, c *client.Client) {
	disk := filepath.Join(w.home, "state/guests/disks/scratch.img")
	const mib = 1 << 20
	empty := takesOf(t, disk)
	if r := sh(t, c, "disks", "", "dd if=/dev/zero of=$HOME/big bs=1M count=200 conv=fsync 2>&1"); r.status != 0 {
		t.Fatalf("%s", r.out)
	}
	full := takesOf(t, disk)
	if full < empty+200*mib {
		t.Fatalf("200 MiB written, and the disk takes %d bytes of the host's, before %d", full, empty)
	}
	u, err := c.DiskUsage(t.Context(), "disks")
	most := takesOf(t, disk) // the guest's kernel writes on, at times of its own
	if err != nil || len(u.Guests) != 1 || u.Guests[0].DiskBytes < min(full, most) || u.Guests[0].DiskBytes > max(full, most) || u.FreeBytes <= 0 || u.FloorBytes <= 0 {
		t.Errorf("%v, %v; the disk takes %d, then %d", u, err, full, most)
	}
	sh(t, c, "disks", "", "rm ~/big; sync")
	eventually(t, "the host has back what was deleted", func() bool { return takesOf(t, disk) < empty+20*mib })
	t.Logf("the disk took %d KiB, with 200 MiB in it %d, without them %d", empty>>10, full>>10, takesOf(t, disk)>>10)
}

// What a guest deletes in the moment before its stop is free on the host after it.
func testGivenBackAtStop(t *testing.T, w *world, c *client.Client) {
	disk := filepath.Join(w.home, "state/guests/disks/scratch.img")
	const mib = 1 << 20
	if r := sh(t, c, "disks", "", "dd if=/dev/zero of=$HOME/big bs=1M count=100 conv=fsync 2>&1"); r.status != 0 {
		t.Fatalf("%s", r.out)
	}
	full := takesOf(t, disk)
	if r := sh(t, c, "disks", "", "rm ~/big"); r.status != 0 {
		t.Fatalf("%s", r.out)
	}
	if _, err := c.StopGuest(t.Context(), "disks", 0); err != nil {
		t.Fatal(err)
	}
	if rest := takesOf(t, disk); full < 100*mib || rest > full-80*mib {
		t.Errorf("100 MiB were deleted, and the disk takes %d KiB after the stop, before it %d", rest>>10, full>>10)
	}
}

// R03: a task that has filled the disk does not keep other tasks from running,
// nor guest root from mending it.
func testFullDisk(t *testing.T, c *client.Client) {
	fill := func(user, where string) {
		r := sh(t, c, "disks", user, "dd if=/dev/zero of="+where+" bs=1M 2>&1; dd if=/dev/zero of="+where+" bs=4k oflag=append conv=notrunc 2>&1")
		if !strings.Contains(r.out, "No space left") {
			t.Fatalf("%s fills the disk: %s", user, r.out)
		}
	}
	alive := func(who string) {
		for _, user := range []string{"", "root"} {
			if r := sh(t, c, "disks", user, "echo alive; echo and well >&2; id -u"); r.status != 0 || !strings.Contains(r.out, "alive\n") || !strings.Contains(r.out, "and well\n") {
				t.Errorf("a task of user %q in a guest that %s has filled: %q", user, who, r.out)
			}
		}
	}
	fill("", "/home/carrel/fill")
	alive("a task")
	if r := sh(t, c, "disks", "", "dd if=/dev/zero of=/home/carrel/more bs=1M count=4 2>&1"); !strings.Contains(r.out, "No space left") {
		t.Errorf("the task's user has room in a full disk: %s", r.out)
	}
	if r := sh(t, c, "disks", "root", "dd if=/dev/zero of=/tmp/more bs=1M count=4 conv=fsync 2>&1"); r.status != 0 {
		t.Errorf("root has no room in a disk that a task has filled: %s", r.out)
	}
	fill("root", "/tmp/fill")
	alive("root")
	if r := sh(t, c, "disks", "root", "rm /tmp/fill /tmp/more /home/carrel/fill; echo freed > /home/carrel/f && cat /home/carrel/f"); !strings.HasSuffix(r.out, "freed\n") {
		t.Errorf("%s", r.out)
	}
}

// A guest without a disk has its files in memory. All of them full, a task runs.
func testFullMemory(t *testing.T, c *client.Client) {
	mustStart(t, c, &api.GuestSpec{Name: "memory", MemoryMib: 512, Ephemeral: true})
	in, feed := io.Pipe()
	p, err := c.StartTask(t.Context(), client.Task{Guest: "memory", Args: []string{"cat"}, Stdin: in}) // the guest stays while it runs
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"", "root"} {
		for _, dir := range []string{"/home/carrel", "/tmp", "/dev/shm"} {
			r := sh(t, c, "memory", user, fmt.Sprintf("dd if=/dev/zero of=%s/fill$(id -u) bs=1M 2>&1", dir))
			if !strings.Contains(r.out, "No space left") {
				t.Errorf("%q fills %s: %s", user, dir, r.out)
			}
		}
		if r := sh(t, c, "memory", "", "echo alive"); r.status != 0 || r.out != "alive\n" {
			t.Errorf("a task in a guest that %q has filled: %q", user, r.out)
		}
	}
	feed.Close()
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

// A volume outlives its guest, is one guest's at a time, and no file system of
// the host's.
func testVolumes(t *testing.T, w *world, c *client.Client) {
	with := func(name string, vs ...*api.VolumeMount) *api.GuestSpec {
		return &api.GuestSpec{Name: name, MemoryMib: 512, DiskMib: 512, Volumes: vs}
	}
	cache := &api.VolumeMount{Name: "cache", GuestPath: "/home/carrel/.cache/build"}
	if _, err := c.CreateVolume(t.Context(), "small", 128); err != nil {
		t.Fatal(err)
	}
	mustStart(t, c, with("one", cache, &api.VolumeMount{Name: "small", GuestPath: "/var/cache/small"}))
	if r := sh(t, c, "one", "", "set -e; cd ~/.cache/build; echo kept > file; dd if=/dev/zero of=big bs=1M count=60 2>&1; mkdir ~/.cache/other; df -P /var/cache/small"); r.status != 0 {
		t.Errorf("a task's user and a new volume: %s", r.out)
	}
	if r := sh(t, c, "one", "", "cat /run/carrel/volumes/0/data/file; ls /run/carrel/volumes"); strings.Contains(r.out, "kept") {
		t.Errorf("a task sees where the disk is mounted: %s", r.out)
	}
	if r := sh(t, c, "one", "root", "cp /bin/sh /var/cache/small/sh; chmod 4755 /var/cache/small/sh"); r.status != 0 {
		t.Error(r.out)
	}
	if r := sh(t, c, "one", "", `/var/cache/small/sh -p -c 'grep Uid: /proc/self/status'`); strings.Contains(r.out, "\t0\t") {
		t.Errorf("a program on a volume became root: %s", r.out)
	}
	// Another guest is refused by name; with another volume it starts.
	refusedWith(t, startGuest(t, c, with("two", cache)), "volume_in_use", "cache", "guest one", "carrel stop one")
	if err := c.RemoveVolume(t.Context(), "cache", true); err == nil {
		t.Error("a volume was removed under its guest")
	} else {
		refusedWith(t, err, "volume_in_use", "guest one")
	}
	// Nobody of the host's has looked into it.
	if strings.Contains(read(t, "/proc/self/mountinfo"), w.home) {
		t.Error("something of the home is mounted on the host")
	}
	w.kill() // and a daemon that is new to it says the same
	w.start()
	c = w.client()
	eventually(t, "the guest is adopted", func() bool {
		g, err := c.Guest(t.Context(), "one")
		return err == nil && g.State == api.GuestState_GUEST_STATE_READY
	})
	refusedWith(t, startGuest(t, c, with("two", cache)), "volume_in_use", "guest one")
	if _, err := c.StopGuest(t.Context(), "one", 0); err != nil {
		t.Fatal(err)
	}
	mustStart(t, c, with("two", &api.VolumeMount{Name: "cache", GuestPath: "/data"}))
	disk := filepath.Join(w.home, "state/volumes/cache/disk.img")
	if full := takesOf(t, disk); full < 60<<20 {
		t.Errorf("60 MiB written, and the volume takes %d bytes", full)
	}
	// Deleted a moment before the stop: the guest's agent gives it back before it
	// unmounts.
	if r := sh(t, c, "two", "", "cat /data/file && rm /data/big && echo more >> /data/file"); r.out != "kept\n" {
		t.Errorf("the next guest with the volume: %q", r.out)
	}
	if _, err := c.StopGuest(t.Context(), "two", 0); err != nil {
		t.Fatal(err)
	}
	if rest := takesOf(t, disk); rest > 20<<20 {
		t.Errorf("60 MiB were deleted on the volume, and it takes %d bytes after the stop", rest)
	}
	// What an ephemeral guest has written is there, though its end is quick.
	quick := with("quick", cache)
	quick.Ephemeral = true
	mustStart(t, c, quick)
	if r := sh(t, c, "quick", "", "cat ~/.cache/build/file; echo last >> ~/.cache/build/file"); r.out != "kept\nmore\n" {
		t.Errorf("an ephemeral guest with the volume: %q", r.out)
	}
	next := with("next", cache)
	next.Ephemeral = true
	mustStart(t, c, next) // waits for the one that ends
	if r := sh(t, c, "next", "", "cat ~/.cache/build/file"); r.out != "kept\nmore\nlast\n" {
		t.Errorf("the ephemeral guest after it: %q", r.out)
	}
	refusedWith(t, c.RemoveVolume(t.Context(), "small", false), "in_use", "guest one")
	for _, name := range []string{"one", "two"} {
		if err := c.RemoveGuest(t.Context(), name, false); err != nil {
			t.Error(err)
		}
	}
	if err := c.RemoveVolume(t.Context(), "small", false); err != nil {
		t.Error(err)
	}
	eventually(t, "no guest names the volume", func() bool {
		vs, err := c.Volumes(t.Context())
		return err == nil && len(vs) == 1 && vs[0].Name == "cache" && len(vs[0].Guests) == 0
	})
	seen, err := c.Prune(t.Context(), client.PruneOptions{DryRun: true, Volumes: true})
	if err != nil || !hasItem(seen, "volume", "cache") {
		t.Errorf("%v, %v", seen, err)
	}
	done, err := c.Prune(t.Context(), client.PruneOptions{Volumes: true, Only: []*api.PruneItem{{Kind: "volume", Name: "cache"}}})
	if err != nil || len(done.Items) != 1 || done.Items[0].Refused != "" || done.FreedBytes == 0 {
		t.Errorf("%v, %v", done, err)
	}
	if _, err := os.Lstat(filepath.Dir(disk)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the volume is still there: %v", err)
	}
}

func hasItem(r *api.PruneResponse, kind, name string) bool {
	for _, i := range r.GetItems() {
		if i.Kind == kind && i.Name == name && i.Bytes > 0 && i.Reason != "" {
			return true
		}
	}
	return false
}

// F09, R03: a host's disk that is full. What a guest writes then fails in the
// guest; nothing new is started, everything can still be looked at, and with
// room the guest starts again with what it had written before.
func TestVMHostDiskFull(t *testing.T) {
	var state string
	w, c := newDisks(t, func(w *world) {
		state = filepath.Join(w.home, "state")
		if err := os.Mkdir(state, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("small", state, "tmpfs", 0, "size=256m,mode=0700"); err != nil {
			t.Fatalf("a small file system for the state: %v (this test runs as root)", err)
		}
		t.Cleanup(func() { syscall.Unmount(state, syscall.MNT_DETACH) })
	})
	mustStart(t, c, &api.GuestSpec{Name: "big", MemoryMib: 512, DiskMib: 1024})
	if r := sh(t, c, "big", "", "echo before > ~/before; sync"); r.status != 0 {
		t.Fatal(r.out)
	}
	ballast, crumb := filepath.Join(state, "ballast"), filepath.Join(state, "crumb")
	for path, mib := range map[string]int{ballast: 64, crumb: 4} {
		if err := os.WriteFile(path, make([]byte, mib<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Its output would have to go to the same disk, so it goes into the guest's memory.
	r := sh(t, c, "big", "", "dd if=/dev/zero of=$HOME/big bs=1M count=400 conv=fsync 2>/dev/shm/said; echo status $? >>/dev/shm/said")
	t.Logf("the task ended with %v", r.err)
	if err := os.Remove(crumb); err != nil { // enough for a task's output
		t.Fatal(err)
	}
	r = sh(t, c, "big", "", "cat /dev/shm/said")
	t.Logf("%s", r.out)
	if strings.Contains(r.out, "status 0") || !strings.Contains(r.out, "Input/output error") && !strings.Contains(r.out, "Read-only") {
		t.Errorf("400 MiB went into a guest whose host has 256")
	}
	if gs, err := c.Guests(t.Context()); err != nil || len(gs) != 1 {
		t.Errorf("%v, %v", gs, err)
	}
	refusedWith(t, startGuest(t, c, &api.GuestSpec{Name: "other", MemoryMib: 512}), "host_full", "have to stay free", "carrel prune")
	if _, err := c.CreateVolume(t.Context(), "v", 128); err == nil {
		t.Error("a volume was made on a full disk")
	} else {
		refusedWith(t, err, "host_full", "have to stay free")
	}
	if _, err := c.StopGuest(t.Context(), "big", 0); err != nil {
		t.Errorf("stop: %v", err)
	}
	w.kill() // the state can be read, full as its disk is
	w.start()
	c = w.client()
	refusedWith(t, startGuest(t, c, &api.GuestSpec{Name: "big"}), "host_full")

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	mustStart(t, c, &api.GuestSpec{Name: "big"})
	if r := sh(t, c, "big", "", "cat ~/before; rm -f ~/big; echo after > ~/after && sync && cat ~/after"); r.out != "before\nafter\n" {
		t.Errorf("with room again: %q", r.out)
	}
	mustStart(t, c, &api.GuestSpec{Name: "other", MemoryMib: 512, DiskMib: 64})
}
