package review

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/carrel-vm/carrel/guest/wire"
)

// node is an entry of a tree that a test makes up.
type node struct {
	kind    Kind // File, Folder or Link
	mode    uint32
	content string // or a link's target
}

// overlay is a tree under changes, with the upper folder that overlayfs would
// make of them (filesystems/overlayfs.rst; redirect_dir and metacopy off).
type overlay struct {
	lower, merged map[string]node
	upper         map[string]bool // also of what is removed
	opaque        map[string]bool
}

func namesBelow(tree map[string]node, dir string) (names []string) {
	for n := range tree {
		if n != dir && within(n, dir) {
			names = append(names, n)
		}
	}
	return names
}

// hides says whether the lower's entry of that name cannot be seen through the
// folders that it is in.
func (o *overlay) hides(name string) bool {
	for at := parent(name); at != ""; at = parent(at) {
		if o.opaque[at] {
			return true
		}
		if l, ok := o.lower[at]; !ok || l.kind != Folder {
			return true
		}
	}
	return false
}

func (o *overlay) copyUp(name string) {
	for at := name; at != ""; at = parent(at) {
		o.upper[at] = true
	}
}

func (o *overlay) remove(name string) {
	for _, n := range append(namesBelow(o.merged, name), name) {
		delete(o.merged, n)
	}
	for n := range o.upper {
		if within(n, name) {
			delete(o.upper, n)
			delete(o.opaque, n)
		}
	}
	o.copyUp(parent(name))
	if _, ok := o.lower[name]; ok && !o.hides(name) {
		o.upper[name] = true // a whiteout
	}
}

func (o *overlay) put(name string, n node) {
	if old, ok := o.merged[name]; ok && (old.kind != n.kind || n.kind == Link) {
		o.remove(name)
	}
	if n.kind == Folder {
		_, there := o.merged[name]
		_, low := o.lower[name]
		if !there && low && !o.hides(name) {
			o.opaque[name] = true
		}
	}
	o.copyUp(name)
	o.merged[name] = n
}

// list is what the agent makes of the upper folder.
func (o *overlay) list(s *scene) {
	names := slices.SortedFunc(maps.Keys(o.upper), less)
	for _, name := range names {
		n, there := o.merged[name]
		switch {
		case !there:
			s.entry(name, isRemoved)
		case n.kind == File:
			s.file(name, n.content).Mode = n.mode
		case n.kind == Link:
			s.link(name, n.content)
		default:
			kind := wire.ChangedType(isFolder)
			for at := name; at != ""; at = parent(at) {
				if o.opaque[at] {
					kind = isNew
				}
			}
			s.entry(name, kind).Mode = n.mode
		}
	}
}

// truth is what differs, whatever the way.
func (o *overlay) truth() map[string]string {
	want := map[string]string{}
	for name, n := range o.merged {
		if l, ok := o.lower[name]; ok && l == n {
			continue
		}
		kind := n.kind
		if l := o.lower[name]; kind == Folder && l.kind != Folder {
			kind = NewFolder
		}
		want[name] = fmt.Sprintf("%d %o %q", kind, n.mode, n.content)
	}
	for name := range o.lower {
		if _, ok := o.merged[name]; !ok {
			want[name] = fmt.Sprintf("%d 0 %q", Removed, "")
		}
	}
	return want
}

func randomNode(rnd *rand.Rand) node {
	switch rnd.IntN(6) {
	case 0:
		return node{Link, 0o777, []string{"x", "../y", "/z"}[rnd.IntN(3)]}
	case 1, 2:
		return node{Folder, []uint32{0o755, 0o700}[rnd.IntN(2)], ""}
	}
	return node{File, []uint32{0o644, 0o755}[rnd.IntN(2)], []string{"", "a", "b", "aa", "ab\n"}[rnd.IntN(5)]}
}

// randomScene makes a random tree on the host and random changes of it.
func randomScene(t *testing.T, rnd *rand.Rand) (*scene, *overlay) {
	o := &overlay{lower: map[string]node{}, upper: map[string]bool{}, opaque: map[string]bool{}}
	name := func(tree map[string]node) string {
		at := ""
		for range 1 + rnd.IntN(4) {
			if at != "" && tree[at].kind != Folder {
				break
			}
			at = join(at, []string{"a", "b", "c", "d-", "e"}[rnd.IntN(5)])
		}
		return at
	}
	for range rnd.IntN(40) {
		if n := name(o.lower); o.lower[n].kind == 0 {
			o.lower[n] = randomNode(rnd)
		}
	}
	o.merged = maps.Clone(o.lower)
	s := newScene(t, nil)
	for _, n := range slices.SortedFunc(maps.Keys(o.lower), less) {
		p := filepath.Join(s.dir, n)
		switch is := o.lower[n]; is.kind {
		case Folder:
			os.Mkdir(p, os.FileMode(is.mode))
		case Link:
			os.Symlink(is.content, p)
		default:
			os.WriteFile(p, []byte(is.content), os.FileMode(is.mode))
		}
	}
	s.serve()
	for range rnd.IntN(30) {
		n := name(o.merged)
		if _, there := o.merged[n]; there && rnd.IntN(2) == 0 {
			o.remove(n)
			continue
		}
		o.put(n, randomNode(rnd))
	}
	o.list(s)
	return s, o
}

func rounds() int {
	if testing.Short() {
		return 15
	}
	return 60
}

// TestImportRandom makes random trees and random changes of them: the entries
// are what differs, no more and no less, and a second import, in which some
// were dropped, has exactly the others.
func TestImportRandom(t *testing.T) {
	if onWindows {
		t.Skip(othersThere)
	}
	for seed := range rounds() {
		rnd := rand.New(rand.NewPCG(uint64(seed), 5))
		s, o := randomScene(t, rnd)
		s.imported()
		want := o.truth()
		s.same(seed, want)
		if t.Failed() {
			return
		}

		drop := map[string]string{}
		for _, e := range s.s.Entries() {
			if rnd.IntN(3) == 0 {
				drop[e.Name] = e.Stamp
				delete(want, e.Name)
			}
		}
		if err := s.s.Drop(drop); err != nil {
			t.Fatal(err)
		}
		s.same(seed, want)
		s.deaf = true // the guest does not let go of it
		s.imported()
		s.same(seed, want)
		if t.Failed() {
			return
		}
	}
}

// TestImportApplyRandom: what is imported and applied makes of the host's folder
// what the guest has, and leaves nothing to import; what was not chosen stays.
func TestImportApplyRandom(t *testing.T) {
	if onWindows {
		t.Skip(othersThere)
	}
	for seed := range rounds() {
		rnd := rand.New(rand.NewPCG(uint64(seed), 6))
		s, o := randomScene(t, rnd)
		s.imported()
		undo, err := OpenUndo(s.store)
		if err != nil {
			t.Fatal(err)
		}
		target := &Target{Root: s.root, Rules: s.rules, Store: s.s, Base: s.base, Undo: undo}
		apply := func(paths ...string) {
			err := target.Apply(context.Background(), ApplyOptions{Paths: paths, Accept: true}, func(e Event) error {
				if e.Refused != "" && len(paths) == 0 {
					t.Errorf("seed %d: %q is refused: %s", seed, e.Path, e.Refused)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		s.deaf = rnd.IntN(2) == 0
		if entries := s.s.Entries(); len(entries) > 0 {
			before, chosen := nodes(t, s.dir), entries[rnd.IntN(len(entries))].Name
			apply(chosen)
			for n, now := range nodes(t, s.dir) {
				if is, ok := o.merged[n]; now != before[n] && !(ok && now == is) {
					t.Errorf("seed %d: after %q was applied, %q is %v, was %v, and %v in the guest", seed, chosen, n, now, before[n], is)
				}
			}
			s.imported()
		}
		apply()
		if got := nodes(t, s.dir); !maps.Equal(got, o.merged) {
			t.Errorf("seed %d: the host has %v, the guest %v", seed, got, o.merged)
		}
		s.imported()
		if left := s.names(); len(left) > 0 {
			t.Errorf("seed %d: left is %q", seed, left)
		}
		undo.Close()
		if t.Failed() {
			return
		}
	}
}

// TestApplyPartOfFolder: what of a removed folder is not applied stays, and the
// folder with it.
func TestApplyPartOfFolder(t *testing.T) {
	s := newScene(t, map[string]string{"d/Makefile": "all:", "d/x": "1", "e/keep": "1", "e/go": "1", "f/y": "1", "g/a": "1", "g/b.o": "1", ".gitignore": "*.o\n", ".git/index": ""})
	os.Remove(filepath.Join(s.dir, ".git/index"))
	for _, n := range []string{"d", "e", "f", "g"} {
		s.entry(n, isRemoved)
	}
	s.imported()
	undo, err := OpenUndo(s.store)
	if err != nil {
		t.Fatal(err)
	}
	defer undo.Close()
	if err := s.s.Drop(map[string]string{"e/keep": ""}); err != nil {
		t.Fatal(err)
	}
	target := &Target{Root: s.root, Rules: s.rules, Store: s.s, Base: s.base, Undo: undo}
	if err := target.Apply(context.Background(), ApplyOptions{}, func(Event) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for name, stays := range map[string]bool{"d/Makefile": true, "d/x": false, "e/keep": true, "e/go": false, "f": false, "g/a": false, "g/b.o": true} {
		if _, err := os.Lstat(filepath.Join(s.dir, name)); (err == nil) != stays {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// nodes reads a folder.
func nodes(t *testing.T, dir string) map[string]node {
	t.Helper()
	got := map[string]node{}
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		is, err := d.Info()
		if err != nil {
			return err
		}
		n := node{kind: File, mode: uint32(is.Mode().Perm())}
		switch {
		case is.IsDir():
			n.kind = Folder
		case is.Mode().Type() == os.ModeSymlink:
			n.kind, n.mode = Link, 0o777
			n.content, err = os.Readlink(p)
		default:
			var b []byte
			b, err = os.ReadFile(p)
			n.content = string(b)
		}
		got[filepath.ToSlash(name)] = n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (s *scene) same(seed int, want map[string]string) {
	s.t.Helper()
	got := map[string]string{}
	for _, e := range s.s.Entries() {
		content := e.Target
		if e.Kind == File {
			var b taken
			if _, err := s.s.CopyBlob(&b, e.Blob); err != nil {
				s.t.Error(err)
			}
			content = string(b)
		}
		got[e.Name] = fmt.Sprintf("%d %o %q", e.Kind, e.Mode, content)
	}
	if !maps.Equal(got, want) {
		for n := range want {
			if got[n] != want[n] {
				s.t.Errorf("seed %d: %q is %q, want %q", seed, n, got[n], want[n])
			}
		}
		for n := range got {
			if _, ok := want[n]; !ok {
				s.t.Errorf("seed %d: %q is %q, and has not changed", seed, n, got[n])
			}
		}
	}
}

// BenchmarkImport is 20,000 new files in 200 folders, and again when the host
// has all of it in its store.
func BenchmarkImport(b *testing.B) {
	for _, again := range []bool{false, true} {
		b.Run(fmt.Sprintf("again=%v", again), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				s := newScene(b, map[string]string{".gitignore": "node_modules\n*.o\n/build/\n", ".git/HEAD": "x"})
				for i := range 200 {
					s.entry(fmt.Sprintf("d%d", i), isNew)
					for j := range 100 {
						s.file(fmt.Sprintf("d%d/f%d", i, j), fmt.Sprintf("%0500d", i*100+j))
					}
				}
				if again {
					s.imported()
				}
				b.StartTimer()
				if counts := s.imported(); counts.Changes != 20_200 {
					b.Fatalf("%+v", counts)
				}
			}
		})
	}
}
