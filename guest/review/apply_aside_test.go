package review

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/share"
)

// lacking makes this host one that exchanges nothing, and that has no numbers of
// entries unless numbers is true.
func lacking(t *testing.T, numbers bool) {
	swap, was := swapNames, forget
	t.Cleanup(func() { swapNames, forget = swap, was })
	swapNames = func(*share.Folder, string, string) error { return errors.ErrUnsupported }
	if !numbers {
		forget = func(i *share.Info) { i.Dev, i.Ino = 0, 0 }
	}
}

// asideDesk has a file that becomes a folder, and an empty folder that becomes a file.
func asideDesk(w *desk) *desk {
	w.guest(
		Entry{Name: "file", Kind: NewFolder},
		Entry{Name: "folder", Kind: File, Target: "the guest's"},
	)
	return w
}

var asideHost = map[string]string{"file": "the host's", "folder/": ""}

// hiddenNames are the temporary names in the host's folder.
func (w *desk) hiddenNames(t *testing.T) (names []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(w.host, tmpPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Where nothing can be exchanged, what fails after the old entry has made way
// gives it its name again, and what is said of it is so.
func TestApplyMadeWay(t *testing.T) {
	for _, numbers := range []bool{true, false} {
		for _, fault := range []string{"no new one", "written to", "filled", "taken"} {
			t.Run(fmt.Sprint(fault, ", numbers ", numbers), func(t *testing.T) {
				lacking(t, numbers)
				w := asideDesk(newDesk(t, asideHost))
				before := w.tree()
				was := crash
				defer func() { crash = was }()
				name, want, left, says := "file", before, 0, "no such file"
				n := 0
				crash = func(at string) {
					names := w.hiddenNames(t)
					var old, fresh string
					for _, p := range names {
						if strings.HasSuffix(p, "-old") {
							old = p
						}
					}
					fresh = strings.TrimSuffix(old, "-old")
					var err error
					switch {
					case fault == "no new one" && at == "aside":
						err = os.Remove(fresh)
						n++
					case fault == "written to" && at == "aside" && n == 0:
						err = os.WriteFile(old, []byte("edited by the host"), 0o644)
						n++
					case fault == "filled" && at == "cleared" && strings.HasPrefix(w.file("folder"), "the guest"):
						err = os.WriteFile(filepath.Join(old, "in"), nil, 0o644)
						n++
					case fault == "taken" && at == "aside" && n == 0:
						err = os.WriteFile(filepath.Join(w.host, "file"), []byte("newer"), 0o644)
						n++
					}
					if err != nil {
						t.Error(err)
					}
				}
				got := w.apply(ApplyOptions{})
				crash = was
				switch fault {
				case "no new one": // neither is done, and all is as it was
					if n != 2 || got["folder"] == "" {
						t.Errorf("%d failed: %v", n, got)
					}
					if all, err := w.Undo.Undoable(""); err != nil || len(all) > 0 {
						t.Errorf("something can be undone: %v, %v", all, err)
					}
				case "written to":
					want, says = "\"edited by the host\"", changing
				case "filled":
					name, want, says = "folder", filepath.FromSlash("folder/in"), changing
				case "taken": // both are there, and it is said where
					want, left, says = "\"newer\"", 1, "-old\" now: "
				}
				if onWindows && fault == "no new one" {
					says = ""
				}
				names := w.hiddenNames(t)
				if n == 0 || got[name] == "" || !strings.Contains(got[name], says) || !strings.Contains(w.tree(), want) || len(names) != left {
					t.Errorf("%v\n%s\nwant\n%s", got, w.tree(), want)
				}
				if left == 1 {
					if b, err := os.ReadFile(names[0]); err != nil || string(b) != "the host's" || !strings.Contains(got[name], filepath.Base(names[0])) {
						t.Errorf("%q: %q, %v; said was %q", names[0], b, err, got[name])
					}
				}
				if fault != "no new one" {
					return
				}
				if got := w.apply(ApplyOptions{Overwrite: true}); got["file"] != "" || got["folder"] != "" || w.file("folder") != "the guest's" {
					t.Errorf("the second time: %v\n%s", got, w.tree())
				}
				if w.undo(UndoOptions{}); w.tree() != before {
					t.Errorf("after the undo it is\n%s\nwant\n%s", w.tree(), before)
				}
			})
		}
	}
}
