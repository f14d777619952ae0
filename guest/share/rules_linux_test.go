package share

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// layout makes files on the host; a name that ends in '/' is a folder.
func layout(t testing.TB, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		at := filepath.Join(root, name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(at, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// walk looks a path up, part by part, and gives the last node; a part that is refused ends the test.
func (g *guest) walk(path string) uint64 {
	g.t.Helper()
	node := uint64(rootID)
	for part := range strings.SplitSeq(path, "/") {
		if path != "" {
			node = g.lookup(node, part)
		}
	}
	return node
}

// names lists a folder, with READDIR and with READDIRPLUS.
func (g *guest) names(node uint64) (plain, plus []string) {
	g.t.Helper()
	for _, op := range []opcode{opReaddir, opReaddirplus} {
		fh := le.Uint64(g.must(opOpendir, node, uint64(0)))
		var got []string
		for off := uint64(0); ; {
			d := g.must(op, node, readArgs(fh, off, 4096)...)
			if len(d) == 0 {
				break
			}
			for len(d) > 0 {
				if op == opReaddirplus {
					d = d[entryOutSize:]
				}
				off = le.Uint64(d[8:])
				n := int(le.Uint32(d[16:]))
				if name := string(d[direntSize : direntSize+n]); name != "." && name != ".." {
					got = append(got, name)
				}
				d = d[direntSize+(n+7)&^7:]
			}
		}
		g.must(opReleasedir, node, fh, uint64(0), uint64(0))
		slices.Sort(got)
		if op == opReaddir {
			plain = got
		} else {
			plus = got
		}
	}
	return plain, plus
}

// makers are the ways in which something can come to be under a name. from is a file of the guest's own in the root, and dir a
// folder of its own.
func makers(dir, from uint64) map[string]func(parent uint64, name string) (opcode, uint64, []any) {
	return map[string]func(uint64, string) (opcode, uint64, []any){
		"CREATE": func(p uint64, n string) (opcode, uint64, []any) {
			return opCreate, p, []any{uint32(oRdwr), uint32(0o644), uint64(0), n}
		},
		"MKNOD": func(p uint64, n string) (opcode, uint64, []any) {
			return opMknod, p, []any{uint32(modeRegular | 0o644), uint32(0), uint64(0), n}
		},
		"SYMLINK": func(p uint64, n string) (opcode, uint64, []any) { return opSymlink, p, []any{n, "own"} },
		"LINK":    func(p uint64, n string) (opcode, uint64, []any) { return opLink, p, []any{from, n} },
		"RENAME":  func(p uint64, n string) (opcode, uint64, []any) { return opRename, rootID, []any{p, "own", n} },
		"RENAME2": func(p uint64, n string) (opcode, uint64, []any) {
			return opRename2, rootID, []any{p, uint64(renameNoReplace), "own", n}
		},
		"EXCHANGE": func(p uint64, n string) (opcode, uint64, []any) {
			return opRename2, rootID, []any{p, uint64(renameExchange), "own", n}
		},
		"MKDIR":         func(p uint64, n string) (opcode, uint64, []any) { return opMkdir, p, []any{uint64(0o755), n} },
		"RENAME of dir": func(p uint64, n string) (opcode, uint64, []any) { return opRename, rootID, []any{p, "owndir", n} },
	}
}

// rw lays files out and serves them in a mode with the built-in rules, on each backend.
func ruled(t *testing.T, o rules.Options, files map[string]string, test func(t *testing.T, g *guest, root string)) {
	t.Helper()
	eachBackend(t, Options{Rules: compile(t, o), MinFree: 1}, func(t *testing.T, s *Server, root string) {
		layout(t, root, files)
		test(t, newGuest(t, s), root)
	})
}

// Hidden names are not there, in every mode; nothing can be made under them, whether they are there or not.
func TestHiddenNames(t *testing.T) {
	files := map[string]string{
		".env": "secret", "sub/.env.local": "secret", "sub/.SSH/id": "secret", "sub/tls.Key": "secret", "a/.e\u200bnv": "secret", "a/.env ": "secret",
		"seen": "seen", "sub/seen": "", ".env.example": "A=",
	}
	hidden := []string{".env", "sub/.env.local", "sub/.SSH", "sub/tls.Key", "a/.e\u200bnv", "a/.env ", "none.pem", "sub/.netrc", ".ENV", "a/id_rsa"}
	for _, mode := range []rules.Mode{rules.Review, rules.ReadOnly, rules.ReadWrite, rules.NoDelete} {
		t.Run(mode.String(), func(t *testing.T) {
			ruled(t, rules.Options{Mode: mode}, files, func(t *testing.T, g *guest, root string) {
				before := fingerprint(t, root)
				g.walk("sub/seen")
				g.walk(".env.example")
				for _, h := range hidden {
					dir, name := filepath.Split(h)
					g.refused("LOOKUP "+h, opLookup, g.walk(strings.TrimSuffix(dir, "/")), []any{name}, eNOENT)
				}
				for dir, want := range map[string][]string{"": {".env.example", "a", "seen", "sub"}, "sub": {"seen"}, "a": nil} {
					if plain, plus := g.names(g.walk(dir)); !slices.Equal(plain, want) || !slices.Equal(plus, want) {
						t.Errorf("in %q are listed %q and %q, want %q", dir, plain, plus, want)
					}
				}
				if got := fingerprint(t, root); got != before {
					t.Errorf("looking has changed\n%s\nto\n%s", before, got)
				}
				if !mode.Writes() {
					return
				}
				own, fh := g.create(rootID, "own")
				g.release(own, fh)
				dir := g.mkdir(rootID, "owndir")
				before = fingerprint(t, root)
				for what, make := range makers(dir, own) {
					for _, h := range hidden {
						at, name := filepath.Split(h)
						op, node, parts := make(g.walk(strings.TrimSuffix(at, "/")), name)
						g.refused(what+" "+h, op, node, parts, ePERM)
					}
				}
				for _, h := range hidden {
					at, name := filepath.Split(h)
					p := g.walk(strings.TrimSuffix(at, "/"))
					g.refused("UNLINK "+h, opUnlink, p, []any{name}, eNOENT)
					g.refused("RMDIR "+h, opRmdir, p, []any{name}, eNOENT)
					g.refused("RENAME "+h, opRename, p, []any{uint64(rootID), name, "stolen"}, eNOENT)
				}
				g.refused("RENAME of what holds some", opRename, rootID, []any{uint64(rootID), "sub", ".vscode"}, ePERM)
				if got := fingerprint(t, root); got != before {
					t.Errorf("refused requests have changed\n%s\nto\n%s", before, got)
				}
				controls(g, dir, own)
			})
		})
	}
}

// controls do, with names that no rule is about, all that was refused.
func controls(g *guest, dir, own uint64) {
	g.t.Helper()
	for what, make := range makers(dir, own) {
		if what == "EXCHANGE" {
			continue
		}
		name := "control " + what
		op, node, parts := make(rootID, name)
		g.must(op, node, parts...)
		switch what {
		case "RENAME", "RENAME2":
			g.must(opRename, rootID, uint64(rootID), name, "own")
		case "RENAME of dir":
			g.must(opRename, rootID, uint64(rootID), name, "owndir")
		}
	}
}

// H01, H02, H05: protected names are read and not changed, also where there are none; nor is anything put in the place of a
// folder that would hold them.
func TestProtectedNames(t *testing.T) {
	files := map[string]string{
		".git/config": "[core]", ".git/hooks/pre-commit": "#!", ".git/HEAD": "ref", ".git/modules/s/hooks/x": "#!", ".git/modules/s/HEAD": "", ".envrc": "x",
		"sub/.vscode/tasks.json": "{}", "work/.git": "gitdir: elsewhere", "file": "", "empty/.git/": "",
	}
	ruled(t, rules.Options{Mode: rules.ReadWrite}, files, func(t *testing.T, g *guest, root string) {
		own, fh := g.create(rootID, "own")
		g.write(own, fh, 0, "mine")
		g.release(own, fh)
		dir := g.mkdir(rootID, "owndir")
		g.must(opMkdir, dir, uint64(0o755), "hooks")
		link := le.Uint64(g.must(opSymlink, rootID, "ownlink", "owndir"))
		before := fingerprint(t, root)

		protected := []string{
			".git/config", ".git/hooks", ".git/hooks/pre-commit", ".git/hooks/new", ".git/CONFIG", ".git/config.worktree", ".git/modules/s/hooks",
			".git/modules/s/hooks/x", ".git/modules/s/config", ".envrc", ".ENVRC", "sub/.envrc", "sub/.vscode", "sub/.vscode/tasks.json", "sub/.vscode/new",
			".claude", "sub/.mcp.json", ".git/hook\u017f", ".envrc.", ".idea", "empty/.git/hooks", "empty/.git/config", "sub/x.lnk",
		}
		for what, make := range makers(dir, own) {
			for _, p := range protected {
				at, name := filepath.Split(p)
				op, node, parts := make(g.walk(strings.TrimSuffix(at, "/")), name)
				g.refused(what+" "+p, op, node, parts, ePERM)
			}
			for _, p := range []string{".git", "sub/.git", "sub/.GIT", ".git/info", ".git/modules", "sub/.cargo", "sub/.git ", "bare.git", "work/.git"} {
				if what == "MKDIR" {
					continue
				}
				at, name := filepath.Split(p)
				op, node, parts := make(g.walk(strings.TrimSuffix(at, "/")), name)
				g.refused(what+" in place of "+p, op, node, parts, ePERM)
			}
		}
		for _, p := range []string{".git/config", ".git/hooks/pre-commit", ".envrc", "sub/.vscode/tasks.json", ".git/modules/s/hooks/x", "work/.git"} {
			at, name := filepath.Split(p)
			parent, node := g.walk(strings.TrimSuffix(at, "/")), g.walk(p)
			g.release(node, g.open(node, oRdonly)) // it may be read
			for _, flags := range []uint32{oWronly, oRdwr, oRdonly | oTrunc, oWronly | oAppend} {
				g.refused(fmt.Sprintf("OPEN %#x %s", flags, p), opOpen, node, []any{flags, uint32(0)}, ePERM)
				g.refused(fmt.Sprintf("CREATE %#x %s", flags, p), opCreate, parent, []any{flags, uint32(0o644), uint64(0), name}, ePERM)
			}
			g.refused("SETATTR size "+p, opSetattr, node, setattrArgs(fattrSize, 0, 0, 0, 0), ePERM)
			if p != "work/.git" { // a folder of that name may have its mode changed
				g.refused("SETATTR mode "+p, opSetattr, node, setattrArgs(fattrMode, 0, 0, 0o777, 0), ePERM)
				g.refused("SETATTR time "+p, opSetattr, node, setattrArgs(fattrMtimeNow|fattrMtime, 0, 0, 0, 0), ePERM)
			}
			g.refused("UNLINK "+p, opUnlink, parent, []any{name}, ePERM)
			g.refused("RENAME away "+p, opRename, parent, []any{uint64(rootID), name, "away"}, ePERM)
			g.refused("LINK from "+p, opLink, rootID, []any{node, "alias"}, ePERM)
			g.refused("EXCHANGE "+p, opRename2, parent, []any{uint64(rootID), uint64(renameExchange), name, "own"}, ePERM)
			fh := g.open(node, oRdonly)
			g.refused("SETATTR size by handle "+p, opSetattr, node, setattrArgs(fattrSize|fattrFH, fh, 0, 0, 0), ePERM)
			g.refused("WRITE by a handle for reading "+p, opWrite, node, writeArgs(fh, 0, []byte("x")), eBADF)
			g.release(node, fh)
		}
		for _, p := range []string{".git", ".git/modules", ".git/hooks", "sub/.vscode"} { // ancestors, and protected folders, stay where they are
			at, name := filepath.Split(p)
			parent := g.walk(strings.TrimSuffix(at, "/"))
			g.refused("RENAME "+p, opRename, parent, []any{uint64(rootID), name, "away"}, ePERM)
			g.refused("EXCHANGE "+p, opRename2, parent, []any{uint64(rootID), uint64(renameExchange), name, "owndir"}, ePERM)
		}
		for _, p := range []string{".git/hooks", "sub/.vscode"} {
			at, name := filepath.Split(p)
			g.refused("RMDIR "+p, opRmdir, g.walk(strings.TrimSuffix(at, "/")), []any{name}, ePERM)
		}
		// Where protected names may lie at any depth, no link leads elsewhere, and no folder comes from elsewhere.
		modules := g.walk(".git/modules")
		g.refused("SYMLINK in modules", opSymlink, modules, []any{"evil", "../../owndir"}, ePERM)
		g.refused("RENAME of a link to modules", opRename, rootID, []any{modules, "ownlink", "evil"}, ePERM)
		g.refused("LINK of a link to modules", opLink, modules, []any{link, "evil"}, ePERM)
		g.refused("RENAME of a folder to modules", opRename, rootID, []any{modules, "owndir", "evil"}, eXDEV)
		g.refused("EXCHANGE with a folder in modules", opRename2, rootID, []any{modules, uint64(renameExchange), "owndir", "s"}, eXDEV)
		if got := fingerprint(t, root); got != before {
			t.Errorf("refused requests have changed\n%s\nto\n%s", before, got)
		}

		// What git does all day goes on, and so do ordinary names.
		git := g.walk(".git")
		index, fh := g.create(git, "index.lock")
		g.write(index, fh, 0, "index")
		g.release(index, fh)
		g.must(opRename, git, git, "index.lock", "index")
		g.must(opMkdir, git, uint64(0o755), "objects")
		g.must(opSetattr, git, setattrArgs(fattrMode, 0, 0, 0o700, 0)...)
		g.must(opCreate, g.walk(".git/modules/s"), uint32(oRdwr), uint32(0o644), uint64(0), "index")
		g.must(opMkdir, dir, uint64(0o755), ".git")
		g.must(opRmdir, dir, ".git")
		g.must(opRmdir, g.walk("empty"), ".git")
		g.must(opRename, rootID, uint64(rootID), "sub", "moved") // with what is protected in it
		controls(g, dir, own)
	})
}

// A folder comes to no place where other names below it are hidden or protected: programs copy then, and each name is judged.
func TestFoldersBetweenRules(t *testing.T) {
	files := map[string]string{
		".kube/config": "secret", "a/b": "", "node_modules/.tmp/x/.vscode/s": "", "top/secret/x": "", "fixtures/k.pem": "", "other/k.pem": "hidden",
	}
	ruled(t, rules.Options{Mode: rules.ReadWrite, Hide: []rules.List{{Pattern: "/top/secret", Origin: "test"}}}, files, func(t *testing.T, g *guest, root string) {
		for _, m := range [][2]string{{".kube", "kube"}, {"top", "down"}, {"a", "node_modules/a"}, {"other", "fixtures/other"}, {"fixtures", "fix"}, {"other", "testdata"}} {
			at, name := filepath.Split(m[1])
			g.refused("RENAME "+m[0]+" to "+m[1], opRename, rootID, []any{g.walk(strings.TrimSuffix(at, "/")), m[0], name}, eXDEV)
		}
		g.refused("LOOKUP", opLookup, g.walk(".kube"), []any{"config"}, eNOENT)
		g.refused("EXCHANGE", opRename2, rootID, []any{uint64(rootID), uint64(renameExchange), "a", "fixtures"}, eXDEV, eINVAL)
		for _, m := range [][2]string{{"a", "z"}, {"other", "others"}} { // the control
			g.must(opRename, rootID, uint64(rootID), m[0], m[1])
		}
		nm := g.walk("node_modules")
		g.must(opRename, g.walk("node_modules/.tmp"), nm, "x", "x") // as npm installs
		if _, e := g.call(opLookup, g.walk("node_modules/x"), ".vscode"); e != ok {
			t.Errorf("a package's own folder: %v", e)
		}
	})
}

// The user's own links and what a host's rename does under the server are no way round.
func TestHostMoves(t *testing.T) {
	ruled(t, rules.Options{Mode: rules.ReadWrite}, map[string]string{"plain": "x", "dir/f": "y"}, func(t *testing.T, g *guest, root string) {
		node, dir := g.walk("plain"), g.walk("dir")
		fh := g.open(node, oRdwr)
		want(t, "host rename", os.Rename(filepath.Join(root, "plain"), filepath.Join(root, ".env")), nil)
		want(t, "host rename", os.Rename(filepath.Join(root, "dir"), filepath.Join(root, ".ssh")), nil)
		g.refused("OPEN of what the host has hidden", opOpen, node, []any{uint64(0)}, eNOENT, eSTALE)
		g.refused("LOOKUP below what the host has hidden", opLookup, dir, []any{"f"}, eNOENT, eSTALE)
		g.refused("LOOKUP", opLookup, rootID, []any{".env"}, eNOENT)
		if got := g.read(node, fh); got != "x" { // it was open: as on every system
			t.Errorf("read %q", got)
		}
	})
}

// Without rules nothing is seen, not even the root; rules that are plain let everything through.
func TestNoRules(t *testing.T) {
	root := newFolder(t)
	layout(t, root, map[string]string{"f": "x", ".env": "y", ".git/config": "z"})
	serve := func(o Options) *guest {
		r, err := OpenRoot(root)
		if err != nil {
			t.Fatal(err)
		}
		s := New(r, o)
		t.Cleanup(func() { want(t, "close", s.Close(), nil) })
		return newGuest(t, s)
	}
	g := serve(Options{})
	g.refused("GETATTR", opGetattr, rootID, []any{uint64(0), uint64(0)}, eNOENT)
	g.refused("LOOKUP", opLookup, rootID, []any{"f"}, eNOENT)
	g.refused("OPENDIR", opOpendir, rootID, []any{uint64(0)}, eNOENT)
	g.refused("MKDIR", opMkdir, rootID, []any{uint64(0o755), "d"}, eROFS)
	g = serve(Options{Rules: plainRules(t, rules.ReadWrite)})
	for _, p := range []string{"f", ".env", ".git/config"} {
		g.open(g.walk(p), oRdwr)
	}
}

// rw-nodelete: the guest adds and edits, and destroys nothing that is there.
func TestNoDelete(t *testing.T) {
	files := map[string]string{"f": "contents", "g": "other", "empty": "", "d/e/": "", "d/x": "x"}
	ruled(t, rules.Options{Mode: rules.NoDelete}, files, func(t *testing.T, g *guest, root string) {
		before := fingerprint(t, root)
		f, d := g.walk("f"), g.walk("d")
		g.refused("UNLINK", opUnlink, rootID, []any{"f"}, ePERM)
		g.refused("RMDIR", opRmdir, d, []any{"e"}, ePERM)
		g.refused("OPEN with O_TRUNC", opOpen, f, []any{uint32(oWronly | oTrunc), uint32(0)}, ePERM)
		g.refused("OPEN with O_TRUNC, for reading", opOpen, f, []any{uint32(oRdonly | oTrunc), uint32(0)}, ePERM)
		g.refused("CREATE over it with O_TRUNC", opCreate, rootID, []any{uint32(oRdwr | oTrunc), uint32(0o644), uint64(0), "f"}, ePERM)
		g.refused("SETATTR size", opSetattr, f, setattrArgs(fattrSize, 0, 7, 0, 0), ePERM)
		g.refused("RENAME over", opRename, rootID, []any{uint64(rootID), "g", "f"}, ePERM)
		g.refused("RENAME of a folder over a folder", opRename, rootID, []any{d, "d", "e"}, ePERM, eINVAL)
		g.refused("RENAME2 over", opRename2, rootID, []any{uint64(rootID), uint64(renameNoReplace), "g", "f"}, eEXIST)
		fh := g.open(f, oRdwr)
		g.refused("SETATTR size by handle", opSetattr, f, setattrArgs(fattrSize|fattrFH, fh, 0, 0, 0), ePERM)
		for _, mode := range []uint32{fallocPunchHole | fallocKeepSize, fallocZeroRange, fallocZeroRange | fallocKeepSize} {
			g.refused("FALLOCATE", opFallocate, f, []any{fh, uint64(0), uint64(4), mode, uint32(0)}, ePERM)
		}
		if got := fingerprint(t, root); got != before {
			t.Errorf("refused requests have changed\n%s\nto\n%s", before, got)
		}
		// What may be done.
		g.write(f, fh, 0, "CON") // an edit in place
		g.must(opSetattr, f, setattrArgs(fattrSize, 0, 100, 0, 0)...)
		g.must(opSetattr, f, setattrArgs(fattrMode, 0, 0, 0o600, 0)...)
		g.release(f, fh)
		g.open(g.walk("empty"), oWronly|oTrunc) // nothing is lost
		g.must(opCreate, rootID, uint32(oRdwr|oTrunc), uint32(0o644), uint64(0), "new")
		g.must(opRename, rootID, uint64(rootID), "new", "newer")
		g.must(opMkdir, rootID, uint64(0o755), "made")
		g.must(opLink, rootID, f, "f2")
		if _, is := g.s.back.(*linuxBackend); is {
			g.must(opRename2, rootID, uint64(rootID), uint64(renameExchange), "f", "g")
			if c, _ := os.ReadFile(filepath.Join(root, "f")); string(c) != "other" {
				t.Errorf("after the exchange f has %q", c)
			}
		}
	})
	ruled(t, rules.Options{Mode: rules.ReadWrite}, files, func(t *testing.T, g *guest, root string) { // the control
		f := g.walk("f")
		g.must(opOpen, f, uint32(oWronly|oTrunc), uint32(0))
		g.must(opSetattr, f, setattrArgs(fattrSize, 0, 0, 0, 0)...)
		g.must(opRename, rootID, uint64(rootID), "g", "f")
		g.must(opUnlink, rootID, "f")
		g.must(opRmdir, g.walk("d"), "e")
	})
}

// A file that the host knows by another name as well, be it a protected one or one outside the folder, is not written to. The
// guest's own second names are.
func TestSecondNames(t *testing.T) {
	ruled(t, rules.Options{Mode: rules.ReadWrite}, map[string]string{".git/hooks/pre-commit": "#!", "one": "1"}, func(t *testing.T, g *guest, root string) {
		outside := filepath.Join(filepath.Dir(root), "store")
		want(t, "host write", os.WriteFile(outside, []byte("stored"), 0o644), nil)
		want(t, "host link", os.Link(outside, filepath.Join(root, "stored")), nil)
		want(t, "host link", os.Link(filepath.Join(root, ".git/hooks/pre-commit"), filepath.Join(root, "alias")), nil)
		defer os.Remove(outside)
		before := fingerprint(t, root)
		refused := func(what string, node uint64) {
			t.Helper()
			g.release(node, g.open(node, oRdonly))
			for _, flags := range []uint32{oWronly, oRdwr, oRdonly | oTrunc} {
				g.refused(what+": OPEN", opOpen, node, []any{flags, uint32(0)}, ePERM)
			}
			g.refused(what+": SETATTR size", opSetattr, node, setattrArgs(fattrSize, 0, 0, 0, 0), ePERM)
			g.refused(what+": SETATTR mode", opSetattr, node, setattrArgs(fattrMode, 0, 0, 0o777, 0), ePERM)
		}
		for _, name := range []string{"alias", "stored"} {
			refused(name, g.walk(name))
			g.refused("CREATE "+name, opCreate, rootID, []any{uint32(oWronly | oTrunc), uint32(0o644), uint64(0), name}, ePERM)
		}
		if got := fingerprint(t, root); got != before {
			t.Errorf("refused requests have changed\n%s\nto\n%s", before, got)
		}
		// Names that come and go make no room for a write.
		alias := g.walk("alias")
		g.must(opLink, rootID, alias, "alias2")
		refused("with a third name", alias)
		g.must(opUnlink, rootID, "alias2")
		refused("without it", alias)
		g.must(opLink, rootID, alias, "alias3")
		g.must(opUnlink, rootID, "alias")
		refused("under the third name", g.walk("alias3"))
		g.must(opLink, rootID, g.walk("alias3"), "alias4")
		g.create(rootID, "over")
		g.must(opRename, rootID, uint64(rootID), "over", "alias4")
		refused("after a rename over one", g.walk("alias3"))

		one := g.walk("one") // the control
		g.must(opLink, rootID, one, "two")
		g.must(opLink, rootID, one, "three")
		for _, name := range []string{"one", "two", "three"} {
			node := g.walk(name)
			fh := g.open(node, oRdwr)
			g.write(node, fh, 0, name)
			g.must(opSetattr, node, setattrArgs(fattrMode, 0, 0, 0o600, 0)...)
			g.release(node, fh)
		}
		g.must(opUnlink, rootID, "one")
		g.release(g.walk("two"), g.open(g.walk("two"), oRdwr))
	})
	t.Run("plain", func(t *testing.T) {
		eachBackend(t, Options{}, func(t *testing.T, s *Server, root string) {
			layout(t, root, map[string]string{"f": ""})
			want(t, "host link", os.Link(filepath.Join(root, "f"), filepath.Join(root, "g")), nil)
			g := newGuest(t, s)
			g.open(g.walk("g"), oRdwr)
		})
	})
}

// Access by protection of ancestors: also where the host has a link of that name.
func TestHostLinkAsAncestor(t *testing.T) {
	ruled(t, rules.Options{Mode: rules.ReadWrite}, map[string]string{"real/x": ""}, func(t *testing.T, g *guest, root string) {
		want(t, "host symlink", os.Symlink("real", filepath.Join(root, ".git")), nil)
		g.refused("UNLINK", opUnlink, rootID, []any{".git"}, ePERM)
		g.refused("RENAME", opRename, rootID, []any{uint64(rootID), ".git", "x"}, ePERM)
		g.refused("LOOKUP below it", opLookup, g.walk(".git"), []any{"x"}, eLOOP, eNOTDIR)
		var st unix.Stat_t
		want(t, "lstat", unix.Lstat(filepath.Join(root, ".git"), &st), nil)
	})
}
