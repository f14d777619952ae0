package review

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share"
)

// smallDisk mounts a file system of so many KiB.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a small disk takes root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestApplyDiskFull: what fits is done, what was told is done, nothing is half
// written, and with more room it goes on.
func TestApplyDiskFull(t *testing.T) {
	disk := smallDisk(t, "1m")
	w := deskIn(t, filepath.Join(disk, "host"), t.TempDir(), map[string]string{"b": "old"})
	large := strings.Repeat("x", 600<<10)
	w.guest(Entry{Name: "a", Kind: File, Target: "small"}, Entry{Name: "b", Kind: File, Target: large}, Entry{Name: "c", Kind: File, Target: large}, Entry{Name: "d", Kind: File, Target: "d"})
	got, err := w.tryApply(ApplyOptions{})
	if !share.IsFull(err) {
		t.Fatalf("%v, %v", got, err)
	}
	for _, n := range []string{"a", "b"} {
		if why, told := got[n]; !told || why != "" {
			t.Errorf("%s: %q %v", n, why, told)
		}
	}
	if _, told := got["c"]; told || len(w.file("b")) != len(large) || w.file("c") != "(none)" {
		t.Errorf("%v\n%s", got, w.tree())
	}
	if strings.Contains(w.tree(), tmpPrefix) {
		t.Errorf("a temporary name is left:\n%s", w.tree())
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if got := w.apply(ApplyOptions{}); got["c"] != "" || got["d"] != "" || len(w.file("c")) != len(large) || len(w.names()) != 0 {
		t.Errorf("%v, left %q", got, w.names())
	}
}

// TestUndoDiskFull: without room for a pre-image nothing is changed.
func TestUndoDiskFull(t *testing.T) {
	disk := smallDisk(t, "1m")
	host := filepath.Join(t.TempDir(), "host")
	w := deskIn(t, host, disk, map[string]string{"a": strings.Repeat("o", 900<<10), "b": "old"})
	w.guest(Entry{Name: "a", Kind: File, Target: "new"}, Entry{Name: "b", Kind: File, Target: "new"})
	if err := os.WriteFile(filepath.Join(disk, "ballast"), make([]byte, 300<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	before := w.tree()
	if got, err := w.tryApply(ApplyOptions{}); !share.IsFull(err) || w.tree() != before {
		t.Fatalf("%v, %v", got, err)
	}
	if got, err := w.tryApply(ApplyOptions{Paths: []string{"b"}}); err != nil || got["b"] != "" || w.file("b") != "new" {
		t.Errorf("control: %v, %v", got, err)
	}
	os.Remove(filepath.Join(disk, "ballast"))
	if got := w.apply(ApplyOptions{}); got["a"] != "" || w.file("a") != "new" {
		t.Errorf("%v", got)
	}
	u := w.Undo
	u.Max = 1 << 10 // and the store's own bound
	w.write("c", strings.Repeat("o", 2<<10))
	w.serve()
	w.guest(Entry{Name: "c", Kind: File, Target: "new"})
	if got := w.apply(ApplyOptions{}); !strings.Contains(got["c"], "room for undoing") || w.file("c") == "new" {
		t.Errorf("%v", got)
	}
}

// TestApplyCanceled: an end between two entries is a good place.
func TestApplyCanceled(t *testing.T) {
	w := newDesk(t, nil)
	var entries []Entry
	for _, c := range strings.Split(strings.Repeat("x", 2*batchSize), "") {
		entries = append(entries, Entry{Name: "f" + string(rune('a'+len(entries)%26)) + strings.Repeat(c, 1+len(entries)/26), Kind: File, Target: "x"})
	}
	w.guest(entries...)
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	err := w.Apply(ctx, ApplyOptions{}, func(Event) error {
		if n++; n == 10 {
			cancel()
		}
		return nil
	})
	if err == nil || n >= len(entries) {
		t.Fatalf("%d of %d, %v", n, len(entries), err)
	}
	for range w.apply(ApplyOptions{}) {
		n++
	}
	if n < len(entries) || strings.Count(w.tree(), "\n")+1 != len(entries) || len(w.names()) != 0 {
		t.Errorf("%d told, %d there", n, strings.Count(w.tree(), "\n")+1)
	}
}
