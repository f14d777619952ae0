//go:build unix

package review

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A process that is killed while an old entry makes way leaves it where it was, or
// what took its place as a step that undo knows.
func TestApplyMadeWayKilled(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, numbers := range []bool{true, false} {
		for _, at := range []struct {
			op, point string
			nth       int
		}{
			{"apply", "journaled", 1},
			{"apply", "aside", 1}, {"apply", "aside", 2}, {"apply", "cleared", 1}, {"apply", "cleared", 2}, {"apply", "committed", 1}, {"apply", "committed", 2},
			{"undo", "aside", 1}, {"undo", "cleared", 1}, {"undo", "committed", 1},
		} {
			if numbers && (at.point == "journaled" || at.point == "committed") {
				continue // TestApplyKilled is killed there
			}
			op := at.op
			name := fmt.Sprintf("%s-%s-%d-%t", op, at.point, at.nth, numbers)
			t.Run(name, func(t *testing.T) {
				lacking(t, numbers)
				t.Setenv("CARREL_REVIEW_LACKS", map[bool]string{true: "exchange", false: "exchange and numbers"}[numbers])
				dir := filepath.Join(top, name)
				w := asideDesk(deskIn(t, filepath.Join(dir, "host"), filepath.Join(dir, "store"), asideHost))
				before := w.tree()
				if op == "undo" {
					w.apply(ApplyOptions{Accept: true})
				}
				if !child(t, dir, op, at.point, at.nth) {
					t.Fatal("no process was killed")
				}
				w.open()
				if err := w.Recover(); err != nil {
					t.Fatal(err)
				}
				if left, err := w.Undo.unfinished(); err != nil || len(left) > 0 || len(w.hiddenNames(t)) > 0 {
					t.Errorf("not finished: %q, %v\n%s", left, err, w.tree())
				}
				if op == "apply" {
					for p, why := range w.apply(ApplyOptions{Accept: true}) {
						if why != "" {
							t.Errorf("%s: %s", p, why)
						}
					}
					if left := w.names(); len(left) > 0 || w.file("folder") != "the guest's" {
						t.Errorf("the review still has %q, and the folder\n%s", left, w.tree())
					}
				}
				for {
					all, err := w.Undo.Undoable("")
					if err != nil || len(all) == 0 {
						break
					}
					for p, why := range w.undo(UndoOptions{Sets: []string{all[0].ID}}) {
						if why != "" {
							t.Fatalf("%s: %s", p, why)
						}
					}
				}
				if got := w.tree(); got != before {
					t.Errorf("in the end it is\n%s\nwant\n%s", got, before)
				}
			})
		}
	}
}

// What somebody does at the name between a crash and the next start is theirs.
func TestApplyMadeWayMeanwhile(t *testing.T) {
	for _, numbers := range []bool{true, false} {
		for _, point := range []string{"journaled", "aside"} {
			t.Run(fmt.Sprint(point, numbers), func(t *testing.T) {
				lacking(t, numbers)
				t.Setenv("CARREL_REVIEW_LACKS", map[bool]string{true: "exchange", false: "exchange and numbers"}[numbers])
				top, err := filepath.EvalSymlinks(t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				w := deskIn(t, filepath.Join(top, "host"), filepath.Join(top, "store"), map[string]string{"file": "the host's"})
				w.guest(Entry{Name: "file", Kind: NewFolder})
				if !child(t, top, "apply", point, 1) {
					t.Fatal("no process was killed")
				}
				name := filepath.Join(w.host, "file")
				if point == "journaled" { // not begun, and removed
					err = os.Remove(name)
				} else {
					err = os.WriteFile(name, []byte("newer"), 0o644)
				}
				w.open()
				if err := errors.Join(err, w.Recover()); err != nil {
					t.Fatal(err)
				}
				if all, err := w.Undo.Undoable(""); err != nil || len(all) > 0 || len(w.names()) != 1 {
					t.Errorf("it counts as done: %v, %v, %q", all, err, w.names())
				}
				switch got := w.tree(); {
				case point == "journaled" && got != "":
					t.Errorf("there is\n%s", got)
				case point == "aside" && (w.file("file") != "newer" || !strings.Contains(got, `"the host's"`) || len(w.hiddenNames(t)) != 1):
					t.Errorf("there is\n%s", got)
				}
			})
		}
	}
}
