package review

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

func infoFor(n int64) *share.Info {
	return &share.Info{Dev: 1, Ino: uint64(n), Size: n, Mode: 0o644, Nlink: 1, Mtime: time.Unix(n, 5), Ctime: time.Unix(n, 7)}
}

func openTestBase(t testing.TB, dir string) *Base {
	t.Helper()
	b, err := OpenBase(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func wantBase(t *testing.T, b *Base, path string, want *share.Info) {
	t.Helper()
	got, ok := b.Look(path)
	if ok != (want != nil) || ok && !got.Same(*want) {
		t.Errorf("Look(%q) = %v, %v, want %v", path, got, ok, want)
	}
}

func TestBase(t *testing.T) {
	dir := t.TempDir()
	b := openTestBase(t, dir)
	odd := "a\n00000000 f 1\x00\xff\"/\u202e"
	odd = strings.ReplaceAll(odd, "\x00", "")
	b.Served("a", *infoFor(1))
	b.Served("a", *infoFor(2)) // the first word counts
	b.Served("dir/b", *infoFor(3))
	b.Served(odd, *infoFor(4))
	b.Served("", *infoFor(5)) // the root is no entry
	other := openTestBase(t, dir)
	for _, b := range []*Base{b, other} {
		wantBase(t, b, "a", infoFor(1))
		wantBase(t, b, "dir/b", infoFor(3))
		wantBase(t, b, odd, infoFor(4))
		wantBase(t, b, "", nil)
		wantBase(t, b, "c", nil)
	}
	// What another process notes is seen.
	if err := other.Rebase("a", infoFor(6)); err != nil {
		t.Fatal(err)
	}
	if err := other.Rebase("dir/b", nil); err != nil {
		t.Fatal(err)
	}
	wantBase(t, b, "a", infoFor(6))
	wantBase(t, b, "dir/b", nil)
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	again := openTestBase(t, dir)
	wantBase(t, again, "a", infoFor(6))
	wantBase(t, again, "dir/b", nil)
}

func TestBaseSettle(t *testing.T) {
	dir := t.TempDir()
	b := openTestBase(t, dir)
	b.Served("touched", *infoFor(1))
	b.Served("read", *infoFor(1))
	b.Served("touched", *infoFor(2))
	b.Served("read", *infoFor(2))
	if err := b.Settle(func(p string) bool { return p == "touched" }); err != nil {
		t.Fatal(err)
	}
	for _, b := range []*Base{b, openTestBase(t, dir)} {
		wantBase(t, b, "touched", infoFor(1))
		wantBase(t, b, "read", infoFor(2))
	}
}

// TestBaseOpened: what the guest opened last is what it changes, until it has.
func TestBaseOpened(t *testing.T) {
	dir := t.TempDir()
	b := openTestBase(t, dir)
	b.Served("f", *infoFor(1))
	b.Served("f", *infoFor(2)) // it was only listed
	wantBase(t, b, "f", infoFor(1))
	b.Opened("f", *infoFor(3))
	b.Opened("new", *infoFor(4))
	wantBase(t, b, "f", infoFor(3))
	wantBase(t, openTestBase(t, dir), "f", infoFor(3))
	wantBase(t, b, "new", infoFor(4))
	if err := b.Settle(func(p string) bool { return p == "f" }); err != nil {
		t.Fatal(err)
	}
	b.Opened("f", *infoFor(5))
	wantBase(t, b, "f", infoFor(3))
	b.letGo([]string{"f"})
	b.Opened("f", *infoFor(6))
	wantBase(t, b, "f", infoFor(6))
}

func TestBaseBelow(t *testing.T) {
	b := openTestBase(t, t.TempDir())
	for i, p := range []string{"d", "d/a", "d/e/f", "de", "x"} {
		b.Served(p, *infoFor(int64(i + 1)))
	}
	got := map[string]bool{}
	for p := range b.Below("d") {
		got[p] = true
	}
	if len(got) != 2 || !got["d/a"] || !got["d/e/f"] {
		t.Errorf("below d: %v", got)
	}
}

// TestBaseTorn cuts the file at every byte: whole lines count, the torn one does
// not, and what is noted afterwards does.
func TestBaseTorn(t *testing.T) {
	dir := t.TempDir()
	b := openTestBase(t, dir)
	b.Served("a", *infoFor(1))
	b.Served("b", *infoFor(2))
	b.Close()
	whole, err := os.ReadFile(filepath.Join(dir, baseName))
	if err != nil {
		t.Fatal(err)
	}
	first := strings.IndexByte(string(whole), '\n') + 1
	for cut := range len(whole) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, baseName), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		b := openTestBase(t, dir)
		b.Served("c", *infoFor(3))
		b.Close()
		b = openTestBase(t, dir)
		a, second := infoFor(1), infoFor(2)
		if cut < first-1 { // a line that lacks nothing but its end is whole
			a = nil
		}
		if cut < len(whole)-1 {
			second = nil
		}
		wantBase(t, b, "a", a)
		wantBase(t, b, "b", second)
		wantBase(t, b, "c", infoFor(3))
		b.Close()
	}
}

func TestBaseLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "elsewhere"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", filepath.Join(dir, baseName)); err != nil {
		t.Skip(err)
	}
	if is, err := os.Lstat(filepath.Join(dir, baseName)); err != nil || is.Mode().Type() != os.ModeSymlink {
		t.Skipf("no link was made, and no error said: %v", err) // Wine 8
	}
	if b, err := OpenBase(dir); err == nil {
		b.Close()
		t.Error("a base that is a symbolic link was opened")
	}
}

func FuzzBaseLine(f *testing.F) {
	f.Add(appendLine(nil, wordFirst, "a/b", factOf(infoFor(1))))
	f.Add([]byte("00000000 f 1 2 3 4 5 6 7 \"x\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		readLines(strings.NewReader(string(data)), func(w word, path string, is fact) {
			again := appendLine(nil, w, path, is)
			w2, path2, is2, ok := parseLine(again[:len(again)-1])
			if !ok || w2 != w || path2 != path || is2 != is {
				t.Errorf("%q is read differently again", again)
			}
		})
	})
}
