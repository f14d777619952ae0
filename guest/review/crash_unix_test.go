//go:build unix

package review

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// This binary is also the process that is killed.
func TestMain(m *testing.M) {
	if os.Getenv("CARREL_REVIEW_CHILD") == "" {
		os.Exit(m.Run())
	}
	point := os.Getenv("CARREL_REVIEW_CRASH")
	nth, _ := strconv.Atoi(os.Getenv("CARREL_REVIEW_NTH"))
	var hits atomic.Int32
	crash = func(at string) {
		if at == point && int(hits.Add(1)) == nth {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	os.Exit(m.Run())
}

// crashPoints are all that an apply passes; those of an undo are among them. Where
// two entries cannot be exchanged, it passes "aside" and "cleared" instead of "exchanged".
var crashPoints = []string{"planned", "created", "made", "kept", "journaled", "exchanged", "aside", "cleared", "taken", "committed", "synced", "done", "rebased", "told", "settled"}

// TestCrashChild is run by the tests below, in a process of its own.
func TestCrashChild(t *testing.T) {
	dir := os.Getenv("CARREL_REVIEW_CHILD")
	if dir == "" {
		t.Skip("it is started by TestApplyKilled")
	}
	if lacks := os.Getenv("CARREL_REVIEW_LACKS"); lacks != "" {
		lacking(t, lacks == "exchange")
	}
	w := &desk{t: t, host: filepath.Join(dir, "host"), dir: filepath.Join(dir, "store")}
	w.open()
	switch os.Getenv("CARREL_REVIEW_OP") {
	case "undo":
		w.undo(UndoOptions{})
	case "git":
		if err := w.ImportGit(t.Context(), "desk", false, func(Event) error { return nil }); err != nil {
			t.Fatal(err)
		}
	default:
		w.apply(ApplyOptions{Accept: true})
	}
}

// child runs TestCrashChild and says whether it was killed.
func child(t *testing.T, dir, op, point string, nth int) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$")
	cmd.Env = append(os.Environ(), "CARREL_REVIEW_CHILD="+dir, "CARREL_REVIEW_OP="+op, "CARREL_REVIEW_CRASH="+point, "CARREL_REVIEW_NTH="+strconv.Itoa(nth))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && s.Signaled() && s.Signal() == syscall.SIGKILL {
		return true
	}
	t.Fatalf("the process that was to be killed at %s: %v\n%s", point, err, out)
	return false
}

// big is longer than what one write takes.
func big(c string) string { return strings.Repeat(c, 300<<10) }

var crashHost = map[string]string{
	"keep": "as it is", "edit": big("o"), "gone": "x", "dir/a": "1", "dir/sub/c": "3", "was/file": "4", "link": "-> edit", "swap": "a file", "redo/old": "5", "redo/both": "7", "mode": "m",
}

func crashGuest(w *desk) {
	w.guest(
		Entry{Name: "edit", Kind: File, Target: big("n")},
		Entry{Name: "gone", Kind: Removed},
		Entry{Name: "dir", Kind: Removed},
		Entry{Name: "was", Kind: File, Target: "a folder once"},
		Entry{Name: "link", Kind: Link, Target: "keep"},
		Entry{Name: "swap", Kind: NewFolder},
		Entry{Name: "swap/in", Kind: File, Target: "in"},
		Entry{Name: "new", Kind: NewFolder},
		Entry{Name: "new/file", Kind: File, Target: big("d")},
		Entry{Name: "redo", Kind: NewFolder},
		Entry{Name: "redo/both", Kind: File, Target: "8"},
		Entry{Name: "mode", Kind: File, Target: "m", Mode: 0o755},
	)
}

// TestApplyKilled kills a process at each point of an apply and of an undo. What
// comes next finishes it: nothing is half written, nothing temporary is left,
// and in the end the folder is what it would have been.
func TestApplyKilled(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	make := func(name string) *desk {
		w := deskIn(t, filepath.Join(top, name, "host"), filepath.Join(top, name, "store"), crashHost)
		crashGuest(w)
		return w
	}
	calm := make("calm")
	before := calm.tree()
	calm.apply(ApplyOptions{Accept: true})
	after := calm.tree()
	if calm.undo(UndoOptions{}); calm.tree() != before {
		t.Fatalf("without a crash, an undo makes it\n%s", calm.tree())
	}
	waiting := calm.returned()
	for _, name := range []string{"edit", "gone", "dir", "was", "link", "swap/in", "new/file", "redo/both", "mode"} {
		if !strings.Contains(waiting, name+" ") {
			t.Errorf("without a crash, an undo brings back\n%s", waiting)
		}
	}
	// After a crash each line of the tree is of one of the two.
	lines := map[string]bool{}
	for _, l := range strings.Split(before+"\n"+after, "\n") {
		lines[l] = true
	}
	most := 2
	if os.Getenv("CARREL_SCALE") == "full" {
		most = 40
	}
	kills := map[string]int{}
	for _, op := range []string{"apply", "undo"} {
		for _, point := range crashPoints {
			for nth := 1; nth <= most; nth++ {
				name := fmt.Sprint(op, "-", point, "-", nth)
				dir := filepath.Join(top, name)
				w := make(name)
				if op == "undo" {
					w.apply(ApplyOptions{Accept: true})
				}
				if !child(t, dir, op, point, nth) {
					break
				}
				kills[op+" "+point]++
				w.open() // as the next process would
				if _, err := w.Undo.unfinished(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if err := w.Recover(); err != nil { // as the next daemon's start does
					t.Errorf("%s: %v", name, err)
				}
				if left, err := w.Undo.unfinished(); err != nil || len(left) > 0 {
					t.Errorf("%s: not finished: %q, %v", name, left, err)
				}
				for _, l := range strings.Split(w.tree(), "\n") {
					if !lines[l] && l != "" {
						t.Errorf("%s: after a crash there is %s", name, l)
					}
				}
				want := after
				if op == "undo" {
					want = before
					if all, _ := w.Undo.Undoable(""); len(all) > 0 {
						w.undo(UndoOptions{})
					}
					if got := w.returned(); got != waiting {
						t.Errorf("%s: in the review there is again\n%s\nwant\n%s", name, got, waiting)
					}
				} else {
					for p, why := range w.apply(ApplyOptions{Accept: true}) {
						if why != "" {
							t.Errorf("%s: %s: %s", name, p, why)
						}
					}
					if left := w.names(); len(left) > 0 {
						t.Errorf("%s: the review still has %q", name, left)
					}
				}
				if got := w.tree(); got != want {
					t.Errorf("%s: in the end it is\n%s\nwant\n%s", name, got, want)
				}
				if op == "apply" { // in two sets, if the crash has cut it in two
					for {
						all, err := w.Undo.Undoable("")
						if err != nil || len(all) == 0 {
							break
						}
						w.undo(UndoOptions{Sets: []string{all[0].ID}})
					}
					if got := w.returned(); got != waiting {
						t.Errorf("%s: after the undo there is in the review\n%s\nwant\n%s", name, got, waiting)
					}
					if got := w.tree(); got != before {
						t.Errorf("%s: after the undo it is\n%s\nwant\n%s", name, got, before)
					}
				}
				os.RemoveAll(dir)
			}
		}
	}
	others := []string{"aside", "cleared"}
	if !exchanges(t) {
		others = []string{"exchanged"}
	}
	for _, point := range crashPoints {
		if (kills["apply "+point] == 0) != slices.Contains(others, point) {
			t.Errorf("%d processes were killed at %q", kills["apply "+point], point)
		}
	}
	t.Logf("killed: %v", kills)
}

// exchanges says whether this host, or what is built for another, exchanges entries.
func exchanges(t *testing.T) bool {
	t.Helper()
	w := newDesk(t, map[string]string{"a": "1", "b": "2"})
	f, err := w.Root.Folder("")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = f.Exchange("a", "b")
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Fatal(err)
	}
	return err == nil
}

// returned tells what the review has, with its contents; of folders only those
// that come with something in them.
func (w *desk) returned() string {
	w.t.Helper()
	var lines []string
	for _, e := range w.Store.Entries() {
		if e.Kind == Folder || e.Kind == NewFolder {
			continue
		}
		line := fmt.Sprint(e.Name, " ", e.Kind, " ", e.Mode, " ", e.Target, " ", e.Size)
		if e.Kind == File {
			if _, err := w.Store.CopyBlob(io.Discard, e.Blob); err != nil {
				line += " " + err.Error()
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// unfinished are the sets that nothing has looked after.
func (u *Undo) unfinished() (left []string, err error) {
	ids, err := u.sets()
	for _, id := range ids {
		h, rerr := u.read(id)
		if err = errors.Join(err, rerr); rerr != nil {
			continue
		}
		if b, ended := u.glance(id); ended == h.ended.IsZero() || b.Kind != h.begin.Kind {
			err = errors.Join(err, fmt.Errorf("at a glance, %s is of kind %q and ended: %v; it is of %q and ended at %v", id, b.Kind, ended, h.begin.Kind, h.ended))
		}
		if h.ended.IsZero() {
			left = append(left, id)
		}
	}
	return left, err
}

// TestGitImportKilled: a ref is there with all that it reaches, or not at all.
func TestGitImportKilled(t *testing.T) {
	w, guest := gitWorld(t)
	os.WriteFile(filepath.Join(guest, "f"), []byte("changed\n"), 0o644)
	head := commit(t, guest, "third")
	w.serve()
	w.guest(changesOf(t, w.host, guest, ".git", false)...)
	for _, at := range []struct {
		point string
		nth   int
	}{{"object", 1}, {"object", 2}, {"ref", 1}} {
		if !child(t, filepath.Dir(w.host), "git", at.point, at.nth) {
			t.Fatalf("no process was killed at %q", at.point)
		}
		if out := strings.TrimSpace(git(t, w.host, "", "for-each-ref", "refs/carrel")); out != "" {
			t.Errorf("%v: there is %s", at, out)
		}
		git(t, w.host, "", "fsck", "--full", "--strict")
	}
	if child(t, filepath.Dir(w.host), "git", "none", 1) {
		t.Fatal("it was killed at no point")
	}
	if is := strings.TrimSpace(git(t, w.host, "", "rev-parse", "refs/carrel/desk/heads/main")); is != head {
		t.Errorf("the ref is %s, want %s", is, head)
	}
	if left := tree(t, filepath.Join(w.host, ".git")); strings.Contains(left, "tmp_obj") || strings.Contains(left, "/.carrel") {
		t.Errorf("a temporary name is left:\n%s", left)
	}
}
