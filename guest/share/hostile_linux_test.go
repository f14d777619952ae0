package share

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// S03: names that no kernel sends. Each goes to every operation that takes a name, in each of its places; the same
// operation with a good name works. The canary next to the root is looked at by newFolder.
func TestHostileNames(t *testing.T) {
	bad := map[string][]errno{
		"":                             {eINVAL},
		".":                            {eINVAL},
		"..":                           {eINVAL},
		"/":                            {eINVAL},
		"../outside/canary":            {eINVAL},
		"../../../../../../etc/passwd": {eINVAL},
		"a/b":                          {eINVAL},
		"/etc/passwd":                  {eINVAL},
		"a\x00b":                       {eINVAL},
		strings.Repeat("n", 256):       {eNAMETOOLONG},
		strings.Repeat("n", 3000):      {eNAMETOOLONG},
	}
	good := []string{"a", "...", "..a", "-rf", "\xff\xfe", `\`, "C:", "aux", "x:stream", "a\nb", strings.Repeat("n", 255)}
	eachBackend(t, Options{}, func(t *testing.T, s *Server, root string) {
		g := newGuest(t, s)
		g.create(rootID, "there")
		dir := g.mkdir(rootID, "dir")
		ops := map[string]func(name string) (opcode, uint64, []any){
			"LOOKUP": func(n string) (opcode, uint64, []any) { return opLookup, rootID, []any{n} },
			"CREATE": func(n string) (opcode, uint64, []any) {
				return opCreate, dir, []any{uint32(oRdwr), uint32(0o644), uint64(0), n}
			},
			"MKNOD": func(n string) (opcode, uint64, []any) {
				return opMknod, dir, []any{uint32(modeRegular | 0o644), uint32(0), uint64(0), n}
			},
			"MKDIR":   func(n string) (opcode, uint64, []any) { return opMkdir, dir, []any{uint64(0o755), n} },
			"SYMLINK": func(n string) (opcode, uint64, []any) { return opSymlink, dir, []any{n, "target"} },
			"UNLINK":  func(n string) (opcode, uint64, []any) { return opUnlink, dir, []any{n} },
			"RMDIR":   func(n string) (opcode, uint64, []any) { return opRmdir, dir, []any{n} },
			"LINK":    func(n string) (opcode, uint64, []any) { return opLink, dir, []any{g.lookup(rootID, "there"), n} },
			"RENAME from": func(n string) (opcode, uint64, []any) {
				return opRename, dir, []any{uint64(rootID), n, "moved"}
			},
			"RENAME to": func(n string) (opcode, uint64, []any) {
				return opRename, rootID, []any{dir, "there", n}
			},
		}
		for op, make := range ops {
			for name, ways := range bad {
				code, node, parts := make(name)
				if op == "RENAME from" && name == "" || op == "SYMLINK" || strings.HasPrefix(op, "RENAME") && name == "a\x00b" {
					ways = append(ways, eNAMETOOLONG, eINVAL) // two strings: a NUL inside shifts them
				}
				g.refused(fmt.Sprintf("%s %.20q", op, name), code, node, parts, ways...)
			}
		}
		if names, _ := os.ReadDir(filepath.Join(root, "dir")); len(names) != 0 {
			t.Errorf("bad names have made %v", names)
		}
		for _, name := range good { // the control
			node := g.mkdir(dir, name)
			if g.lookup(dir, name) != node {
				t.Errorf("%q: another node at the second look", name)
			}
			g.must(opRmdir, dir, name)
			g.must(opSymlink, dir, name, "target")
			g.must(opUnlink, dir, name)
			code, id, parts := ops["LINK"](name)
			g.must(code, id, parts...)
			g.must(opUnlink, dir, name)
			g.create(dir, name)
			g.must(opRename, dir, uint64(rootID), name, "moved")
			g.must(opUnlink, rootID, "moved")
		}
		code, node, parts := ops["RENAME to"]("moved")
		g.must(code, node, parts...)
	})
}

// S05: links are data. Whatever a link points to, no operation on its node or below it gets there.
func TestHostileSymlinks(t *testing.T) {
	eachBackend(t, Options{}, func(t *testing.T, s *Server, root string) {
		g := newGuest(t, s)
		outside := filepath.Join(filepath.Dir(root), "outside")
		for i, target := range []string{outside, "../outside", "/", outside + "/canary", "../outside/canary", "/proc/self/root", "/proc/self/cwd"} {
			name := fmt.Sprintf("l%d", i)
			link := le.Uint64(g.must(opSymlink, rootID, name, target))
			if got := string(g.must(opReadlink, link)); got != target {
				t.Errorf("READLINK %q, want %q", got, target)
			}
			for _, flags := range []uint32{oRdonly, oWronly, oRdwr | oTrunc} {
				g.refused("OPEN "+target, opOpen, link, []any{flags, uint32(0)}, eLOOP)
			}
			g.refused("CREATE over "+target, opCreate, rootID, []any{uint32(oRdwr), uint32(0o644), uint64(0), name}, eLOOP)
			g.refused("OPENDIR "+target, opOpendir, link, []any{uint64(0)}, eLOOP, eNOTDIR)
			g.refused("SETATTR size "+target, opSetattr, link, setattrArgs(fattrSize, 0, 0, 0, 0), eINVAL)
			g.refused("SETATTR mode "+target, opSetattr, link, setattrArgs(fattrMode, 0, 0, 0o777, 0), eOPNOTSUPP)
			_, e := g.call(opSetattr, link, setattrArgs(fattrMtime, 0, 0, 0, 0)...)
			if e != ok {
				t.Errorf("times of a link: %v", e)
			}
			for _, below := range []string{"canary", "outside", "etc", "x"} {
				g.refused("LOOKUP below "+target, opLookup, link, []any{below}, eLOOP, eNOTDIR)
				g.refused("CREATE below "+target, opCreate, link, []any{uint32(oRdwr), uint32(0o644), uint64(0), below}, eLOOP, eNOTDIR)
				g.refused("MKDIR below "+target, opMkdir, link, []any{uint64(0o755), below}, eLOOP, eNOTDIR)
				g.refused("UNLINK below "+target, opUnlink, link, []any{below}, eLOOP, eNOTDIR)
				g.refused("RENAME below "+target, opRename, link, []any{uint64(rootID), below, "stolen"}, eLOOP, eNOTDIR)
				g.refused("LINK below "+target, opLink, link, []any{link, below}, eLOOP, eNOTDIR)
			}
			g.must(opLink, rootID, link, name+".hard") // a second name for the link itself
			if at, err := os.Readlink(filepath.Join(root, name+".hard")); err != nil || at != target {
				t.Errorf("a hard link of the link is %q, %v", at, err)
			}
		}
		// A folder that the guest knows becomes a link behind the server's back.
		dir := g.mkdir(rootID, "dir")
		g.mkdir(dir, "sub")
		want(t, "host rename", os.Rename(filepath.Join(root, "dir"), filepath.Join(root, "gone")), nil)
		want(t, "host symlink", os.Symlink("../outside", filepath.Join(root, "dir")), nil)
		g.refused("LOOKUP below a swapped folder", opLookup, dir, []any{"canary"}, eLOOP, eNOTDIR)
		g.refused("CREATE below a swapped folder", opCreate, dir, []any{uint32(oRdwr), uint32(0o644), uint64(0), "x"}, eLOOP, eNOTDIR)
		g.refused("UNLINK below a swapped folder", opUnlink, dir, []any{"canary"}, eLOOP, eNOTDIR)
		g.refused("OPENDIR of a swapped folder", opOpendir, dir, []any{uint64(0)}, eLOOP, eNOTDIR)
		want(t, "host remove", os.Remove(filepath.Join(root, "dir")), nil)
		want(t, "host rename back", os.Rename(filepath.Join(root, "gone"), filepath.Join(root, "dir")), nil)
		g.must(opLookup, dir, "sub") // the control: the same node, as soon as it is a folder again
	})
}

// S04 and S07: no devices, sockets or FIFOs, and no set-id or sticky bits, in whatever way they are asked for.
func TestHostileModes(t *testing.T) {
	eachBackend(t, Options{}, func(t *testing.T, s *Server, root string) {
		g := newGuest(t, s)
		for _, kind := range []uint32{modeChar, modeBlock, modeFIFO, modeSocket, modeDir, modeSymlink, 0o170000} {
			g.refused(fmt.Sprintf("MKNOD %o", kind), opMknod, rootID, []any{kind | 0o666, uint32(0x801), uint64(0), "dev"}, ePERM)
		}
		if names, _ := os.ReadDir(root); len(names) != 0 {
			t.Errorf("on the host there are %v", names)
		}
		g.must(opMknod, rootID, uint32(modeRegular|0o6755), uint32(0x801), uint64(0), "regular")
		dir := le.Uint64(g.must(opMkdir, rootID, uint32(0o7755), uint32(0), "dir"))
		b := g.must(opCreate, rootID, uint32(oRdwr), uint32(0o7755), uint32(0), uint32(0), "created")
		created, fh := le.Uint64(b), le.Uint64(b[entryOutSize:])
		g.must(opSetattr, created, setattrArgs(fattrMode, 0, 0, 0o106755, 0)...)
		g.must(opSetattr, created, setattrArgs(fattrMode|fattrFH, fh, 0, 0o106755, 0)...)
		g.must(opSetattr, dir, setattrArgs(fattrMode, 0, 0, 0o47755, 0)...)
		for _, name := range []string{"regular", "dir", "created"} {
			var st unix.Stat_t
			want(t, "stat", unix.Stat(filepath.Join(root, name), &st), nil)
			if st.Mode&0o7777 != 0o755 {
				t.Errorf("%s has mode %o", name, st.Mode)
			}
		}
		g.refused("chown", opSetattr, created, setattrArgs(fattrUID|fattrGID, 0, 0, 0, 12345), ePERM)
		g.must(opSetattr, created, setattrArgs(fattrUID|fattrGID, 0, 0, 0, 0)...) // to whom it is shown to belong: Options{}

		// A program of the host's that has set-id does not keep it with the guest's contents, nor is it shown.
		suid := filepath.Join(root, "suid")
		want(t, "host create", os.WriteFile(suid, []byte("#!"), 0o755), nil)
		want(t, "host chmod", unix.Chmod(suid, 0o6755), nil)
		b = g.must(opLookup, rootID, "suid")
		if mode := le.Uint32(b[40+60:]); mode != modeRegular|0o755 {
			t.Errorf("the guest is shown mode %o", mode)
		}
		g.open(le.Uint64(b), oRdonly)
		var st unix.Stat_t
		want(t, "stat", unix.Stat(suid, &st), nil)
		if st.Mode&0o7777 != 0o6755 {
			t.Errorf("opened for reading it has mode %o", st.Mode)
		}
		g.open(le.Uint64(b), oWronly)
		want(t, "stat", unix.Stat(suid, &st), nil)
		if st.Mode&0o7777 != 0o755 {
			t.Errorf("opened for writing it has mode %o", st.Mode)
		}
	})
}

// The host's own FIFOs, sockets and devices are listed, and opening them neither blocks nor works.
func TestHostObjects(t *testing.T) {
	eachBackend(t, Options{}, func(t *testing.T, s *Server, root string) {
		g := newGuest(t, s)
		for name, kind := range map[string]uint32{"fifo": modeFIFO, "sock": modeSocket, "null": modeChar, "loop": modeBlock} {
			want(t, "host mknod", unix.Mknod(filepath.Join(root, name), kind|0o666, int(unix.Mkdev(1, 3))), nil)
			b := g.must(opLookup, rootID, name)
			if got := le.Uint32(b[40+60:]); got&modeType != kind || le.Uint32(b[40+76:]) != 0 {
				t.Errorf("%s is shown with mode %o, device %x", name, got, le.Uint32(b[40+76:]))
			}
			for _, flags := range []uint32{oRdonly, oWronly, oRdwr} {
				g.refused("OPEN "+name, opOpen, le.Uint64(b), []any{flags, uint32(0)}, eACCES)
				g.refused("CREATE over "+name, opCreate, rootID, []any{flags, uint32(0o644), uint64(0), name}, eACCES, eNXIO)
			}
		}
	})
}

// S14: numbers at and beyond every edge.
func TestHostileNumbers(t *testing.T) {
	eachBackend(t, Options{MaxBytes: 1 << 30, MinFree: 1}, func(t *testing.T, s *Server, root string) {
		g := newGuest(t, s)
		node, fh := g.create(rootID, "f")
		g.write(node, fh, 0, "contents")
		for _, off := range []uint64{math.MaxInt64 - 1, math.MaxInt64, 1 << 63, math.MaxUint64 - 7, math.MaxUint64} {
			g.refused("READ", opRead, node, readArgs(fh, off, 8), eINVAL)
			g.refused("WRITE", opWrite, node, writeArgs(fh, off, []byte("x")), eFBIG, eINVAL)
			g.refused("LSEEK", opLseek, node, []any{fh, off, uint32(seekData), uint32(0)}, eINVAL, eNXIO)
			g.refused("SETATTR size", opSetattr, node, setattrArgs(fattrSize, 0, off, 0, 0), eFBIG, eINVAL, eNOSPC)
			g.refused("FALLOCATE at", opFallocate, node, []any{fh, off, uint64(1), uint32(0), uint32(0)}, eFBIG, eINVAL, eNOSPC, eOPNOTSUPP)
			g.refused("FALLOCATE of", opFallocate, node, []any{fh, uint64(1), off, uint32(0), uint32(0)}, eFBIG, eINVAL, eNOSPC, eOPNOTSUPP)
		}
		for _, size := range []uint32{MaxWrite + 1, 1 << 31, math.MaxUint32} {
			g.refused("READ size", opRead, node, readArgs(fh, 0, size), eINVAL)
			g.refused("WRITE size", opWrite, node, []any{fh, uint64(0), size, uint32(0), uint64(0), uint64(0), []byte("x")}, eINVAL)
		}
		g.refused("WRITE of more than it brings", opWrite, node, []any{fh, uint64(0), uint32(9), uint32(0), uint64(0), uint64(0), []byte("x")}, eINVAL)
		g.refused("WRITE of less than it brings", opWrite, node, []any{fh, uint64(0), uint32(0), uint32(0), uint64(0), uint64(0), []byte("x")}, eINVAL)
		g.refused("FALLOCATE of nothing", opFallocate, node, []any{fh, uint64(0), uint64(0), uint32(0), uint32(0)}, eINVAL)
		for _, mode := range []uint32{2, 8, 0x20, 0x40, math.MaxUint32} {
			g.refused("FALLOCATE mode", opFallocate, node, []any{fh, uint64(0), uint64(1), mode, uint32(0)}, eOPNOTSUPP)
		}
		for _, whence := range []uint32{0, 1, 2, 5, math.MaxUint32} {
			g.refused("LSEEK whence", opLseek, node, []any{fh, uint64(0), whence, uint32(0)}, eINVAL)
		}
		g.refused("OPEN with both access bits", opOpen, node, []any{uint32(3), uint32(0)}, eINVAL)
		bad := setattrArgs(fattrMtime, 0, 0, 0, 0)
		bad[9] = uint32(1_000_000_000)
		g.refused("SETATTR nanoseconds", opSetattr, node, bad, eINVAL)
		g.refused("RENAME2 WHITEOUT", opRename2, rootID, []any{uint64(rootID), uint32(4), uint32(0), "f", "g"}, eINVAL)

		// The control: the same with numbers that make sense.
		if got := g.read(node, fh); got != "contents" {
			t.Errorf("after all that the file has %q", got)
		}
		g.must(opSetattr, node, setattrArgs(fattrSize, 0, 4, 0, 0)...)
		if off := g.must(opLseek, node, fh, uint64(0), uint32(seekHole), uint32(0)); le.Uint64(off) != 4 {
			t.Errorf("the hole at the end is at %d", le.Uint64(off))
		}
	})
}

// S15: nodes and handles that were never given, or belong to something else.
func TestHostileHandles(t *testing.T) {
	eachBackend(t, Options{}, func(t *testing.T, s *Server, root string) {
		g := newGuest(t, s)
		a, fhA := g.create(rootID, "a")
		b, fhB := g.create(rootID, "b")
		dir := g.mkdir(rootID, "dir")
		fhDir := le.Uint64(g.must(opOpendir, dir, uint64(0)))
		g.write(a, fhA, 0, "a")

		for _, node := range []uint64{0, 99, math.MaxUint64} {
			g.refused("LOOKUP", opLookup, node, []any{"a"}, eSTALE)
			g.refused("GETATTR", opGetattr, node, []any{uint64(0), uint64(0)}, eSTALE)
			g.refused("OPEN", opOpen, node, []any{uint64(0)}, eSTALE)
			g.refused("OPENDIR", opOpendir, node, []any{uint64(0)}, eSTALE)
			g.refused("MKDIR", opMkdir, node, []any{uint64(0o755), "x"}, eSTALE)
			g.refused("READLINK", opReadlink, node, nil, eSTALE)
			g.refused("SETATTR", opSetattr, node, setattrArgs(fattrMode, 0, 0, 0o600, 0), eSTALE)
			g.refused("RENAME from", opRename, node, []any{uint64(rootID), "a", "x"}, eSTALE)
			g.refused("RENAME to", opRename, rootID, []any{node, "a", "x"}, eSTALE)
			g.refused("LINK", opLink, rootID, []any{node, "x"}, eSTALE)
		}
		for _, h := range []struct {
			node, fh uint64
			what     string
		}{{a, fhB, "another file's"}, {b, fhA, "another file's"}, {a, 0, "zero"}, {a, 99, "never issued"}, {a, fhDir, "a folder's"}, {dir, fhA, "a file's"}} {
			g.refused("READ with the handle "+h.what, opRead, h.node, readArgs(h.fh, 0, 1), eBADF)
			g.refused("WRITE with the handle "+h.what, opWrite, h.node, writeArgs(h.fh, 0, []byte("x")), eBADF)
			g.refused("FSYNC with the handle "+h.what, opFsync, h.node, []any{h.fh, uint64(0)}, eBADF)
			g.refused("RELEASE with the handle "+h.what, opRelease, h.node, []any{h.fh, uint64(0), uint64(0)}, eBADF)
			g.refused("GETATTR with the handle "+h.what, opGetattr, h.node, []any{uint64(getattrFH), h.fh}, eBADF)
			g.refused("SETATTR with the handle "+h.what, opSetattr, h.node, setattrArgs(fattrMode|fattrFH, h.fh, 0, 0, 0), eBADF)
			g.refused("READDIR with the handle "+h.what, opReaddir, h.node, readArgs(h.fh, 0, 4096), eBADF)
			g.refused("READDIRPLUS with the handle "+h.what, opReaddirplus, h.node, readArgs(h.fh, 0, 4096), eBADF)
			g.refused("LSEEK with the handle "+h.what, opLseek, h.node, []any{h.fh, uint64(0), uint32(seekData), uint32(0)}, eBADF)
			g.refused("FALLOCATE with the handle "+h.what, opFallocate, h.node, []any{h.fh, uint64(0), uint64(1), uint64(0)}, eBADF)
		}
		readOnly := g.open(a, oRdonly)
		g.refused("WRITE with a handle for reading", opWrite, a, writeArgs(readOnly, 0, []byte("x")), eBADF)
		g.refused("truncate with a handle for reading", opSetattr, a, setattrArgs(fattrSize|fattrFH, readOnly, 0, 0, 0), eBADF)
		g.release(a, readOnly)
		g.refused("READ after RELEASE", opRead, a, readArgs(readOnly, 0, 1), eBADF)

		// FORGET takes no more than was given, and nothing from the root.
		for _, node := range []uint64{rootID, a, 0, 99} {
			for range 3 {
				if _, e := g.call(opForget, node, uint64(math.MaxUint64)); e != -1 {
					t.Errorf("FORGET has a reply: %v", e)
				}
			}
		}
		if got := g.read(a, fhA); got != "a" { // an open file outlives its node's lookups
			t.Errorf("read %q", got)
		}
		g.release(a, fhA)
		g.refused("GETATTR of a forgotten node", opGetattr, a, []any{uint64(0), uint64(0)}, eSTALE)
		if again := g.lookup(rootID, "a"); again == a {
			t.Error("a node id was given twice")
		}
		var pairs []byte
		for _, n := range []uint64{b, dir, rootID, 77, b} {
			pairs = le.AppendUint64(le.AppendUint64(pairs, n), math.MaxUint64)
		}
		if _, e := g.call(opBatchForget, 0, uint32(math.MaxUint32), uint32(0), pairs); e != -1 {
			t.Errorf("BATCH_FORGET has a reply: %v", e)
		}
		s.ServeUrgent([][]byte{g.message(opMkdir, rootID, uint64(0o755), "urgent")}) // only what has no reply may be urgent
		if _, err := os.Stat(filepath.Join(root, "urgent")); err == nil {
			t.Error("MKDIR passed for urgent")
		}
		again := g.lookup(rootID, "a")
		s.ServeUrgent([][]byte{g.message(opForget, again, uint64(2))})
		if now := g.lookup(rootID, "a"); now == again {
			t.Error("an urgent FORGET was dropped")
		}
		g.release(b, fhB)
		g.must(opReleasedir, dir, fhDir, uint64(0), uint64(0))
		if n := g.nodes(); n != 2 { // the root, and a's second node
			t.Errorf("%d nodes are remembered", n)
		}
	})
}

// Messages that are too short, too long, of no known kind, out of order, or leave no room for the reply.
func TestHostileMessages(t *testing.T) {
	eachBackend(t, Options{}, func(t *testing.T, s *Server, root string) {
		early := &guest{t: t, s: s, out: make([]byte, MaxMessage)}
		early.refused("LOOKUP before INIT", opLookup, rootID, []any{"a"}, eIO)
		early.refused("INIT of an old version", opInit, 0, []any{uint32(7), uint32(12), uint64(0)}, ePROTO)
		early.refused("INIT of version 6", opInit, 0, []any{uint32(6), uint32(99), uint64(0)}, ePROTO)
		if b := early.must(opInit, 0, uint32(8), uint32(0), uint64(0)); le.Uint32(b) != protoMajor {
			t.Errorf("version 8 was answered with %d", le.Uint32(b))
		}
		g := newGuest(t, s)
		g.refused("a second INIT", opInit, 0, []any{uint32(7), uint32(41), uint64(0)}, eIO)
		full := g.message(opLookup, rootID, "name")
		for n := range full {
			m := append([]byte(nil), full[:n]...)
			if n >= 4 {
				le.PutUint32(m, uint32(n))
			}
			if _, e := g.send(m); e == ok {
				t.Errorf("a LOOKUP of %d bytes was answered", n)
			}
		}
		for _, said := range []uint32{0, 39, 40, uint32(len(full) - 1), uint32(len(full) + 1), math.MaxUint32} {
			m := append([]byte(nil), full...)
			le.PutUint32(m, said)
			if _, e := g.send(m); e != eINVAL {
				t.Errorf("a length of %d in a message of %d: %v", said, len(full), e)
			}
		}
		m := append([]byte(nil), full...)
		m[36] = 1
		if _, e := g.send(m); e != eINVAL {
			t.Errorf("extensions that were not agreed on: %v", e)
		}
		if _, e := g.send(g.message(opWrite, rootID, make([]byte, MaxMessage))); e != eINVAL {
			t.Errorf("a message beyond MaxMessage: %v", e)
		}
		for op := range opcode(80) {
			if op <= opLast && operations[op].do != nil {
				continue
			}
			g.refused(fmt.Sprintf("operation %d", op), op, rootID, []any{"x"}, eNOSYS)
		}
		for _, op := range []opcode{4096, 1 << 20, math.MaxUint32} {
			g.refused("a large operation", op, rootID, nil, eNOSYS)
		}
		// No room for the reply: nothing is done, so that nothing is lost.
		mkdir := g.message(opMkdir, rootID, uint64(0o755), "dir")
		for room := range outHeaderSize + entryOutSize {
			if n := s.Serve(mkdir, make([]byte, room)); n > room || n > outHeaderSize {
				t.Fatalf("%d bytes in room for %d", n, room)
			}
		}
		if _, err := os.Stat(filepath.Join(root, "dir")); err == nil {
			t.Error("a request whose reply has no room was done")
		}
		if n := s.Serve(mkdir, make([]byte, outHeaderSize+entryOutSize)); n != outHeaderSize+entryOutSize {
			t.Errorf("with room enough: %d bytes", n)
		}
		node, fh := g.create(rootID, "f")
		g.write(node, fh, 0, "0123456789")
		short := make([]byte, outHeaderSize+4)
		if n := s.Serve(g.message(opRead, node, readArgs(fh, 0, 10)...), short); n != len(short) || string(short[outHeaderSize:]) != "0123" {
			t.Errorf("READ with room for 4: %d bytes, %q", n, short[outHeaderSize:])
		}
	})
}
