package daemon

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A disk from a template is the disk that mkfs makes, is nobody else's to read,
// and takes no more room than the template.
func TestScratchFromTemplate(t *testing.T) {
	fsck, err := lookTool("e2fsck")
	if err != nil {
		t.Skip(err)
	}
	cache, dir := t.TempDir(), t.TempDir()
	for i, name := range []string{"a", "b", "c"} {
		path := filepath.Join(dir, name)
		began := time.Now()
		if err := makeScratch(context.Background(), cache, path, 8192); err != nil {
			t.Fatal(err)
		}
		t.Logf("disk %d took %v", i, time.Since(began))
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if room := fi.Sys().(*syscall.Stat_t).Blocks * 512; fi.Mode().Perm() != 0o600 || fi.Size() != 8<<30 || room > 8<<20 {
			t.Errorf("%s: %v, %d bytes of which %d are there", name, fi.Mode(), fi.Size(), room)
		}
		if out, err := exec.Command(fsck, "-fn", path).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
	// One that is there stays as it is.
	if err := os.WriteFile(filepath.Join(dir, "mine"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := makeScratch(context.Background(), cache, filepath.Join(dir, "mine"), 64); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "mine")); string(b) != "x" {
		t.Error("a disk was made again")
	}
	// A damaged template is made again, what a crash left is removed, and old
	// ones do not pile up.
	folder := filepath.Join(cache, "scratch")
	for _, name := range []string{"ext4-8192-1.img", "ext4-1-1.img.new"} {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for mib := uint32(64); mib < 64+2*maxTemplates; mib++ {
		if err := makeScratch(context.Background(), cache, filepath.Join(dir, "d"+string(rune('a'+mib-64))), mib); err != nil {
			t.Fatal(err)
		}
	}
	if err := makeScratch(context.Background(), cache, filepath.Join(dir, "again"), 8192); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(fsck, "-fn", filepath.Join(dir, "again")).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	es, err := os.ReadDir(folder)
	if err != nil || len(es) > maxTemplates+1 {
		t.Errorf("%d files are left: %v", len(es), err)
	}
	for _, e := range es {
		if fi, _ := e.Info(); fi.Mode().Perm()&0o077 != 0 || filepath.Ext(e.Name()) == ".new" {
			t.Errorf("%s is left, with %v", e.Name(), fi.Mode())
		}
	}
}
