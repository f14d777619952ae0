package share

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// images is a PreImages in memory.
type images struct {
	mu   sync.Mutex
	kept map[string]image
	full bool
}

type image struct {
	is      *Info
	content string
}

func (m *images) Keep(path string, is *Info, open func() (Reader, error)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full {
		return errors.New("full")
	}
	var c []byte
	if is != nil && (is.Mode.IsRegular() || is.Mode.Type() == fs.ModeSymlink) {
		r, err := open()
		if err != nil {
			return err
		}
		if c, err = io.ReadAll(io.NewSectionReader(r, 0, 1<<30)); err != nil {
			return err
		}
		if err := r.Close(); err != nil {
			return err
		}
	}
	if m.kept == nil {
		m.kept = map[string]image{}
	}
	if _, twice := m.kept[path]; twice {
		return errors.New("kept twice")
	}
	m.kept[path] = image{is, string(c)}
	return nil
}

func (m *images) take() map[string]image {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.kept
	m.kept = nil
	return k
}

// undo puts back what was kept, in the simplest way that is right.
func undo(t *testing.T, root string, kept map[string]image) {
	t.Helper()
	paths := make([]string, 0, len(kept))
	for p := range kept {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths { // from the top, so that nothing leads elsewhere on the way to those below
		at := filepath.Join(root, p)
		info, err := os.Lstat(at)
		if was := kept[p].is; err == nil && (was == nil || !was.Mode.IsDir() || !info.IsDir()) {
			want(t, "undo: remove", os.RemoveAll(at), nil)
		}
	}
	for _, p := range paths {
		at, im := filepath.Join(root, p), kept[p]
		switch {
		case p == "" || im.is == nil:
		case im.is.Mode.IsDir():
			want(t, "undo: mkdir", os.MkdirAll(at, 0o755), nil)
			want(t, "undo: chmod", os.Chmod(at, im.is.Mode.Perm()), nil)
		case im.is.Mode.Type() == fs.ModeSymlink:
			want(t, "undo: link", os.Symlink(im.content, at), nil)
		default:
			want(t, "undo: write", os.WriteFile(at, []byte(im.content), 0o600), nil)
			want(t, "undo: chmod", os.Chmod(at, im.is.Mode.Perm()), nil)
		}
	}
}

// Each way to change something keeps what was there, once, before it changes; when nothing can be kept nothing changes.
func TestPreImages(t *testing.T) {
	const nothing = "(nothing)"
	cases := []struct {
		what string
		do   func(g *guest) (opcode, uint64, []any)
		keep map[string]string
	}{
		{"OPEN for writing", func(g *guest) (opcode, uint64, []any) { return opOpen, g.walk("f"), []any{uint32(oWronly), uint32(0)} }, map[string]string{"f": "contents"}},
		{"OPEN for both", func(g *guest) (opcode, uint64, []any) { return opOpen, g.walk("f"), []any{uint32(oRdwr), uint32(0)} }, map[string]string{"f": "contents"}},
		{"O_TRUNC", func(g *guest) (opcode, uint64, []any) {
			return opOpen, g.walk("f"), []any{uint32(oRdonly | oTrunc), uint32(0)}
		}, map[string]string{"f": "contents"}},
		{"CREATE over", func(g *guest) (opcode, uint64, []any) {
			return opCreate, rootID, []any{uint32(oWronly | oTrunc), uint32(0o644), uint64(0), "f"}
		}, map[string]string{"f": "contents"}},
		{"CREATE", func(g *guest) (opcode, uint64, []any) {
			return opCreate, rootID, []any{uint32(oWronly), uint32(0o644), uint64(0), "n"}
		}, map[string]string{"n": nothing}},
		{"MKNOD", func(g *guest) (opcode, uint64, []any) {
			return opMknod, rootID, []any{uint32(modeRegular | 0o644), uint32(0), uint64(0), "n"}
		}, map[string]string{"n": nothing}},
		{"MKDIR", func(g *guest) (opcode, uint64, []any) { return opMkdir, rootID, []any{uint64(0o755), "n"} }, map[string]string{"n": nothing}},
		{"SYMLINK", func(g *guest) (opcode, uint64, []any) { return opSymlink, rootID, []any{"n", "t"} }, map[string]string{"n": nothing}},
		{"LINK", func(g *guest) (opcode, uint64, []any) { return opLink, rootID, []any{g.walk("f"), "n"} }, map[string]string{"n": nothing, "f": "contents"}},
		{"UNLINK", func(g *guest) (opcode, uint64, []any) { return opUnlink, rootID, []any{"f"} }, map[string]string{"f": "contents"}},
		{"UNLINK of a link", func(g *guest) (opcode, uint64, []any) { return opUnlink, rootID, []any{"l"} }, map[string]string{"l": "target"}},
		{"RMDIR", func(g *guest) (opcode, uint64, []any) { return opRmdir, rootID, []any{"e"} }, map[string]string{"e": ""}},
		{"RENAME", func(g *guest) (opcode, uint64, []any) { return opRename, rootID, []any{uint64(rootID), "f", "n"} }, map[string]string{"f": "contents", "n": nothing}},
		{"RENAME over", func(g *guest) (opcode, uint64, []any) { return opRename, rootID, []any{uint64(rootID), "f", "g"} }, map[string]string{"f": "contents", "g": "other"}},
		{"RENAME of a folder", func(g *guest) (opcode, uint64, []any) { return opRename, rootID, []any{uint64(rootID), "d", "n"} },
			map[string]string{"d": "", "d/x": "x", "d/y": "", "d/y/z": "z", "n": nothing}},
		{"truncate", func(g *guest) (opcode, uint64, []any) {
			return opSetattr, g.walk("f"), setattrArgs(fattrSize, 0, 1, 0, 0)
		}, map[string]string{"f": "contents"}},
		{"chmod", func(g *guest) (opcode, uint64, []any) {
			return opSetattr, g.walk("f"), setattrArgs(fattrMode, 0, 0, 0o600, 0)
		}, map[string]string{"f": "contents"}},
		{"OPEN for reading", func(g *guest) (opcode, uint64, []any) { return opOpen, g.walk("f"), []any{uint32(oRdonly), uint32(0)} }, nil},
		{"touch", func(g *guest) (opcode, uint64, []any) {
			return opSetattr, g.walk("f"), setattrArgs(fattrMtime|fattrMtimeNow, 0, 0, 0, 0)
		}, nil},
	}
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			m := &images{full: true}
			eachBackend(t, Options{Before: m, MinFree: 1}, func(t *testing.T, s *Server, root string) {
				layout(t, root, map[string]string{"f": "contents", "g": "other", "d/x": "x", "d/y/z": "z", "e/": ""})
				want(t, "host symlink", os.Symlink("target", filepath.Join(root, "l")), nil)
				g := newGuest(t, s)
				before := treeOf(t, root)
				m.full, m.kept = true, nil
				op, node, parts := c.do(g)
				if c.keep != nil {
					g.refused("with no room for pre-images", op, node, parts, eNOSPC)
					if got := treeOf(t, root); got != before {
						t.Errorf("without a pre-image\n%s\nbecame\n%s", before, got)
					}
				}
				m.full = false
				g.must(op, node, parts...)
				kept := m.take()
				got := map[string]string{}
				for p, im := range kept {
					got[p] = im.content
					if im.is == nil {
						got[p] = nothing
					}
				}
				if len(got) != len(c.keep) {
					t.Errorf("kept %q, want %q", got, c.keep)
				}
				for p, content := range c.keep {
					if got[p] != content {
						t.Errorf("of %s was kept %q, want %q", p, got[p], content)
					}
				}
				undo(t, root, kept)
				if got := treeOf(t, root); got != before {
					t.Errorf("undone, it is\n%s\nand was\n%s", got, before)
				}
			})
		})
	}
}

// A file that stays open over the end of a session is kept again at its next write; what was linked is kept under its first name.
func TestPreImagesOfOpenFiles(t *testing.T) {
	m := &images{}
	eachBackend(t, Options{Before: m, MinFree: 1}, func(t *testing.T, s *Server, root string) {
		layout(t, root, map[string]string{"f": "one", "a": "first"})
		g := newGuest(t, s)
		m.take()
		f := g.walk("f")
		fh := g.open(f, oWronly)
		g.write(f, fh, 0, "two")
		g.write(f, fh, 0, "2wo")
		if k := m.take(); len(k) != 1 || k["f"].content != "one" {
			t.Errorf("kept %v", k)
		}
		for i, step := range []struct {
			do   func()
			want string
		}{
			{func() { g.write(f, fh, 0, "thr") }, "2wo"},
			{func() { g.must(opSetattr, f, setattrArgs(fattrSize|fattrFH, fh, 1, 0, 0)...) }, "thr"},
			{func() { g.must(opSetattr, f, setattrArgs(fattrMode|fattrFH, fh, 0, 0o600, 0)...) }, "t"},
		} {
			s.NewSession()
			step.do()
			if k := m.take(); len(k) != 1 || k["f"].content != step.want {
				t.Errorf("step %d kept %v", i, k)
			}
		}
		s.NewSession()
		m.full = true
		g.refused("WRITE with no room", opWrite, f, writeArgs(fh, 0, []byte("x")), eNOSPC)
		m.full = false
		g.must(opRename, rootID, uint64(rootID), "f", "moved") // keeps it under the old name
		g.write(f, fh, 0, "y")
		if k := m.take(); len(k) != 2 || k["f"].content != "t" || k["moved"].is != nil {
			t.Errorf("kept %v", k)
		}
		s.NewSession()
		g.must(opUnlink, rootID, "moved")
		m.take()
		s.NewSession()
		g.write(f, fh, 0, "unlinked") // nothing to keep: it has no name
		if k := m.take(); len(k) != 0 {
			t.Errorf("kept %v", k)
		}

		g.must(opLink, rootID, g.walk("a"), "b")
		fh = g.open(g.walk("b"), oWronly)
		g.write(g.walk("b"), fh, 0, "FIRST")
		if k := m.take(); k["a"].content != "first" || k["b"].is != nil {
			t.Errorf("kept %v", k)
		}
	})
}

// A folder that is too large to be kept at once is not renamed: programs copy it, and each name is kept as they go.
func TestPreImagesOfLargeFolder(t *testing.T) {
	m := &images{}
	eachBackend(t, Options{Before: m, MinFree: 1}, func(t *testing.T, s *Server, root string) {
		m.take()
		want(t, "host mkdir", os.Mkdir(filepath.Join(root, "d"), 0o755), nil)
		want(t, "host write", os.WriteFile(filepath.Join(root, "d", "a"), nil, 0o644), nil)
		g := newGuest(t, s)
		g.must(opMkdir, rootID, uint64(0o755), "own")
		for i := range 10 {
			g.create(g.walk("own"), string(rune('a'+i)))
		}
		m.take()
		g.must(opRename, rootID, uint64(rootID), "own", "own2") // of this session's making: nothing in it is to be kept
		if k := m.take(); len(k) != 1 {
			t.Errorf("kept %d", len(k))
		}
		want(t, "host truncate", os.Truncate(filepath.Join(root, "d", "a"), maxMovedBytes+1), nil)
		g.refused("RENAME", opRename, rootID, []any{uint64(rootID), "d", "e"}, eXDEV)
		if k := m.take(); len(k) != 0 {
			t.Errorf("kept %d", len(k))
		}
	})
}

// Whatever a guest does, putting back what was kept gives the folder that was.
func TestPreImagesSuffice(t *testing.T) {
	seed := uint64(os.Getpid())
	t.Logf("seed %d", seed)
	m := &images{}
	eachBackend(t, Options{Before: m}, func(t *testing.T, s *Server, root string) {
		_, portable := s.back.(*rootBackend)
		mnt := hostMount(t, s, root)
		r := rand.New(rand.NewPCG(seed, 2))
		for round := range 20 {
			before := treeOf(t, root)
			m.take()
			s.NewSession()
			for range 60 {
				randomOp(r, !portable).do(mnt)
				if r.IntN(10) == 0 {
					a, b := string(rune('a'+r.IntN(4))), string(rune('a'+r.IntN(4)))
					_ = unix.Link(filepath.Join(mnt, a), filepath.Join(mnt, b))
				}
			}
			after := treeOf(t, root)
			undo(t, root, m.take())
			if got := treeOf(t, root); got != before {
				t.Fatalf("round %d, seed %d: undone, it is\n%s\nit was\n%s\nand had become\n%s", round, seed, got, before, after)
			}
			for _, name := range []string{"a", "b", "c", "d"} {
				want(t, "host remove", os.RemoveAll(filepath.Join(root, name)), nil)
			}
			layout(t, root, map[string]string{"a/a": strings.Repeat("a", r.IntN(5000)), "b/c/d": "bcd", "c": "c", "d/b": "", "a/b/c": "abc"})
			want(t, "host symlink", os.Symlink("c", filepath.Join(root, "d/a")), nil)
		}
	})
}

// Every entry is told of before the guest can use it, with what the host said of it.
func TestServed(t *testing.T) {
	var mu sync.Mutex
	told := map[string]Info{}
	o := Options{Served: func(path string, is Info) {
		mu.Lock()
		defer mu.Unlock()
		if _, again := told[path]; !again {
			told[path] = is
		}
	}}
	eachBackend(t, o, func(t *testing.T, s *Server, root string) {
		clear(told)
		layout(t, root, map[string]string{"f": "contents", "d/x": "x", "d/e/": "", "untold": ""})
		want(t, "host symlink", os.Symlink("f", filepath.Join(root, "d/l")), nil)
		g := newGuest(t, s)
		f := g.lookup(rootID, "f")
		d := g.lookup(rootID, "d")
		g.names(d)
		for _, p := range []string{"f", "d", "d/x", "d/e", "d/l"} {
			is, err := os.Lstat(filepath.Join(root, p))
			want(t, "lstat", err, nil)
			st, got := is.Sys().(*syscall.Stat_t), told[p]
			if got.Ino != st.Ino || got.Size != is.Size() || got.Mode != is.Mode() || !got.Mtime.Equal(is.ModTime()) || got.Ctime.IsZero() {
				t.Errorf("%s was told as %+v, and is %v of %d bytes", p, got, is.Mode(), is.Size())
			}
		}
		if len(told) != 5 {
			t.Errorf("told of %v", told)
		}
		clear(told)
		g.open(f, oRdonly)
		if len(told) != 1 || told["f"].Size != 8 {
			t.Errorf("opening f told of %v", told)
		}
	})
}
