package review

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// gitWorld is a host's repository with two commits, and a guest's copy of it.
func gitWorld(t *testing.T) (w *desk, guest string) {
	t.Helper()
	w = newDesk(t, map[string]string{"f": "one\n", "dir/g": "two\n"})
	guest = filepath.Join(filepath.Dir(w.host), "guest")
	git(t, w.host, "", "init", "-q", "-b", "main")
	commit(t, w.host, "first")
	w.write("f", strings.Repeat("a line\n", 2000))
	commit(t, w.host, "second")
	git(t, w.host, "", "repack", "-adq") // so that the host's index of a pack is read
	if err := os.CopyFS(guest, os.DirFS(w.host)); err != nil {
		t.Fatal(err)
	}
	return w, guest
}

func commit(t *testing.T, dir, message string) string {
	t.Helper()
	git(t, dir, "", "add", "-A")
	git(t, dir, "", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", message)
	return strings.TrimSpace(git(t, dir, "", "rev-parse", "HEAD"))
}

// bring tells the store what the guest has in .git, and imports it.
func bring(t *testing.T, w *desk, guest string, dry bool) (map[string]string, error) {
	t.Helper()
	w.serve()
	var list []Entry
	for _, e := range changesOf(t, w.host, guest, ".git", false) {
		if e.Kind == File && e.Target == "" {
			continue // an import has an entry for an empty file, this table has none
		}
		list = append(list, e)
	}
	w.guest(list...)
	got := map[string]string{}
	err := w.ImportGit(t.Context(), "desk", dry, func(e Event) error { got[e.Path] = e.Refused; return nil })
	return got, err
}

// TestGitImport: commits that were made inside can be fetched by hand, and
// nothing else of the guest's repository is on the host.
func TestGitImport(t *testing.T) {
	for _, packed := range []bool{false, true} {
		t.Run(fmt.Sprint("packed ", packed), func(t *testing.T) {
			w, guest := gitWorld(t)
			os.WriteFile(filepath.Join(guest, "f"), []byte(strings.Repeat("a line\n", 1000)+"changed\n"+strings.Repeat("a line\n", 1000)), 0o644)
			commit(t, guest, "third")
			git(t, guest, "", "checkout", "-q", "-b", "feature/x")
			os.Symlink("f", filepath.Join(guest, "link"))
			head := commit(t, guest, "fourth")
			git(t, guest, "", "-c", "user.name=a", "-c", "user.email=a@b", "tag", "-a", "-m", "tag", "v1")
			if packed {
				git(t, guest, "", "repack", "-adfq", "--depth=20")
				git(t, guest, "", "pack-refs", "--all")
			}
			refs := 3
			for name, text := range map[string]string{"hooks/post-checkout": "#!/bin/sh\ntouch /tmp/never\n", "config": "[core]\n\tfsmonitor = touch /tmp/never\n", "objects/info/alternates": "/etc\n"} {
				os.MkdirAll(filepath.Dir(filepath.Join(guest, ".git", name)), 0o755)
				os.WriteFile(filepath.Join(guest, ".git", name), []byte(text), 0o755)
			}
			if !packed { // a file that is none keeps nothing else back
				os.WriteFile(filepath.Join(guest, ".git/packed-refs"), []byte("x\n"), 0o644)
				refs = 4
			}
			config, _ := os.ReadFile(filepath.Join(w.host, ".git/config"))
			before := tree(t, filepath.Join(w.host, ".git"))
			if got, err := bring(t, w, guest, true); err != nil || got[".git/refs/carrel/desk/heads/feature/x"] != "" || tree(t, filepath.Join(w.host, ".git")) != before {
				t.Fatalf("dry run: %v, %v", got, err)
			}
			got, err := bring(t, w, guest, false)
			if err != nil || len(got) != refs {
				t.Fatalf("%v, %v", got, err)
			}
			for ref, why := range got {
				if (why != "") != strings.HasSuffix(ref, "/packed-refs") {
					t.Errorf("%s: %s", ref, why)
				}
			}
			if out := git(t, w.host, "", "fsck", "--full", "--strict", "--no-dangling"); strings.TrimSpace(out) != "" {
				t.Errorf("git fsck: %s", out)
			}
			if is := strings.TrimSpace(git(t, w.host, "", "rev-parse", "refs/carrel/desk/heads/feature/x")); is != head {
				t.Errorf("the ref is %s, want %s", is, head)
			}
			if is := git(t, w.host, "", "diff", "--stat", "refs/carrel/desk/heads/feature/x^{tree}", "refs/carrel/desk/tags/v1^{tree}"); is != "" {
				t.Errorf("the tag is %s", is)
			}
			if now, _ := os.ReadFile(filepath.Join(w.host, ".git/config")); !bytes.Equal(now, config) {
				t.Errorf("the config is %s", now)
			}
			for _, n := range []string{"hooks/post-checkout", "objects/info/alternates", "refs/heads/feature", "packed-refs"} {
				if _, err := os.Lstat(filepath.Join(w.host, ".git", n)); err == nil && n != "packed-refs" {
					t.Errorf("%s came along", n)
				}
			}
			if left := tree(t, filepath.Join(w.host, ".git")); strings.Contains(left, "tmp_obj") || strings.Contains(left, ".carrel ") {
				t.Errorf("a temporary name is left:\n%s", left)
			}
			if got, err := bring(t, w, guest, false); err != nil || got[".git/refs/carrel/desk/heads/feature/x"] != "" {
				t.Errorf("again: %v, %v", got, err)
			}
		})
	}
}

// looseObject puts an object into a guest's repository as it likes it.
func looseObject(t *testing.T, guest, kind, content string) string {
	t.Helper()
	whole := fmt.Sprintf("%s %d\x00%s", kind, len(content), content)
	sum := sha1.Sum([]byte(whole))
	putLoose(t, guest, hex.EncodeToString(sum[:]), whole)
	return hex.EncodeToString(sum[:])
}

func putLoose(t *testing.T, guest, id, whole string) {
	t.Helper()
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	z.Write([]byte(whole))
	z.Close()
	p := filepath.Join(guest, ".git/objects", id[:2], id[2:])
	os.MkdirAll(filepath.Dir(p), 0o755)
	os.Remove(p)
	if err := os.WriteFile(p, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func rawID(t *testing.T, id string) string {
	t.Helper()
	b, err := hex.DecodeString(id)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestGitImportHostile: each ref is refused for its reason, and the good one
// beside them is brought.
func TestGitImportHostile(t *testing.T) {
	w, guest := gitWorld(t)
	os.WriteFile(filepath.Join(guest, "f"), []byte("good\n"), 0o644)
	commit(t, guest, "good")
	blob := looseObject(t, guest, "blob", "x")
	commitOf := func(tree string, more string) string {
		return looseObject(t, guest, "commit", "tree "+tree+"\n"+more+"author a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n\nm\n")
	}
	treeOf := func(mode, name, id string) string {
		return looseObject(t, guest, "tree", mode+" "+name+"\x00"+rawID(t, id))
	}
	fine := treeOf("100644", "x", blob)
	none := strings.Repeat("12", 20)
	wrong := strings.Repeat("34", 20)
	putLoose(t, guest, wrong, "commit 1\x00x")
	bomb := strings.Repeat("56", 20)
	putLoose(t, guest, bomb, "blob 10\x00"+strings.Repeat("0", 64<<20))
	refs := map[string]string{
		"heads/fine":       commitOf(fine, ""),
		"heads/dotgit":     commitOf(treeOf("40000", ".git", fine), ""),
		"heads/alias":      commitOf(treeOf("100644", ".g\u200cit", blob), ""),
		"heads/upper":      commitOf(treeOf("40000", ".GIT", fine), ""),
		"heads/short":      commitOf(treeOf("40000", "git~1", fine), ""),
		"heads/up":         commitOf(treeOf("40000", "..", fine), ""),
		"heads/slash":      commitOf(treeOf("100644", "a/b", blob), ""),
		"heads/mode":       commitOf(treeOf("100600", "x", blob), ""),
		"heads/setuid":     commitOf(treeOf("104755", "x", blob), ""),
		"heads/modules":    commitOf(treeOf("120000", ".gitmodules", blob), ""),
		"heads/no-tree":    commitOf(none, ""),
		"heads/no-blob":    commitOf(treeOf("100644", "x", none), ""),
		"heads/no-parent":  commitOf(fine, "parent "+none+"\n"),
		"heads/blob-tree":  commitOf(blob, ""),
		"heads/tree-blob":  commitOf(treeOf("100644", "x", fine), ""),
		"heads/wrong":      wrong,
		"heads/bomb":       bomb,
		"heads/not-an-id":  "ref: refs/heads/main",
		"heads/link":       "../../../../etc/passwd",
		"heads/x.lock":     commitOf(fine, ""),
		"heads/@{1}":       commitOf(fine, ""),
		"heads/-x":         commitOf(fine, ""),
		"heads/sp ace":     commitOf(fine, ""),
		"heads/.hidden":    commitOf(fine, ""),
		"heads/no-author":  looseObject(t, guest, "commit", "tree "+fine+"\n\nm\n"),
		"tags/wrong-type":  looseObject(t, guest, "tag", "object "+blob+"\ntype commit\ntag x\ntagger a <a@b> 1 +0000\n\nm\n"),
		"heads/host-tree":  commitOf(treeOf("100644", "x", strings.TrimSpace(git(t, w.host, "", "rev-parse", "HEAD^{tree}"))), ""),
		"heads/host-delta": commitOf(strings.TrimSpace(git(t, w.host, "", "rev-parse", "HEAD:f")), ""),
		"heads/out-of":     commitOf(looseObject(t, guest, "tree", "100644 b\x00"+rawID(t, blob)+"100644 a\x00"+rawID(t, blob)), ""),
		"heads/cut-tree":   commitOf(looseObject(t, guest, "tree", "100644 b\x00abc"), ""),
		"heads/sha256-too": strings.Repeat("ab", 32),
	}
	for name, id := range refs {
		p := filepath.Join(guest, ".git/refs", name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, []byte(id+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := bring(t, w, guest, false)
	if err != nil {
		t.Fatal(err)
	}
	for name := range refs {
		why, told := got[".git/refs/carrel/desk/"+name]
		if fine := name == "heads/fine"; !told || fine != (why == "") {
			t.Errorf("%s: %q (told %v)", name, why, told)
		}
	}
	if why := got[".git/refs/carrel/desk/heads/main"]; why != "" {
		t.Errorf("control: %s", why)
	}
	if out := git(t, w.host, "", "fsck", "--full", "--strict", "--no-dangling"); strings.TrimSpace(out) != "" {
		t.Errorf("git fsck: %s", out)
	}
	if out := git(t, w.host, "", "for-each-ref", "refs/carrel"); strings.Count(out, "\n") != 2 {
		t.Errorf("refs: %s", out)
	}
}

// TestGitPackDamaged: a pack that was changed anywhere brings either what was
// committed or nothing, and never ends this process.
func TestGitPackDamaged(t *testing.T) {
	w, guest := gitWorld(t)
	for n := range 20 {
		os.WriteFile(filepath.Join(guest, "f"), []byte(strings.Repeat("a line\n", 500)+fmt.Sprint(n)), 0o644)
		commit(t, guest, fmt.Sprint("commit ", n))
	}
	git(t, guest, "", "repack", "-adfq")
	packs, _ := filepath.Glob(filepath.Join(guest, ".git/objects/pack/*.pack"))
	if len(packs) != 1 {
		t.Fatal(packs)
	}
	os.Chmod(packs[0], 0o644)
	whole, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for n := range 60 {
		b := bytes.Clone(whole)
		switch n % 3 {
		case 0:
			b = b[:r.IntN(len(b))]
		case 1:
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		case 2:
			at := r.IntN(len(b) - 20)
			for i := range 20 {
				b[at+i] = byte(r.IntN(256))
			}
		}
		if err := os.WriteFile(packs[0], b, 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := bring(t, w, guest, true)
		if err != nil {
			t.Fatal(err)
		}
		if got[".git/refs/carrel/desk/heads/main"] != "" {
			refused++
		}
	}
	if refused < 40 {
		t.Errorf("only %d of 60 damaged packs were refused", refused)
	}
	os.WriteFile(packs[0], whole, 0o644)
	if got, err := bring(t, w, guest, false); err != nil || got[".git/refs/carrel/desk/heads/main"] != "" {
		t.Errorf("control: %v, %v", got, err)
	}
	git(t, w.host, "", "fsck", "--full", "--strict")
}

// TestGitImportNowhere: a host without a plain repository is not written to.
func TestGitImportNowhere(t *testing.T) {
	w, guest := gitWorld(t)
	os.WriteFile(filepath.Join(guest, "f"), []byte("good\n"), 0o644)
	commit(t, guest, "good")
	w.serve()
	w.guest(changesOf(t, w.host, guest, ".git", false)...)
	os.Rename(filepath.Join(w.host, ".git"), filepath.Join(filepath.Dir(w.host), "away"))
	for _, put := range []func(){
		func() {},
		func() { w.write(".git", "gitdir: ../away\n") },
		func() { os.Remove(filepath.Join(w.host, ".git")); w.write(".git", "-> ../away") },
	} {
		put()
		before := tree(t, filepath.Join(filepath.Dir(w.host), "away"))
		var own *Error
		if err := w.ImportGit(t.Context(), "desk", false, func(Event) error { return nil }); !errors.As(err, &own) || own.Code != "no_repository" {
			t.Errorf("%v", err)
		}
		if tree(t, filepath.Join(filepath.Dir(w.host), "away")) != before {
			t.Error("it was written to")
		}
	}
}
