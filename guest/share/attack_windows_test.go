package share

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// underWine says that this Windows is Wine, which differs in what the tests name.
var underWine = windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil

// served is a folder that is served, with another next to it.
func served(t *testing.T, o Options) (g *guest, root, outside string) {
	t.Helper()
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	root, outside = filepath.Join(base, "root"), filepath.Join(base, "outside")
	for _, d := range []string{root, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put(t, outside, "canary", "canary")
	pinned, err := OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	s := New(pinned, plain(t, o))
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(filepath.Join(outside, "canary")); string(b) != "canary" {
			t.Errorf("the canary outside: %q, %v", b, err)
		}
		if names, _ := os.ReadDir(base); len(names) != 2 {
			t.Errorf("next to the share there is now %v", names)
		}
	})
	return newGuest(t, s), root, outside
}

func put(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// nameOps are all the requests that make, find or move a name.
func nameOps(g *guest, dir uint64) map[string]func(name string) (opcode, uint64, []any) {
	return map[string]func(name string) (opcode, uint64, []any){
		"LOOKUP": func(n string) (opcode, uint64, []any) { return opLookup, dir, []any{n} },
		"CREATE": func(n string) (opcode, uint64, []any) {
			return opCreate, dir, []any{uint32(oRdwr), uint32(0o644), uint64(0), n}
		},
		"MKDIR":     func(n string) (opcode, uint64, []any) { return opMkdir, dir, []any{uint64(0o755), n} },
		"SYMLINK":   func(n string) (opcode, uint64, []any) { return opSymlink, dir, []any{n, "target"} },
		"UNLINK":    func(n string) (opcode, uint64, []any) { return opUnlink, dir, []any{n} },
		"RENAME to": func(n string) (opcode, uint64, []any) { return opRename, rootID, []any{dir, "there", n} },
		"RENAME from": func(n string) (opcode, uint64, []any) {
			return opRename, dir, []any{uint64(rootID), n, "moved"}
		},
		"LINK to": func(n string) (opcode, uint64, []any) {
			return opLink, dir, []any{g.lookup(rootID, "there"), n}
		},
	}
}

// TestWindowsNames: what Windows would take for a device, a stream, another
// file's short name or a way out is no name, in any request.
func TestWindowsNames(t *testing.T) {
	g, root, _ := served(t, Options{})
	put(t, root, "there", "x")
	dir := g.mkdir(rootID, "dir")
	bad := []string{
		"CON", "nul", "NUL.txt", "Aux", "prn .log", "COM1", "com¹.x", "LPT9", "CONIN$", "conout$",
		"x:stream", "there::$DATA", ":s", "C:", `C:\windows`, `\\?\C:\windows`, `\\.\pipe\x`, `..\outside\canary`, `a\b`, `\`,
		"x.", "x ", "x. .", "...", "GIT~1", "progra~1.txt", "a?b", "a*", `a"`, "<", "|", "a\x01",
	}
	for op, request := range nameOps(g, dir) {
		for _, name := range bad {
			code, node, parts := request(name)
			g.refused(fmt.Sprintf("%s %q", op, name), code, node, parts, eINVAL)
		}
	}
	if names, err := os.ReadDir(filepath.Join(root, "dir")); len(names) != 0 || err != nil {
		t.Errorf("bad names have made %v, %v", names, err)
	}
	for _, name := range []string{"a", "CONTROL", "com", "COM10", "..a", "a.b.c", "-rf", "x~y", "é", "a b", ".hidden", "nul_"} { // the control
		node, fh := g.create(dir, name)
		g.write(node, fh, 0, "text of "+name)
		g.release(node, fh)
		if b, err := os.ReadFile(filepath.Join(root, "dir", name)); string(b) != "text of "+name {
			t.Errorf("%q: the host has %q, %v", name, b, err)
		}
		g.must(opRename, dir, uint64(rootID), name, "moved")
		g.must(opUnlink, rootID, "moved")
	}
}

// TestWindowsRules: Windows finds .git by other spellings, and a rule holds for
// each of them.
func TestWindowsRules(t *testing.T) {
	g, root, _ := served(t, Options{Rules: compile(t, rules.Options{Mode: rules.ReadWrite})})
	put(t, root, `.git\config`, "[core]")
	put(t, root, ".env", "KEY=secret")
	put(t, root, `other\config`, "free")
	for _, git := range []string{".git", ".GIT", ".Git", ".gIt"} {
		b, e := g.call(opLookup, rootID, git)
		if e != ok {
			continue // another spelling may also not be there
		}
		dir := le.Uint64(b)
		for _, name := range []string{"config", "CONFIG", "Config"} {
			g.refused(git+" create "+name, opCreate, dir, []any{uint32(oRdwr), uint32(0o644), uint64(0), name}, ePERM, eEXIST)
			g.refused(git+" remove "+name, opUnlink, dir, []any{name}, ePERM, eNOENT)
			if b, e := g.call(opLookup, dir, name); e == ok {
				g.refused(git+" open "+name, opOpen, le.Uint64(b), []any{uint32(oWronly), uint32(0)}, ePERM, eACCES)
			}
		}
		g.refused("make hooks", opMkdir, dir, []any{uint64(0o755), "Hooks"}, ePERM)
		g.refused("move "+git, opRename, rootID, []any{uint64(rootID), git, "free"}, ePERM)
	}
	for _, env := range []string{".env", ".ENV", ".Env"} {
		g.refused("look at "+env, opLookup, rootID, []any{env}, eNOENT)
		g.refused("make "+env, opCreate, rootID, []any{uint32(oRdwr), uint32(0o644), uint64(0), env}, ePERM)
	}
	if b, _ := os.ReadFile(filepath.Join(root, ".git", "config")); string(b) != "[core]" {
		t.Errorf(".git/config is %q", b)
	}
	dir := g.lookup(rootID, "other") // the control
	node := g.lookup(dir, "config")
	fh := g.open(node, oRdwr)
	g.write(node, fh, 0, "mine")
	g.release(node, fh)
	if b, _ := os.ReadFile(filepath.Join(root, "other", "config")); string(b) != "mine" {
		t.Errorf("other/config is %q", b)
	}
}

// TestWindowsLinks: a junction or a link in the folder leads nowhere for a guest.
// Wine 8 makes neither, so that there this shows the control alone.
func TestWindowsLinks(t *testing.T) {
	g, root, outside := served(t, Options{})
	put(t, root, `inside\file`, "inside")
	links := 0
	if out, err := exec.Command("cmd", "/c", "mklink", "/J", filepath.Join(root, "junction"), outside).CombinedOutput(); err == nil && exists(filepath.Join(root, "junction")) {
		links++
	} else if !underWine {
		t.Errorf("a junction cannot be made: %v: %s", err, out)
	}
	if err := os.Symlink(outside, filepath.Join(root, "link")); err == nil && exists(filepath.Join(root, "link")) {
		links++
	} else if !underWine { // a user may lack the right to
		t.Logf("no symbolic link can be made: %v", err)
	}
	t.Logf("%d links out of the folder, under Wine: %v", links, underWine)
	for _, name := range []string{"junction", "link"} {
		b, e := g.call(opLookup, rootID, name)
		if e != ok {
			continue
		}
		g.refused("through "+name, opLookup, le.Uint64(b), []any{"canary"}, eLOOP, eNOTDIR, eACCES, eINVAL)
		g.refused("make through "+name, opCreate, le.Uint64(b), []any{uint32(oRdwr), uint32(0o644), uint64(0), "new"}, eLOOP, eNOTDIR, eACCES, eINVAL)
	}
	dir := g.lookup(rootID, "inside") // the control
	node := g.lookup(dir, "file")
	if fh := g.open(node, oRdonly); g.read(node, fh) != "inside" {
		t.Error("a file that is no link cannot be read")
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// TestWindowsSharing: a file that a program of the host's has for itself is busy,
// and one that a guest has open can be replaced and removed, or says that it is
// busy; what is lost is never another's.
func TestWindowsSharing(t *testing.T) {
	g, root, _ := served(t, Options{})
	path := put(t, root, "held", "held")
	node := g.lookup(rootID, "held")
	h, err := windows.CreateFile(windows.StringToUTF16Ptr(path), windows.GENERIC_READ, 0, nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	g.refused("open", opOpen, node, []any{uint32(oRdwr), uint32(0)}, eBUSY)
	g.refused("remove", opUnlink, rootID, []any{"held"}, eBUSY, eACCES)
	windows.CloseHandle(h)
	fh := g.open(node, oRdwr) // the control
	g.write(node, fh, 0, "mine")

	_, e := g.call(opUnlink, rootID, "held")
	t.Logf("remove a file that the guest has open: %v", e)
	if e != ok && e != eBUSY && e != eACCES {
		t.Errorf("remove a file that is open: %v", e)
	}
	if got := g.read(node, fh); got != "mine" {
		t.Errorf("what was open reads as %q", got)
	}
	g.release(node, fh)
	if e != ok {
		g.must(opUnlink, rootID, "held")
	}
	if exists(path) {
		t.Error("the file that was removed is there")
	}

	put(t, root, "new", "new")
	put(t, root, "old", "old")
	old := g.lookup(rootID, "old")
	fh = g.open(old, oRdonly)
	_, e = g.call(opRename, rootID, uint64(rootID), "new", "old")
	t.Logf("rename over a file that the guest has open: %v", e)
	if got := g.read(old, fh); got != "old" {
		t.Errorf("what was open reads as %q", got)
	}
	g.release(old, fh)
	want := map[bool]string{true: "new", false: "old"}[e == ok]
	if b, _ := os.ReadFile(filepath.Join(root, "old")); string(b) != want {
		t.Errorf("after a rename that said %v the name has %q", e, b)
	}
}

// TestWindowsStat: what a guest sees of a file, and that times come back to 100 ns.
func TestWindowsStat(t *testing.T) {
	g, root, _ := served(t, Options{})
	node, fh := g.create(rootID, "f")
	g.write(node, fh, 0, "12345")
	at := time.Unix(1_600_000_000, 123_456_700)
	args := setattrArgs(fattrMtime, 0, 0, 0, 0)
	args[6], args[9] = uint64(at.Unix()), uint32(at.Nanosecond())
	g.must(opSetattr, node, args...)
	g.release(node, fh)
	b := g.must(opGetattr, node, uint32(0), uint32(0), uint64(0))[16:]
	size, mtime, nsec, mode := le.Uint64(b[8:]), le.Uint64(b[32:]), le.Uint32(b[52:]), le.Uint32(b[60:])
	t.Logf("size %d, mtime %d.%09d, mode %o", size, mtime, nsec, mode)
	if size != 5 || mtime != uint64(at.Unix()) || nsec != uint32(at.Nanosecond()) || mode&modeType != modeRegular || mode&0o600 != 0o600 {
		t.Errorf("size %d, mtime %d.%09d, mode %o", size, mtime, nsec, mode)
	}
	info, err := os.Stat(filepath.Join(root, "f"))
	if err != nil || !info.ModTime().Equal(at) {
		t.Errorf("on the host: %v, %v", info.ModTime(), err)
	}
}

// TestWindowsRoot: the folder has the numbers by which a grant knows it, and a
// read-only one changes nothing.
func TestWindowsRoot(t *testing.T) {
	g, root, _ := served(t, Options{Rules: plainRules(t, rules.ReadOnly)})
	put(t, root, "f", "x")
	if dev, ino := g.s.root.ID(); dev == 0 && ino == 0 {
		t.Error("the folder has no numbers")
	}
	for op, request := range nameOps(g, rootID) {
		if op == "LOOKUP" || op == "LINK to" {
			continue
		}
		code, node, parts := request("f")
		g.refused(op, code, node, parts, eROFS)
	}
	node := g.lookup(rootID, "f") // the control
	if fh := g.open(node, oRdonly); g.read(node, fh) != "x" {
		t.Error("a read-only share cannot be read")
	}
}

// TestPrograms: what lies in a share may be run in a guest, though nothing on Windows says of a
// file that it is a program.
func TestPrograms(t *testing.T) {
	g, root, _ := served(t, Options{Rules: compile(t, rules.Options{Mode: rules.ReadWrite})})
	put(t, root, "run.sh", "#!/bin/sh")
	g.create(rootID, "made.sh")
	for _, name := range []string{"run.sh", "made.sh"} {
		const mode = 40 + 60 // fuse_entry_out up to its attr, and that up to its mode
		if b := g.must(opLookup, rootID, name); le.Uint32(b[mode:])&0o170111 != 0o100111 {
			t.Errorf("%s has mode %o", name, le.Uint32(b[mode:]))
		}
	}
}
