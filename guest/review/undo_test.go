package review

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

// live changes a share as its server does for a guest: what is there is kept
// first.
type live struct{ *desk }

func (l live) keep(name string) {
	l.t.Helper()
	is, _ := lstat(l.Root, name)
	err := l.Undo.Keep(name, is, func() (share.Reader, error) {
		if is.Mode.Type() == linkType {
			target, err := readlink(l.Root, name)
			return stringReader{strings.NewReader(target)}, err
		}
		f, err := l.Root.Folder(parent(name))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		h, _, err := f.Open(base(name))
		return h, err
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l live) put(name, content string) { l.t.Helper(); l.keep(name); l.write(name, content) }

func (l live) remove(name string) {
	l.t.Helper()
	l.keep(name)
	if err := os.Remove(filepath.Join(l.host, name)); err != nil {
		l.t.Fatal(err)
	}
}

func (l live) mkdir(name string) {
	l.t.Helper()
	l.keep(name)
	if err := os.Mkdir(filepath.Join(l.host, name), 0o755); err != nil {
		l.t.Fatal(err)
	}
}

func (l live) rename(from, to string) {
	l.t.Helper()
	l.keep(from)
	l.keep(to)
	if err := os.Rename(filepath.Join(l.host, from), filepath.Join(l.host, to)); err != nil {
		l.t.Fatal(err)
	}
}

// session ends a task; what the host does next happens at a later time.
func (l live) session(task string) {
	l.t.Helper()
	if err := l.Undo.Session(task); err != nil {
		l.t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
}

func TestUndoLive(t *testing.T) {
	if onWindows {
		t.Skip("folders have no numbers there, by which one that was renamed is known again")
	}
	l := live{newDesk(t, map[string]string{"f": "old", "gone": "x", "link": "-> f", "dir/a": "1", "dir/b": "2", "z/in": "3", "mine": "host's"})}
	os.Chmod(filepath.Join(l.host, "f"), 0o600)
	before := l.tree()
	l.session("one")
	l.put("f", "new")
	l.put("f", "newer")
	l.remove("gone")
	l.remove("link")
	l.mkdir("new")
	l.put("new/file", "x")
	l.put("dir/a", "changed")
	l.rename("dir", "moved")
	l.put("moved/b", "changed there")
	l.rename("z/in", "z/out")
	between := l.tree()
	l.session("two")
	l.put("f", "of the second task")
	l.put("second", "x")
	l.session("")

	if got := l.undo(UndoOptions{}); got["f"] != "" || l.tree() != between { // the last one
		t.Fatalf("%v\n%s\nwant\n%s", got, l.tree(), between)
	}
	all, err := l.Undo.Undoable("")
	if err != nil || len(all) != 1 || all[0].Task != "one" {
		t.Fatalf("%+v, %v", all, err)
	}
	// What the host has changed since is not taken back, but for a yes.
	l.write("gone", "made again by the host")
	got := l.undo(UndoOptions{})
	for name, why := range got {
		if (name == "gone") != (why != "") {
			t.Errorf("%s: %q", name, why)
		}
	}
	if l.file("gone") != "made again by the host" || l.file("dir/b") != "2" || l.file("dir/a") != "1" {
		t.Errorf("it is\n%s", l.tree())
	}
	l.undo(UndoOptions{Overwrite: true})
	if l.tree() != before {
		t.Errorf("it is\n%s\nwant\n%s", l.tree(), before)
	}
}

// TestUndoApplies takes back one apply after the other.
func TestUndoApplies(t *testing.T) {
	w := newDesk(t, map[string]string{"f": "0"})
	var trees []string
	for _, c := range []string{"1", "2", "3"} {
		trees = append(trees, w.tree())
		w.guest(Entry{Name: "f", Kind: File, Target: c})
		if got := w.apply(ApplyOptions{}); got["f"] != "" {
			t.Fatal(got)
		}
	}
	for n := len(trees) - 1; n >= 0; n-- {
		if got := w.undo(UndoOptions{}); got["f"] != "" || w.tree() != trees[n] {
			t.Errorf("%d: %v, %s", n, got, w.tree())
		}
	}
	w.guest(Entry{Name: "f", Kind: File, Target: "4"})
	w.apply(ApplyOptions{})
	w.write("f", "the host's")
	if got := w.undo(UndoOptions{}); got["f"] == "" || w.file("f") != "the host's" {
		t.Errorf("control: %v", got)
	}
}

// TestUndoPaths takes back a part, and then the rest.
func TestUndoPaths(t *testing.T) {
	l := live{newDesk(t, map[string]string{"a/x": "1", "b": "2"})}
	before := l.tree()
	l.session("one")
	l.put("a/x", "new")
	l.put("b", "new")
	l.session("")
	if got := l.undo(UndoOptions{Paths: []string{"a", "none"}}); got["a/x"] != "" || got["none"] == "" || l.file("a/x") != "1" || l.file("b") != "new" {
		t.Errorf("%v\n%s", got, l.tree())
	}
	if l.undo(UndoOptions{}); l.tree() != before {
		t.Errorf("%s", l.tree())
	}
}

// TestUndoHostile: names that came from a guest's share lead nowhere else when
// they are given back either.
func TestUndoHostile(t *testing.T) {
	if onWindows {
		t.Skip(othersThere)
	}
	l := live{newDesk(t, map[string]string{"d/f": "old", "d/g": "old"})}
	outside := filepath.Join(filepath.Dir(l.host), "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	l.session("one")
	l.put("d/f", "new")
	l.session("")
	os.Rename(filepath.Join(l.host, "d"), filepath.Join(l.host, "e"))
	if err := os.Symlink(outside, filepath.Join(l.host, "d")); err != nil {
		t.Skip(err)
	}
	if got := l.undo(UndoOptions{Overwrite: true}); !strings.Contains(got["d/f"], "link") || tree(t, outside) != "" {
		t.Errorf("%v, outside %q", got, tree(t, outside))
	}
	os.Remove(filepath.Join(l.host, "d"))
	os.Rename(filepath.Join(l.host, "e"), filepath.Join(l.host, "d"))
	if got := l.undo(UndoOptions{}); got["d/f"] != "" || l.file("d/f") != "old" {
		t.Errorf("control: %v", got)
	}
}
