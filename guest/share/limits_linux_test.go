package share

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// S01: a read-only share refuses every change here, whatever the guest's mount says; and reading leaves no trace, not even
// in access times.
func TestReadOnly(t *testing.T) {
	run := func(t *testing.T, s *Server, root string, control bool) {
		old := time.Now().Add(-48 * time.Hour)
		for _, f := range []string{"f", "d/g"} {
			want(t, "host mkdir", os.MkdirAll(filepath.Join(root, filepath.Dir(f)), 0o755), nil)
			want(t, "host write", os.WriteFile(filepath.Join(root, f), []byte("contents"), 0o644), nil)
		}
		for _, p := range []string{"f", "d/g", "d", "."} {
			want(t, "host chtimes", os.Chtimes(filepath.Join(root, p), old, old), nil)
		}
		tree := fingerprint(t, root)
		want(t, "host chtimes", os.Chtimes(filepath.Join(root, "f"), old, old), nil) // the look has set the access time
		var before unix.Stat_t
		want(t, "stat", unix.Stat(filepath.Join(root, "f"), &before), nil)

		g := newGuest(t, s)
		f, d := g.lookup(rootID, "f"), g.lookup(rootID, "d")
		fh := g.open(f, oRdonly)
		if got := g.read(f, fh); got != "contents" {
			t.Errorf("read %q", got)
		}
		dh := le.Uint64(g.must(opOpendir, rootID, uint64(0)))
		g.must(opReaddirplus, rootID, readArgs(dh, 0, 4096)...)
		var after unix.Stat_t
		want(t, "stat", unix.Stat(filepath.Join(root, "f"), &after), nil)
		if _, is := s.back.(*linuxBackend); is && (after.Atim == before.Atim) == control {
			t.Errorf("read-only %v: the access time was %v and is %v (the control needs a temporary folder without noatime)", !control, before.Atim, after.Atim)
		}

		changes := map[string]func() (opcode, uint64, []any){
			"open for writing":  func() (opcode, uint64, []any) { return opOpen, f, []any{uint32(oWronly), uint32(0)} },
			"open for both":     func() (opcode, uint64, []any) { return opOpen, f, []any{uint32(oRdwr), uint32(0)} },
			"open and truncate": func() (opcode, uint64, []any) { return opOpen, f, []any{uint32(oRdonly | oTrunc), uint32(0)} },
			"create": func() (opcode, uint64, []any) {
				return opCreate, rootID, []any{uint32(oRdonly), uint32(0o644), uint64(0), "n1"}
			},
			"mknod": func() (opcode, uint64, []any) {
				return opMknod, rootID, []any{uint32(modeRegular), uint32(0), uint64(0), "n2"}
			},
			"mkdir":    func() (opcode, uint64, []any) { return opMkdir, rootID, []any{uint64(0o755), "n3"} },
			"symlink":  func() (opcode, uint64, []any) { return opSymlink, rootID, []any{"n4", "f"} },
			"link":     func() (opcode, uint64, []any) { return opLink, rootID, []any{f, "n5"} },
			"rename":   func() (opcode, uint64, []any) { return opRename, rootID, []any{uint64(rootID), "n5", "n6"} },
			"rename2":  func() (opcode, uint64, []any) { return opRename2, rootID, []any{uint64(rootID), uint64(0), "n4", "n7"} },
			"chmod":    func() (opcode, uint64, []any) { return opSetattr, f, setattrArgs(fattrMode, 0, 0, 0o600, 0) },
			"touch":    func() (opcode, uint64, []any) { return opSetattr, f, setattrArgs(fattrMtime|fattrMtimeNow, 0, 0, 0, 0) },
			"truncate": func() (opcode, uint64, []any) { return opSetattr, f, setattrArgs(fattrSize, 0, 1, 0, 0) },
			"fchmod":   func() (opcode, uint64, []any) { return opSetattr, f, setattrArgs(fattrMode|fattrFH, fh, 0, 0o644, 0) },
			"chown":    func() (opcode, uint64, []any) { return opSetattr, d, setattrArgs(fattrUID, 0, 0, 0, 0) },
			"unlink":   func() (opcode, uint64, []any) { return opUnlink, d, []any{"g"} },
			"rmdir":    func() (opcode, uint64, []any) { return opRmdir, rootID, []any{"d"} },
		}
		order := []string{
			"open for writing", "open for both", "open and truncate", "create", "mknod", "mkdir", "symlink", "link", "rename", "rename2",
			"chmod", "touch", "truncate", "fchmod", "chown", "unlink", "rmdir",
		}
		for _, what := range order {
			op, node, parts := changes[what]()
			if control {
				g.must(op, node, parts...)
				continue
			}
			g.refused(what, op, node, parts, eROFS)
		}
		if !control {
			g.refused("write", opWrite, f, writeArgs(fh, 0, []byte("x")), eBADF, eROFS)
			g.refused("fallocate", opFallocate, f, []any{fh, uint64(0), uint64(1), uint64(0)}, eBADF, eROFS)
		}
		if same := fingerprint(t, root) == tree; same == control {
			t.Errorf("the folder is unchanged: %v, want %v", same, !control)
		}
	}
	eachBackend(t, Options{Rules: plainRules(t, rules.ReadOnly)}, func(t *testing.T, s *Server, root string) { run(t, s, root, false) })
	t.Run("control", func(t *testing.T) {
		eachBackend(t, Options{}, func(t *testing.T, s *Server, root string) { run(t, s, root, true) })
	})
	// The backend refuses by itself, should a rule be missing.
	eachBackend(t, Options{Rules: plainRules(t, rules.ReadOnly)}, func(t *testing.T, s *Server, root string) {
		want(t, "host write", os.WriteFile(filepath.Join(root, "f"), nil, 0o644), nil)
		_, _, open := s.back.open("f", openMode{write: true})
		_, _, trunc := s.back.open("f", openMode{read: true, trunc: true})
		_, _, create := s.back.create("n", openMode{}, 0o644)
		_, mkdir := s.back.mkdir("n", 0o755)
		_, symlink := s.back.symlink("f", "n")
		_, link := s.back.link("f", "n")
		mode := uint32(0o600)
		for what, err := range map[string]error{
			"open": open, "trunc": trunc, "create": create, "mkdir": mkdir, "symlink": symlink, "link": link, "unlink": s.back.unlink("f"),
			"rmdir": s.back.rmdir("f"), "rename": s.back.rename("f", "n", 0), "change": s.back.change("f", change{mode: &mode}),
		} {
			if toErrno(err) != eROFS {
				t.Errorf("the backend's %s: %v", what, err)
			}
		}
	})
}

// S02: a root that is a link, or below one, or that was swapped, is not opened; one that is pinned stays what it was.
func TestRootLinks(t *testing.T) {
	for name, pin := range map[string]func(string) (backend, stat, error){"openat2": pin, "os.Root": pinPortable} {
		t.Run(name, func(t *testing.T) {
			base, err := filepath.EvalSymlinks(t.TempDir())
			want(t, "resolve", err, nil)
			at := func(n string) string { return filepath.Join(base, n) }
			want(t, "mkdir", os.MkdirAll(at("real/sub"), 0o755), nil)
			want(t, "write", os.WriteFile(at("real/sub/file"), nil, 0o644), nil)
			want(t, "mkdir", os.MkdirAll(at("other"), 0o755), nil)
			want(t, "symlink", os.Symlink("real", at("link")), nil)
			for _, bad := range []string{at("link"), at("link/sub"), at("real/sub/file"), at("none"), base + "/real/../real", base + "/real/", base + "//real", "real", "", "."} {
				if r, err := openRoot(bad, pin); err == nil {
					t.Errorf("%q was opened", bad)
					_ = r.Close()
				}
			}
			r, err := openRoot(at("real"), pin)
			if err != nil {
				t.Fatal(err)
			}
			s := New(r, plain(t, Options{}))
			defer s.Close()
			want(t, "host rename", os.Rename(at("real"), at("moved")), nil)
			want(t, "host swap", os.Rename(at("other"), at("real")), nil)
			g := newGuest(t, s)
			g.lookup(rootID, "sub")
			g.mkdir(rootID, "new")
			if _, err := os.Stat(at("moved/new")); err != nil {
				t.Errorf("not made in the folder that was pinned: %v", err)
			}
			if _, err := os.Stat(at("real/new")); err == nil {
				t.Error("made in a folder that took the name")
			}
		})
	}
}

// S19: the root is deleted while the share is up, and another takes its name.
func TestRootDeleted(t *testing.T) {
	eachBackend(t, Options{}, func(t *testing.T, s *Server, root string) {
		g := newGuest(t, s)
		g.must(opGetattr, rootID, uint64(0), uint64(0))
		want(t, "host remove", os.Remove(root), nil)
		want(t, "host mkdir", os.Mkdir(root, 0o755), nil)
		want(t, "host write", os.WriteFile(filepath.Join(root, "f"), nil, 0o644), nil)
		g.refused("GETATTR", opGetattr, rootID, []any{uint64(0), uint64(0)}, eSTALE, eIO)
		g.refused("LOOKUP", opLookup, rootID, []any{"f"}, eSTALE, eIO)
		g.refused("MKDIR", opMkdir, rootID, []any{uint64(0o755), "d"}, eSTALE, eIO)
		g.refused("CREATE", opCreate, rootID, []any{uint32(oRdwr), uint32(0o644), uint64(0), "n"}, eSTALE, eIO)
		if names, _ := os.ReadDir(root); len(names) != 1 {
			t.Errorf("in the folder that took the name there are %v", names)
		}
	})
}

// What is mounted inside the folder is not shared along with it.
func TestMountInside(t *testing.T) {
	root := newFolder(t)
	for _, d := range []string{"mnt", "a/mnt"} {
		mnt := filepath.Join(root, d)
		want(t, "mkdir", os.MkdirAll(mnt, 0o755), nil)
		want(t, "mount", unix.Mount("carrel-test", mnt, "tmpfs", 0, ""), nil)
		t.Cleanup(func() { want(t, "unmount", unix.Unmount(mnt, unix.MNT_DETACH), nil) })
		want(t, "write", os.WriteFile(filepath.Join(mnt, "f"), nil, 0o644), nil)
	}
	r, err := OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	s := New(r, plain(t, Options{}))
	defer s.Close()
	g := newGuest(t, s)
	g.refused("LOOKUP of a mount point", opLookup, rootID, []any{"mnt"}, eACCES)
	g.refused("LOOKUP of a mount point", opLookup, g.lookup(rootID, "a"), []any{"mnt"}, eACCES)
	for _, path := range []string{"mnt/f", "a/mnt/f"} {
		if _, err := s.back.lstat(path); toErrno(err) != eACCES {
			t.Errorf("lstat below it: %v", err)
		}
		if _, _, err := s.back.open(path, openMode{read: true}); toErrno(err) != eACCES {
			t.Errorf("open below it: %v", err)
		}
		if _, err := s.back.mkdir(path+"d", 0o755); toErrno(err) != eACCES {
			t.Errorf("mkdir below it: %v", err)
		}
	}
}

// R04: entries up to the quota and no further; what is removed may be made again. 100,000 entries on tmpfs.
func TestEntryQuota(t *testing.T) {
	const most = 100_000
	eachBackend(t, Options{MaxEntries: most, MinFree: 1}, func(t *testing.T, _ *Server, root string) {
		want(t, "mount", unix.Mount("carrel-test", root, "tmpfs", 0, ""), nil)
		t.Cleanup(func() { want(t, "unmount", unix.Unmount(root, unix.MNT_DETACH), nil) })
		pinned, err := OpenRoot(root)
		if err != nil {
			t.Fatal(err)
		}
		s := New(pinned, plain(t, Options{MaxEntries: most, MinFree: 1}))
		defer s.Close()
		g := newGuest(t, s)
		dir := g.mkdir(rootID, "dir")
		first := g.lookup(rootID, "dir")
		for i := range most - 1 {
			name := fmt.Sprint(i)
			switch i % 4 {
			case 0:
				g.must(opMknod, dir, uint32(modeRegular|0o644), uint32(0), uint64(0), name)
			case 1:
				g.must(opMkdir, dir, uint64(0o755), name)
			case 2:
				g.must(opSymlink, dir, name, "target")
			case 3:
				g.must(opLink, dir, g.lookup(dir, "0"), name)
			}
		}
		full := func() {
			t.Helper()
			g.refused("MKNOD", opMknod, dir, []any{uint32(modeRegular | 0o644), uint32(0), uint64(0), "x"}, eNOSPC)
			g.refused("MKDIR", opMkdir, rootID, []any{uint64(0o755), "x"}, eNOSPC)
			g.refused("SYMLINK", opSymlink, rootID, []any{"x", "y"}, eNOSPC)
			g.refused("LINK", opLink, rootID, []any{g.lookup(dir, "8"), "x"}, eNOSPC)
			g.refused("CREATE", opCreate, first, []any{uint32(oRdwr), uint32(0o644), uint64(0), "x"}, eNOSPC)
			if b := g.must(opStatfs, rootID); le.Uint64(b[32:]) != 0 {
				t.Errorf("STATFS tells of %d entries", le.Uint64(b[32:]))
			}
		}
		full()
		g.must(opUnlink, dir, "0")
		g.must(opMkdir, rootID, uint64(0o755), "again")
		full()
		g.must(opRename, dir, dir, "2", "3") // one of the two is gone
		g.must(opSymlink, rootID, "again2", "y")
		full()
		g.must(opRename2, dir, dir, uint32(renameExchange), uint32(0), "1", "3")
		full()
		b := g.must(opCreate, dir, uint32(oRdwr), uint32(0o644), uint32(0), uint32(0), "4") // it is there already
		g.release(le.Uint64(b), le.Uint64(b[entryOutSize:]))
		full()
		g.refused("exclusive CREATE", opCreate, dir, []any{uint32(oRdwr | oExcl), uint32(0o644), uint64(0), "x"}, eNOSPC)
	})
}

// R03 and S14: bytes, counted where they are sparse too.
func TestByteQuota(t *testing.T) {
	const most = 8 << 20
	eachBackend(t, Options{MaxBytes: most, MinFree: 1}, func(t *testing.T, s *Server, root string) {
		g := newGuest(t, s)
		a, fhA := g.create(rootID, "a")
		chunk := make([]byte, 1<<20)
		for i := range uint64(most / len(chunk)) {
			g.must(opWrite, a, writeArgs(fhA, i<<20, chunk)...)
		}
		b, fhB := g.create(rootID, "b")
		full := func() {
			t.Helper()
			g.refused("WRITE", opWrite, b, writeArgs(fhB, 0, []byte("x")), eNOSPC)
			g.refused("truncate to more", opSetattr, b, setattrArgs(fattrSize, 0, 1, 0, 0), eNOSPC)
			g.refused("FALLOCATE", opFallocate, b, []any{fhB, uint64(0), uint64(1), uint64(0)}, eNOSPC)
		}
		room := func(n uint64) { // for n bytes, taken and given back
			t.Helper()
			g.must(opSetattr, b, setattrArgs(fattrSize, 0, n, 0, 0)...)
			g.refused("truncate to more than there is", opSetattr, b, setattrArgs(fattrSize, 0, n+1, 0, 0), eNOSPC)
			g.must(opSetattr, b, setattrArgs(fattrSize, 0, 0, 0, 0)...)
		}
		full()
		g.must(opSetattr, a, setattrArgs(fattrSize, 0, 0, 0, 0)...)
		room(most)
		g.refused("a sparse length", opSetattr, a, setattrArgs(fattrSize, 0, 1<<40, 0, 0), eNOSPC)
		g.refused("a byte far away", opWrite, a, writeArgs(fhA, 1<<40, []byte("x")), eNOSPC)
		g.must(opWrite, a, writeArgs(fhA, most-1, []byte("x"))...) // sparse, and counted in full
		full()
		// Unlinked, it still takes room until it is closed.
		g.must(opUnlink, rootID, "a")
		full()
		g.release(a, fhA)
		room(most)
		// A second name keeps it.
		a, fhA = g.create(rootID, "a")
		g.must(opWrite, a, writeArgs(fhA, 0, chunk)...)
		g.release(a, fhA)
		g.must(opLink, rootID, a, "a2")
		g.must(opUnlink, rootID, "a")
		room(most - 1<<20)
		// Replaced by another, it is gone.
		g.create(rootID, "c")
		g.must(opRename, rootID, uint64(rootID), "c", "a2")
		room(most)
		// O_TRUNC gives back; the host's own files earn nothing beyond an empty account.
		g.write(b, fhB, 0, "some bytes")
		g.open(b, oRdwr|oTrunc)
		room(most)
		want(t, "host write", os.WriteFile(filepath.Join(root, "host"), make([]byte, 1<<20), 0o644), nil)
		g.must(opUnlink, rootID, "host")
		room(most)
	})
}

// The floor under the host's free space holds whatever the account says.
func TestFreeFloor(t *testing.T) {
	root := newFolder(t)
	want(t, "mount", unix.Mount("carrel-test", root, "tmpfs", 0, "size=64m"), nil)
	t.Cleanup(func() { want(t, "unmount", unix.Unmount(root, unix.MNT_DETACH), nil) })
	pinned, err := OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	s := New(pinned, plain(t, Options{MinFree: 24 << 20}))
	defer s.Close()
	g := newGuest(t, s)
	node, fh := g.create(rootID, "f")
	chunk := make([]byte, 1<<20)
	written := uint64(0)
	for ; written < 64; written++ {
		if _, e := g.call(opWrite, node, writeArgs(fh, written<<20, chunk)...); e == eNOSPC {
			break
		} else if e != ok {
			t.Fatal(e)
		}
	}
	// 40 MiB are to be had; the floor is looked at every 16.
	if written < 20 || written > 40+lookEvery>>20 {
		t.Errorf("%d MiB could be written", written)
	}
}

// Nodes and handles have an end, and one that is given back can be had again.
func TestTables(t *testing.T) {
	eachBackend(t, Options{MaxNodes: 20, MaxHandles: 10}, func(t *testing.T, s *Server, root string) {
		for i := range 30 {
			want(t, "host write", os.WriteFile(filepath.Join(root, fmt.Sprint(i)), nil, 0o644), nil)
		}
		g := newGuest(t, s)
		var nodes []uint64
		for i := range 19 {
			nodes = append(nodes, g.lookup(rootID, fmt.Sprint(i)))
		}
		g.refused("LOOKUP", opLookup, rootID, []any{"19"}, eNFILE)
		dh := le.Uint64(g.must(opOpendir, rootID, uint64(0)))
		if b := g.must(opReaddirplus, rootID, readArgs(dh, 0, 16384)...); len(b) == 0 {
			t.Error("nothing is listed when the table is full")
		}
		if n := g.nodes(); n > 20 {
			t.Errorf("%d nodes", n)
		}
		var fhs []uint64
		for range 9 {
			fhs = append(fhs, g.open(nodes[0], oRdonly))
		}
		g.refused("OPEN", opOpen, nodes[1], []any{uint64(0)}, eMFILE)
		g.refused("OPENDIR", opOpendir, rootID, []any{uint64(0)}, eMFILE)
		g.refused("CREATE", opCreate, rootID, []any{uint32(oRdwr), uint32(0o644), uint64(0), "new"}, eMFILE)
		if _, err := os.Stat(filepath.Join(root, "new")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a file without a handle was left: %v", err)
		}
		g.release(nodes[0], fhs[0])
		g.open(nodes[1], oRdonly)
	})
}

// S06: a folder is swapped for a link to outside, over and over, while others create, open and look below it. Nothing lands or
// is read outside. 100,000 tries in a minute with CARREL_SCALE=full; otherwise a few seconds of it.
func TestSymlinkSwapRace(t *testing.T) {
	length, least := 3*time.Second, int64(1000)
	if os.Getenv("CARREL_SCALE") == "full" {
		length, least = time.Minute, 100_000
	}
	eachBackend(t, Options{MinFree: 1}, func(t *testing.T, s *Server, root string) {
		newGuest(t, s)
		var stop atomic.Bool
		var tries, swaps, inside, looped atomic.Int64
		var g sync.WaitGroup
		control := &guest{t: t, s: s, out: make([]byte, MaxMessage)}
		control.mkdir(rootID, "dir")
		control.must(opSymlink, rootID, "link", "../outside")
		g.Go(func() { // by the host's hand, so that no lock of the server's is in the way
			for !stop.Load() {
				if unix.Renameat2(unix.AT_FDCWD, filepath.Join(root, "dir"), unix.AT_FDCWD, filepath.Join(root, "link"), unix.RENAME_EXCHANGE) == nil {
					swaps.Add(1)
				}
			}
		})
		for range 3 {
			g.Go(func() {
				me := &guest{t: t, s: s, out: make([]byte, MaxMessage)}
				for !stop.Load() {
					b, e := me.call(opLookup, rootID, "dir")
					if e != ok {
						continue
					}
					dir := le.Uint64(b)
					for _, try := range []struct {
						op    opcode
						parts []any
					}{
						{opLookup, []any{"canary"}},
						{opCreate, []any{uint32(oRdwr | oTrunc), uint32(0o644), uint64(0), "canary"}},
						{opUnlink, []any{"canary"}},
						{opMkdir, []any{uint64(0o755), "made"}},
						{opRmdir, []any{"made"}},
						{opSymlink, []any{"made", "x"}},
						{opUnlink, []any{"made"}},
						{opOpendir, []any{uint64(0)}},
					} {
						tries.Add(1)
						b, e := me.call(try.op, dir, try.parts...)
						switch {
						case e == ok && try.op == opOpendir:
							me.call(opReleasedir, dir, le.Uint64(b), uint64(0), uint64(0))
						case e == ok && try.op == opCreate:
							me.call(opRelease, le.Uint64(b), le.Uint64(b[entryOutSize:]), uint64(0), uint64(0))
							inside.Add(1)
						case e == eLOOP || e == eNOTDIR || e == eSTALE:
							looped.Add(1)
						}
					}
				}
			})
		}
		// The length of the attack, not a wait for something; on a slow machine as much longer as it takes to have tried enough.
		time.Sleep(length)
		for end := time.Now().Add(coherent); (tries.Load() < least || inside.Load() == 0 || looped.Load() == 0) && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		stop.Store(true)
		g.Wait()
		t.Logf("%d tries against %d swaps: %d created inside, %d refused, none outside", tries.Load(), swaps.Load(), inside.Load(), looped.Load())
		if tries.Load() < least || inside.Load() == 0 || looped.Load() == 0 {
			t.Errorf("the race was not run: %d tries, of %d at least", tries.Load(), least)
		}
	})
}
