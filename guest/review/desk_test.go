package review

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

// onWindows: modes are kept in part there, links not for everybody, and names have
// fewer letters.
const onWindows = runtime.GOOS == "windows"

const othersThere = "modes and links are others there"

// desk is a host's folder, a store, and a guest that tells what it likes.
type desk struct {
	Target
	t          testing.TB
	host, dir  string
	generation int
}

func newDesk(t testing.TB, files map[string]string) *desk {
	t.Helper()
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return deskIn(t, filepath.Join(top, "host"), filepath.Join(top, "store"), files)
}

func deskIn(t testing.TB, host, dir string, files map[string]string) *desk {
	t.Helper()
	w := &desk{t: t, host: host, dir: dir}
	if err := errors.Join(os.MkdirAll(host, 0o755), os.MkdirAll(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		w.write(name, content)
	}
	w.open()
	w.serve()
	return w
}

func (w *desk) open() {
	w.t.Helper()
	set, err := rules.Compile(rules.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Rules = set
	if w.Root, err = share.OpenRoot(w.host); err == nil {
		if w.Store, err = Open(w.dir); err == nil {
			if w.Base, err = OpenBase(w.dir); err == nil {
				w.Undo, err = OpenUndo(w.dir)
			}
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { errors.Join(w.Undo.Close(), w.Base.Close(), w.Store.Close(), w.Root.Close()) })
}

// write makes what a name in a test's table says: a folder if it ends in '/', a
// link if the content begins with "-> ".
func (w *desk) write(name, content string) {
	w.t.Helper()
	path := filepath.Join(w.host, name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if target, link := strings.CutPrefix(content, "-> "); err == nil && link {
		os.Remove(path)
		err = os.Symlink(target, path)
	} else if strings.HasSuffix(name, "/") {
		err = os.MkdirAll(path, 0o755)
	} else if err == nil {
		err = os.WriteFile(path, []byte(content), 0o644)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// serve tells the guest all that the rules do not hide.
func (w *desk) serve() {
	w.t.Helper()
	err := fs.WalkDir(os.DirFS(w.host), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." || w.Rules.Judge(p).Hidden {
			return err
		}
		is, err := w.Root.Lstat(p)
		forget(&is)
		if err == nil {
			w.Base.Served(p, is)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *desk) blob(content string) string {
	w.t.Helper()
	b, err := w.Store.newBlob()
	if err != nil {
		w.t.Fatal(err)
	}
	b.Write([]byte(content))
	sum, err := b.keep()
	if err != nil {
		w.t.Fatal(err)
	}
	return sum
}

// guest puts entries into the review, as an import would. A File's Target is
// its content.
func (w *desk) guest(entries ...Entry) {
	w.t.Helper()
	w.generation++
	for n := range entries {
		e := &entries[n]
		if e.Mode == 0 && e.Kind != Removed {
			e.Mode = 0o644
			if e.Kind == Folder || e.Kind == NewFolder {
				e.Mode = 0o755
			}
		}
		if e.Kind == File && e.Blob == "" {
			e.Blob, e.Size, e.Target = w.blob(e.Target), int64(len(e.Target)), ""
		}
		if base, ok := w.Base.Look(e.Name); ok && e.Base == nil {
			e.Base = &base
		}
		e.Stamp = fmt.Sprint("stamp ", w.generation)
	}
	err := w.Store.change(func(idx *index) {
		for _, e := range entries {
			for n := range idx.entries {
				if idx.entries[n].Name == e.Name {
					idx.entries = append(idx.entries[:n], idx.entries[n+1:]...)
					break
				}
			}
			idx.entries = append(idx.entries, e)
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// apply applies, and returns what was done ("" for done) by name.
func (w *desk) apply(o ApplyOptions) map[string]string {
	w.t.Helper()
	got, err := w.tryApply(o)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func (w *desk) tryApply(o ApplyOptions) (map[string]string, error) {
	got := map[string]string{}
	err := w.Apply(context.Background(), o, func(e Event) error {
		if _, twice := got[e.Path]; twice {
			w.t.Errorf("%q was told twice", e.Path)
		}
		got[e.Path] = e.Refused
		return nil
	})
	return got, err
}

func (w *desk) undo(o UndoOptions) map[string]string {
	w.t.Helper()
	if o.Sets == nil {
		all, err := w.Undo.Undoable("")
		if err != nil || len(all) == 0 {
			w.t.Fatalf("nothing can be undone: %v", err)
		}
		o.Sets = []string{all[0].ID}
	}
	got := map[string]string{}
	if err := w.TakeBack(context.Background(), o, func(e Event) error { got[e.Path] = e.Refused; return nil }); err != nil {
		w.t.Fatal(err)
	}
	return got
}

// tree tells all that a folder holds: kinds, modes, contents, targets; no times.
func tree(t testing.TB, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(p)
		if err != nil {
			return err
		}
		what := ""
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(b)
			what = hex.EncodeToString(sum[:8])
			if len(b) < 40 {
				what = fmt.Sprintf("%q", b)
			}
		case info.Mode().Type() == fs.ModeSymlink:
			what, err = os.Readlink(p)
		}
		rel, _ := filepath.Rel(dir, p)
		if rel != "." {
			lines = append(lines, fmt.Sprint(rel, " ", info.Mode(), " ", what))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func (w *desk) tree() string { w.t.Helper(); return tree(w.t, w.host) }

func (w *desk) names() (names []string) {
	for _, e := range w.Store.Entries() {
		names = append(names, e.Name)
	}
	return names
}

// file says what a file of the host holds, "(none)" if it is not there.
func (w *desk) file(name string) string {
	b, err := os.ReadFile(filepath.Join(w.host, name))
	if err != nil {
		return "(none)"
	}
	return string(b)
}

func statOf(w *desk, name string) *share.Info {
	w.t.Helper()
	i, err := w.Root.Lstat(name)
	if err != nil {
		w.t.Fatal(err)
	}
	return &i
}
