package review

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestApply(t *testing.T) {
	files := map[string]string{
		"keep": "as it is", "edit": "old", "gone": "x", "dir/a": "1", "dir/b": "2", "dir/sub/c": "3", "was/file": "4", "link": "-> edit", "mode": "same",
		"swap": "a file", "redo/old": "5", "redo/sub/old": "6", "redo/both": "7",
	}
	after := map[string]string{
		"keep": "as it is", "edit": "new", "was": "a folder once", "link": "-> ../elsewhere", "mode": "same", "swap/in": "in", "new/deep/file": "deep", "redo/both": "8",
	}
	if onWindows {
		delete(files, "link")
		delete(after, "link")
	}
	w := newDesk(t, files)
	before := w.tree()
	w.guest(
		Entry{Name: "edit", Kind: File, Target: "new", Mode: 0o755},
		Entry{Name: "gone", Kind: Removed},
		Entry{Name: "dir", Kind: Removed},
		Entry{Name: "was", Kind: File, Target: "a folder once"},
		Entry{Name: "mode", Kind: File, Target: "same", Mode: 0o755},
		Entry{Name: "swap", Kind: NewFolder},
		Entry{Name: "swap/in", Kind: File, Target: "in"},
		Entry{Name: "new", Kind: NewFolder, Mode: 0o700},
		Entry{Name: "new/deep", Kind: Folder},
		Entry{Name: "new/deep/file", Kind: File, Target: "deep"},
		Entry{Name: "redo", Kind: NewFolder},
		Entry{Name: "redo/both", Kind: File, Target: "8"},
	)
	if !onWindows {
		w.guest(Entry{Name: "link", Kind: Link, Target: "../elsewhere"})
	}
	w.apply(ApplyOptions{DryRun: true})
	if got := w.tree(); got != before {
		t.Fatalf("a dry run has changed the folder:\n%s", got)
	}
	dry := w.apply(ApplyOptions{DryRun: true, Accept: true})
	got := w.apply(ApplyOptions{Accept: true})
	for name, why := range got {
		if why != "" {
			t.Errorf("%s: %s", name, why)
		}
		if d, ok := dry[name]; !ok || d != "" {
			t.Errorf("a dry run says %q (%v) of %s", d, ok, name)
		}
	}
	want := newDesk(t, after)
	for name, mode := range map[string]os.FileMode{"edit": 0o755, "mode": 0o755, "new": 0o700} {
		os.Chmod(filepath.Join(want.host, name), mode)
	}
	if w.tree() != want.tree() {
		t.Errorf("it is\n%s\nwant\n%s", w.tree(), want.tree())
	}
	if left := w.names(); len(left) != 0 {
		t.Errorf("the review still has %q", left)
	}
	if again := w.apply(ApplyOptions{}); len(again) != 0 {
		t.Errorf("a second apply did %v", again)
	}

	// All of it can be taken back.
	for name, why := range w.undo(UndoOptions{}) {
		if why != "" {
			t.Errorf("undo of %s: %s", name, why)
		}
	}
	if got := w.tree(); got != before {
		t.Errorf("after the undo it is\n%s\nwant\n%s", got, before)
	}
	if all, _ := w.Undo.Undoable(""); len(all) != 0 {
		t.Errorf("%+v can be undone still", all)
	}
}

// TestApplyConflicts is the three-way matrix: what the guest does, what the host
// has done meanwhile.
func TestApplyConflicts(t *testing.T) {
	guest := map[string]Entry{
		"edits":   {Kind: File, Target: "guest"},
		"removes": {Kind: Removed},
		"links":   {Kind: Link, Target: "x"},
		"folds":   {Kind: NewFolder},
	}
	host := map[string]func(w *desk, name string){
		"nothing": nil,
		"edits":   func(w *desk, name string) { w.write(name, "host") },
		"saves": func(w *desk, name string) {
			w.write(name+".new", "old")
			os.Rename(filepath.Join(w.host, name+".new"), filepath.Join(w.host, name))
		},
		"the same": func(w *desk, name string) { w.write(name, "guest") },
		"removes":  func(w *desk, name string) { os.Remove(filepath.Join(w.host, name)) },
		"folds":    func(w *desk, name string) { os.Remove(filepath.Join(w.host, name)); w.write(name+"/in", "host") },
		"links":    func(w *desk, name string) { w.write(name, "-> /etc/passwd") },
		"chmods":   func(w *desk, name string) { os.Chmod(filepath.Join(w.host, name), 0o600) },
	}
	if onWindows {
		delete(guest, "links")
		delete(host, "links")
		delete(host, "chmods")
	}
	// What is not listed is a conflict.
	fine := []string{"edits/nothing", "removes/nothing", "links/nothing", "folds/nothing", "edits/the same", "removes/removes", "folds/folds"}
	for g, e := range guest {
		for h, do := range host {
			for _, overwrite := range []bool{false, true} {
				w := newDesk(t, map[string]string{"d/f": "old"})
				e.Name = "d/f"
				w.guest(e)
				if do != nil {
					do(w, "d/f")
				}
				before := w.tree()
				got := w.apply(ApplyOptions{Overwrite: overwrite})
				pair := g + "/" + h
				switch {
				case slices.Contains(fine, pair) || overwrite:
					if got["d/f"] != "" {
						t.Errorf("%s (overwrite %v): %q", pair, overwrite, got)
					}
					if g == "edits" && w.file("d/f") != "guest" {
						t.Errorf("%s: the file holds %q", pair, w.file("d/f"))
					}
					if _, err := os.Lstat(filepath.Join(w.host, "d/f")); g == "removes" && err == nil {
						t.Errorf("%s: it is still there", pair)
					}
				case got["d/f"] == "":
					t.Errorf("%s: no conflict: %q", pair, got)
				case w.tree() != before || !slices.Equal(w.names(), []string{"d/f"}):
					t.Errorf("%s: a conflict, and yet it is\n%s\nreview %q", pair, w.tree(), w.names())
				}
				if overwrite && w.tree() != before {
					w.undo(UndoOptions{})
					if w.tree() != before {
						t.Errorf("%s: after overwrite and undo it is\n%s\nwant\n%s", pair, w.tree(), before)
					}
				}
			}
		}
	}
}

// TestApplyRefuses: what a hostile guest may tell, each beside an entry that is
// applied.
func TestApplyRefuses(t *testing.T) {
	outside := t.TempDir()
	files, out := map[string]string{".env": "secret", "dir/.env": "secret", "dir/a": "1", "real/x": "1", "out": "-> " + outside, "f": "file", ".vscode/old": "1"}, "link"
	if onWindows {
		delete(files, "out")
		out = "not there"
	}
	w := newDesk(t, files)
	w.guest(
		Entry{Name: "good", Kind: File, Target: "good"},
		Entry{Name: ".env", Kind: File, Target: "x"},
		Entry{Name: ".ENV.local", Kind: File, Target: "x"},
		Entry{Name: "dir", Kind: Removed},
		Entry{Name: "dev", Kind: Other},
		Entry{Name: "out/x", Kind: File, Target: "x"},
		Entry{Name: "f/x", Kind: File, Target: "x"},
		Entry{Name: "nowhere/x", Kind: File, Target: "x"},
		Entry{Name: ".vscode/tasks.json", Kind: File, Target: "x"},
		Entry{Name: "Makefile", Kind: File, Target: "x"},
		Entry{Name: ".git/hooks/pre-commit", Kind: File, Target: "x"},
		Entry{Name: ".GIT/config", Kind: File, Target: "x"},
		Entry{Name: "ignored.o", Kind: File, Target: "x", Ignored: true},
		Entry{Name: "large", Kind: File, Blob: strings.Repeat("0", 64), Size: 3},
	)
	got := w.apply(ApplyOptions{})
	for name, word := range map[string]string{
		"good": "", ".env": "does not see", ".ENV.local": "does not see", "dir": "hidden", "dev": "device", "out/x": out, "f/x": "none", "nowhere/x": "not there",
		".vscode/tasks.json": "yes", "Makefile": "yes", "large": "gone",
	} {
		if why, told := got[name]; !told || !strings.Contains(why, word) || word == "" && why != "" {
			t.Errorf("%s: %q, want %q", name, why, word)
		}
		delete(got, name)
	}
	if len(got) != 0 {
		t.Errorf("and %v", got)
	}
	if w.file("good") != "good" || w.file("dir/.env") != "secret" || w.file("dir/a") != "1" {
		t.Errorf("it is\n%s", w.tree())
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("outside there is %v", left)
	}
	// With a yes of its own, and by name.
	got = w.apply(ApplyOptions{Accept: true, Ignored: true, Paths: []string{".vscode", "Makefile", "ignored.o", ".git/hooks", "none"}})
	for _, name := range []string{".vscode/tasks.json", "Makefile", "ignored.o"} {
		if why, told := got[name]; why != "" || !told || w.file(name) != "x" {
			t.Errorf("%s: %q", name, why)
		}
	}
	if got["none"] == "" {
		t.Error("a path without a change was passed over in silence")
	}
}

// TestApplySetID: bits that give a program its owner's rights never come along.
func TestApplySetID(t *testing.T) {
	if onWindows {
		t.Skip(othersThere)
	}
	w := newDesk(t, map[string]string{"old": "1"})
	os.Chmod(filepath.Join(w.host, "old"), 0o755|os.ModeSetuid)
	w.Base.Rebase("old", statOf(w, "old"))
	w.guest(Entry{Name: "old", Kind: File, Target: "2", Mode: 0o777})
	if got := w.apply(ApplyOptions{}); got["old"] != "" {
		t.Fatal(got)
	}
	if info, err := os.Lstat(filepath.Join(w.host, "old")); err != nil || info.Mode() != 0o777 {
		t.Errorf("it has %v, %v", info.Mode(), err)
	}
	e := Entry{Name: "x", Kind: File, Mode: 0o4755, Blob: w.blob("")}
	if e.check() == nil {
		t.Error("an index takes a set-id bit")
	}
}

// TestRemoveUnserved: what the guest has not seen keeps its folder.
func TestRemoveUnserved(t *testing.T) {
	w := newDesk(t, map[string]string{"dir/sub/seen": "1", "dir/other": "2"})
	w.guest(Entry{Name: "dir", Kind: Removed})
	w.write("dir/sub/mine", "the host's")
	before := w.tree()
	if got := w.apply(ApplyOptions{}); !strings.Contains(got["dir"], "dir/sub/mine") || w.tree() != before {
		t.Errorf("%v\n%s", got, w.tree())
	}
	os.Remove(filepath.Join(w.host, "dir/sub/mine"))
	w.write("dir/other", "changed")
	if got := w.apply(ApplyOptions{}); !strings.Contains(got["dir"], "dir/other") {
		t.Errorf("%v\n%s", got, w.tree())
	}
	before = w.tree()
	if got := w.apply(ApplyOptions{Overwrite: true}); got["dir"] != "" || w.tree() != "" {
		t.Errorf("%v\n%s", got, w.tree())
	}
	w.undo(UndoOptions{})
	if w.tree() != before {
		t.Errorf("after the undo it is\n%s\nwant\n%s", w.tree(), before)
	}
}

func TestApplyNewerEntryStays(t *testing.T) {
	w := newDesk(t, map[string]string{"f": "old"})
	w.guest(Entry{Name: "f", Kind: File, Target: "one"})
	entries := w.Store.Entries()
	w.guest(Entry{Name: "f", Kind: File, Target: "two"}) // the guest goes on meanwhile
	after, _ := w.Root.Lstat("f")
	if err := w.Store.applied(map[string]appliedAs{"f": {entries[0].Stamp, &after}}); err != nil {
		t.Fatal(err)
	}
	if left := w.Store.Entries(); len(left) != 1 || left[0].Base == nil || !left[0].Base.Same(after) {
		t.Errorf("%+v", left)
	}
	if got := w.apply(ApplyOptions{}); got["f"] != "" || w.file("f") != "two" {
		t.Errorf("%v", got)
	}
}

func TestDiscard(t *testing.T) {
	w := newDesk(t, map[string]string{"f": "old"})
	w.guest(Entry{Name: "f", Kind: File, Target: "one"}, Entry{Name: "g", Kind: File, Target: "two"})
	if n, err := w.Discard(t.Context(), []string{"f"}); n != 1 || err != nil || !slices.Equal(w.names(), []string{"g"}) {
		t.Errorf("%d, %v, %q", n, err, w.names())
	}
	if got := w.apply(ApplyOptions{}); len(got) != 1 || w.file("f") != "old" {
		t.Errorf("%v", got)
	}
}
