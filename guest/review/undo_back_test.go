//go:build unix

package review

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/wire"
)

// An undo of an apply brings the changes back into the review, contents and all,
// and they can be applied again; also after the store has swept, and over an import of
// a guest that has let go of them.
func TestUndoBringsBack(t *testing.T) {
	w := newDesk(t, map[string]string{"edit": "old", "gone": "g", "dir/a": "1", "dir/b/c": "2", "mode": "m", "link": "-> edit"})
	w.guest(
		Entry{Name: "edit", Kind: File, Target: "new"},
		Entry{Name: "gone", Kind: Removed},
		Entry{Name: "dir", Kind: Removed},
		Entry{Name: "made", Kind: NewFolder},
		Entry{Name: "made/f", Kind: File, Target: "made"},
		Entry{Name: "mode", Kind: File, Target: "m", Mode: 0o755},
		Entry{Name: "link", Kind: Link, Target: "dir/a"},
	)
	before, waits := w.tree(), w.returned()
	all := w.apply(ApplyOptions{Accept: true})
	after := w.tree()
	if len(w.names()) != 0 {
		t.Fatalf("after the apply there is %q", w.names())
	}
	w.undo(UndoOptions{})
	if w.tree() != before || w.returned() != waits {
		t.Fatalf("after the undo there is\n%s\nand in the review\n%s\nwant\n%s", w.tree(), w.returned(), waits)
	}
	if err := w.Store.sweep(); err != nil {
		t.Fatal(err)
	}
	again := w.apply(ApplyOptions{Accept: true})
	for name := range all {
		if why, told := again[name]; !told || why != "" {
			t.Errorf("%s again: %q, %v", name, why, told)
		}
	}
	if w.tree() != after || len(w.names()) != 0 {
		t.Errorf("after the second apply there is\n%s\nand in the review %q", w.tree(), w.names())
	}
	w.undo(UndoOptions{})
	if w.tree() != before || w.returned() != waits {
		t.Errorf("after the second undo there is\n%s\nand in the review\n%s", w.tree(), w.returned())
	}
	if n, err := w.Discard(t.Context(), nil); err != nil || n == 0 || len(w.names()) != 0 {
		t.Errorf("discarded %d, %v; there is %q", n, err, w.names())
	}
}

// Only what was undone comes back; of a name that the guest has changed again the
// newer change stays, and is no conflict; a change whose content is not to be had any
// more does not come back, and the undo is done all the same.
func TestUndoBringsBackOnly(t *testing.T) {
	w := newDesk(t, map[string]string{"a": "old", "b": "old", "c": "old", "d": "old"})
	for _, n := range []string{"a", "b", "c", "d"} {
		w.guest(Entry{Name: n, Kind: File, Target: "new " + n})
	}
	w.apply(ApplyOptions{})
	w.guest(Entry{Name: "b", Kind: File, Target: "newer"})
	if err := os.WriteFile(filepath.Join(w.host, "c"), []byte("the user's own"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := w.undo(UndoOptions{Paths: []string{"a", "b", "c"}})
	if got["a"] != "" || got["b"] != "" || !strings.Contains(got["c"], "changed since") {
		t.Fatalf("undone: %q", got)
	}
	if names := strings.Join(w.names(), " "); names != "a b" {
		t.Errorf("in the review there is %q, want a and b", names)
	}
	if all, err := w.Undo.Undoable(""); err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	if got := w.undo(UndoOptions{Paths: []string{"c"}, Overwrite: true}); got["c"] != "" || w.file("c") != "old" {
		t.Errorf("undone over the user's: %q, and c has %q", got, w.file("c"))
	}
	if names := strings.Join(w.names(), " "); names != "a b" {
		t.Errorf("in the review there is %q: what was changed by the host is not the guest's", names)
	}
	for p, why := range w.apply(ApplyOptions{}) {
		if why != "" {
			t.Errorf("apply of %s: %s", p, why)
		}
	}
	if w.file("a") != "new a" || w.file("b") != "newer" {
		t.Errorf("in the end a has %q and b %q", w.file("a"), w.file("b"))
	}
}

// An import keeps what an undo has brought back, until the guest tells of the same
// name or has something else in place of its folder.
func TestImportKeepsBack(t *testing.T) {
	w := newScene(t, map[string]string{"a": "old", "dir/b": "old", "c": "old"})
	b, err := w.s.newBlob()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(b, "new")
	sum, err := b.keep()
	if err != nil {
		t.Fatal(err)
	}
	err = w.s.change(func(idx *index) {
		for _, n := range []string{"a", "dir/b", "c"} {
			is, _ := w.base.Look(n)
			idx.entries = append(idx.entries, Entry{Name: n, Kind: File, Mode: 0o644, Size: 3, Blob: sum, Base: &is, Stamp: "s", Back: true})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	names := func() (all string) {
		for _, e := range w.s.Entries() {
			if e.Kind == File && e.Name != "other" {
				if _, err := w.s.CopyBlob(io.Discard, e.Blob); err != nil {
					t.Errorf("%s: %v", e.Name, err)
				}
			}
			all += e.Name + " "
		}
		return all
	}
	w.file("other", "x")
	w.imported()
	if got := names(); got != "a c dir/b other " {
		t.Errorf("after an import there is %s", got)
	}
	w.list = nil
	w.file("a", "newer")
	w.entry("dir", wire.ChangedType_CHANGED_TYPE_REMOVED)
	w.imported()
	if got := names(); got != "a c dir dir/b " {
		t.Errorf("after one that tells of two of them there is %s", got)
	}
	for _, e := range w.s.Entries() {
		if e.Back != (e.Name == "c") {
			t.Errorf("%s: %v", e.Name, e.Back)
		}
	}
}
