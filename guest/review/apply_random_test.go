package review

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// scribble changes a folder at random, as a guest does in its layer.
func scribble(r *rand.Rand, dir string, n int) {
	names := []string{"a", "b", "c", "d"}
	for range n {
		p := dir
		for range 1 + r.IntN(4) {
			p = filepath.Join(p, names[r.IntN(len(names))])
		}
		os.MkdirAll(filepath.Dir(p), 0o755)
		switch r.IntN(7) {
		case 0:
			os.RemoveAll(p)
		case 1:
			os.RemoveAll(p)
			os.Mkdir(p, 0o755)
		case 2:
			os.RemoveAll(p)
			os.Symlink(fmt.Sprint("to ", r.IntN(9)), p)
		case 3:
			if info, err := os.Lstat(p); err == nil && info.Mode().Type() != fs.ModeSymlink {
				os.Chmod(p, []fs.FileMode{0o755, 0o700, 0o777}[r.IntN(3)])
			}
		default:
			if info, err := os.Lstat(p); err == nil && !info.Mode().IsRegular() {
				os.RemoveAll(p)
			}
			os.WriteFile(p, []byte(fmt.Sprint(r.IntN(1000))), 0o644)
		}
	}
}

// changesOf tells what a layer over host holds, so that guest is what is seen.
func changesOf(t *testing.T, host, guest, rel string, opaque bool) (list []Entry) {
	t.Helper()
	names := map[string]bool{}
	for _, d := range []string{host, guest} {
		entries, _ := os.ReadDir(filepath.Join(d, rel))
		for _, e := range entries {
			names[e.Name()] = true
		}
	}
	for n := range names {
		name := filepath.Join(rel, n)
		g, gerr := os.Lstat(filepath.Join(guest, name))
		h, herr := os.Lstat(filepath.Join(host, name))
		e := Entry{Name: filepath.ToSlash(name)}
		if gerr != nil {
			if e.Kind = Removed; !opaque {
				list = append(list, e)
			}
			continue
		}
		e.Mode = uint32(g.Mode().Perm())
		switch {
		case g.IsDir():
			e.Kind = Folder
			hidden := herr != nil || !h.IsDir() || opaque
			if herr == nil && !h.IsDir() {
				e.Kind = NewFolder
			}
			below := changesOf(t, host, guest, name, hidden)
			if hidden || len(below) > 0 || e.Mode != uint32(h.Mode().Perm()) {
				list = append(append(list, e), below...)
			}
		case g.Mode().Type() == fs.ModeSymlink:
			e.Kind, e.Mode = Link, 0
			e.Target, _ = os.Readlink(filepath.Join(guest, name))
			list = append(list, e)
		default:
			b, err := os.ReadFile(filepath.Join(guest, name))
			if err != nil {
				t.Fatal(err)
			}
			old, err := os.ReadFile(filepath.Join(host, name))
			if herr == nil && err == nil && h.Mode() == g.Mode() && string(old) == string(b) {
				continue
			}
			e.Kind, e.Target = File, string(b)
			list = append(list, e)
		}
	}
	return list
}

// TestApplyRandom: whatever a guest makes of a folder, an apply makes the host
// the same, and an undo makes it what it was.
func TestApplyRandom(t *testing.T) {
	if onWindows {
		t.Skip(othersThere)
	}
	rounds := 30
	if os.Getenv("CARREL_SCALE") == "full" {
		rounds = 1000
	}
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		top, err := filepath.EvalSymlinks(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		host, guest := filepath.Join(top, "host"), filepath.Join(top, "guest")
		os.Mkdir(host, 0o755)
		scribble(r, host, 30)
		w := deskIn(t, host, filepath.Join(top, "store"), nil)
		if err := os.CopyFS(guest, os.DirFS(host)); err != nil {
			t.Fatal(err)
		}
		filepath.WalkDir(host, func(p string, d fs.DirEntry, err error) error { // modes, which CopyFS does not keep
			rel, _ := filepath.Rel(host, p)
			if info, err := os.Lstat(p); err == nil && info.Mode().Type() != fs.ModeSymlink {
				os.Chmod(filepath.Join(guest, rel), info.Mode().Perm())
			}
			return err
		})
		before := w.tree()
		scribble(r, guest, 30)
		want := tree(t, guest)
		list := changesOf(t, host, guest, "", false)
		w.guest(list...)
		for name, why := range w.apply(ApplyOptions{Accept: true}) {
			if why != "" {
				t.Errorf("seed %d: %s: %s", seed, name, why)
			}
		}
		if got := w.tree(); got != want {
			t.Fatalf("seed %d: it is\n%s\nwant\n%s\nit was\n%s\nchanges\n%s", seed, got, want, before, told(list))
		}
		if before == want {
			continue
		}
		for name, why := range w.undo(UndoOptions{}) {
			if why != "" {
				t.Errorf("seed %d: undo of %s: %s", seed, name, why)
			}
		}
		if got := w.tree(); got != before {
			t.Fatalf("seed %d: after the undo it is\n%s\nwant\n%s", seed, got, before)
		}
	}
}

func told(list []Entry) string {
	var lines []string
	for _, e := range list {
		lines = append(lines, fmt.Sprint(e.Name, " ", e.Kind, " ", e.Mode))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
