package bubblewrap

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
	"github.com/carrel-vm/carrel/hypervisor/wall"
)

// image makes a small EROFS image with one program in it.
func image(t *testing.T) string {
	t.Helper()
	tree := t.TempDir()
	for _, d := range []string{"bin", "etc", "home/carrel"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if wall.AsRoot() {
		if err := os.Chown(filepath.Join(tree, "home/carrel"), wall.TaskID, wall.TaskID); err != nil {
			t.Fatal(err)
		}
	}
	install(t, hypervisortest.Program(t, "github.com/carrel-vm/carrel/hypervisor/bubblewrap/testdata/attack"), filepath.Join(tree, "bin"))
	write(t, filepath.Join(tree, "etc/passwd"), "root:x:0:0::/root:/bin/sh\ncarrel:x:1000:1000::/home/carrel:/bin/sh\n")
	path := filepath.Join(t.TempDir(), "root.erofs")
	if out, err := exec.Command("mkfs.erofs", path, tree).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s (scripts/setup installs it)", err, out)
	}
	return path
}

// TestImage starts from an image: its files belong to whom the image says, the
// guest may change all it has rights to, and with a disk that stays.
func TestImage(t *testing.T) {
	cfg := config(t)
	cfg.Root = image(t)
	cfg.Scratch = filepath.Join(cfg.Dir, "scratch.img")
	cache := t.TempDir()
	in := func(o *Options) { o.CacheDir = cache }
	for round, want := range []string{"ok", "EEXIST"} {
		g := startWith(t, in, cfg)
		// In the guest's home: it is the user's, and it is on the disk.
		out, status := g.exec("", "/bin/attack", "setuid", "/home/carrel")
		if status != 0 || !strings.Contains(out, "mknod-755 "+want+"\n") || !strings.Contains(out, "chmod-755 ok\n") {
			t.Errorf("round %d: %d: %s", round, status, out)
		}
		if out, _ := g.exec("", "/bin/attack", "setuid", "/bin"); wall.AsRoot() && strings.Contains(out, "chmod-755 ok") {
			t.Errorf("round %d: the guest's user writes to /bin: %s", round, out)
		}
		for _, user := range users() {
			if out, _ := g.exec(user, "/bin/attack", "mounts", "/bin"); strings.Contains(out, "mount ok") || strings.Contains(out, "bind ok") {
				t.Errorf("round %d: user %q: %s", round, user, out)
			}
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
	if trees, _ := filepath.Glob(filepath.Join(cache, "unpacked", "*")); wall.AsRoot() && len(trees) != 0 || !wall.AsRoot() && len(trees) != 2 { // one, and the lock
		t.Errorf("the cache holds %v", trees)
	}
	cfg.Root = filepath.Join(cfg.Dir, "none.erofs")
	if vm, err := newDriver(t, hypervisortest.Agent(t)).Create(t.Context(), cfg, hypervisor.Handlers{}); err == nil {
		defer vm.Close()
		if err := vm.Start(t.Context()); err == nil {
			t.Error("started from an image that is not there")
		}
	}
}
