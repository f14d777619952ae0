package review

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
)

// shown is what a diff shows now, as a yes to it names it.
func (w *desk) shown(paths ...string) map[string]bool {
	w.t.Helper()
	all := map[string]bool{}
	err := w.Store.Diff(context.Background(), w.Root, w.Rules, DiffOptions{Paths: paths, NoText: true}, func(c *api.Change) error {
		all[string(c.Seen)] = true
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// What comes between the look and the yes is not applied: another content,
// mode or kind of what was shown, and what is new.
func TestApplySeen(t *testing.T) {
	files := map[string]string{"kept": "1", "edit": "1", "mode": "1", "gone": "1", "same": "1"}
	first := []Entry{
		{Name: ".envrc", Kind: File, Target: "echo good"},
		{Name: "kept", Kind: File, Target: "2"},
		{Name: "edit", Kind: File, Target: "2"},
		{Name: "mode", Kind: File, Target: "2"},
		{Name: "gone", Kind: File, Target: "2"},
		{Name: "dir", Kind: NewFolder},
		{Name: "dir/a", Kind: File, Target: "a"},
	}
	then := []Entry{
		{Name: ".envrc", Kind: File, Target: "echo evil"},
		{Name: "kept", Kind: File, Target: "2"}, // made again, and the same
		{Name: "edit", Kind: File, Target: "3"},
		{Name: "mode", Kind: File, Target: "2", Mode: 0o755},
		{Name: "gone", Kind: Removed},
		{Name: "same", Kind: File, Target: "1"}, // nothing to be seen
		{Name: "dir/b", Kind: File, Target: "b"},
		{Name: ".vscode", Kind: NewFolder},
		{Name: ".vscode/tasks.json", Kind: File, Target: "{}"},
	}
	newer := []string{".envrc", "edit", "mode", "gone", "dir/b", ".vscode", ".vscode/tasks.json"}
	if !onWindows {
		first, then = append(first, Entry{Name: "link", Kind: Link, Target: "kept"}), append(then, Entry{Name: "link", Kind: Link, Target: "../out"})
		newer = append(newer, "link")
	}
	for _, pinned := range []bool{false, true} {
		w := newDesk(t, files)
		w.guest(slices.Clone(first)...)
		o := ApplyOptions{Accept: true}
		if seen := w.shown(); pinned {
			o.Seen = seen
		}
		w.guest(slices.Clone(then)...)
		got := w.apply(o)
		for _, name := range newer {
			why, told := got[name]
			if refused := told && why == unseen; refused != pinned {
				t.Errorf("pinned %v: %s: %q (%v)", pinned, name, why, told)
			}
		}
		for _, name := range []string{"kept", "dir/a"} {
			if why, told := got[name]; !told || why != "" {
				t.Errorf("pinned %v: %s: %q (%v)", pinned, name, why, told)
			}
		}
		if why := got["same"]; why == unseen {
			t.Error("an entry without a change is told as one that came later")
		}
		want := map[bool]string{false: "echo evil", true: "(none)"}[pinned]
		if is := w.file(".envrc"); is != want {
			t.Errorf("pinned %v: .envrc is %q", pinned, is)
		}
		if !pinned {
			continue
		}
		if got := w.apply(ApplyOptions{Accept: true, Seen: w.shown()}); got[".envrc"] != "" || w.file(".envrc") != "echo evil" || len(w.names()) > 1 {
			t.Errorf("after another look: %v, left %q", got, w.names())
		}
	}
}

// Two shares with the same names and contents are not taken for each other.
func TestSeenTellsSharesApart(t *testing.T) {
	a, b := newDesk(t, nil), newDesk(t, nil)
	for _, w := range []*desk{a, b} {
		w.guest(Entry{Name: "x", Kind: File, Target: "x"})
	}
	if got := b.apply(ApplyOptions{Seen: a.shown()}); got["x"] != unseen {
		t.Errorf("%v", got)
	}
	if got := b.apply(ApplyOptions{Seen: b.shown()}); got["x"] != "" {
		t.Errorf("%v", got)
	}
	for _, bad := range []int{1, seenSize - 1, seenSize + 1} {
		if _, err := parseSeen(make([]byte, bad)); err == nil {
			t.Errorf("%d bytes are taken", bad)
		}
	}
}

func TestBelow(t *testing.T) {
	top := ""
	if onWindows {
		top = "C:"
	}
	root := filepath.FromSlash(top + "/home/u/work")
	for path, want := range map[string]string{
		"/home/u/work": "", "/home/u": "", "/": "", "/home/u/work/a": "a", "/home/u/work/a/b": "a/b",
		"/home/u/work/...": "...", "/home/u/work/..../a": "..../a", "/home/u/work/..a": "..a",
		"/home/u/other": "-", "/home/u/workshop": "-", "/home/...": "-", "/etc": "-", "work": "-",
	} {
		if path[0] == '/' {
			path = top + path
		}
		name, in := below(root, filepath.FromSlash(path))
		if !in {
			name = "-"
		}
		if name != want {
			t.Errorf("%s: %q, want %q", path, name, want)
		}
	}
}

// The mode of a folder that needs a yes needs it too.
func TestFolderModeNeedsYes(t *testing.T) {
	if onWindows {
		t.Skip(othersThere)
	}
	w := newDesk(t, map[string]string{".vscode/x": "", "plain/x": ""})
	w.guest(Entry{Name: ".vscode", Kind: Folder, Mode: 0o777}, Entry{Name: "plain", Kind: Folder, Mode: 0o750})
	got := w.apply(ApplyOptions{})
	if !strings.Contains(got[".vscode"], "own yes") || statOf(w, ".vscode").Mode.Perm() == 0o777 {
		t.Errorf("%v %v", got, statOf(w, ".vscode").Mode)
	}
	if statOf(w, "plain").Mode.Perm() != 0o750 {
		t.Errorf("the control: %v", statOf(w, "plain").Mode)
	}
	if got := w.apply(ApplyOptions{Accept: true}); got[".vscode"] != "" || statOf(w, ".vscode").Mode.Perm() != 0o777 {
		t.Errorf("with a yes: %v %v", got, statOf(w, ".vscode").Mode)
	}
}

// A folder that the guest has made anew takes nothing along that needs a yes,
// although the review has no entry for it.
func TestRemovalBelowNeedsYes(t *testing.T) {
	for _, accept := range []bool{false, true} {
		w := newDesk(t, map[string]string{"d/package.json": "{}", "d/plain": "1"})
		w.guest(Entry{Name: "d", Kind: NewFolder})
		got := w.apply(ApplyOptions{Accept: accept})
		_, err := os.Lstat(filepath.Join(w.host, "d/package.json"))
		if (err != nil) != accept || w.file("d/plain") != "(none)" {
			t.Errorf("accept %v: %v, %v", accept, got, err)
		}
	}
}
