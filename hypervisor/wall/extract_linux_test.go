package wall

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/erofs/go-erofs"
)

// image writes an EROFS file and returns its path. Two names in it are there to be
// altered: aaaaaaaaaa is a folder with a file, bbbbbbbbbb a link to outside.
func image(t testing.TB, outside string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.erofs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := erofs.Create(f)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put := func(name string, mode fs.FileMode, content string) {
		t.Helper()
		g, err := w.Create(name)
		check(err)
		_, err = g.Write([]byte(content))
		check(err)
		check(g.Close())
		check(w.Chmod(name, mode))
		check(w.Chtimes(name, time.Unix(1e9, 0), time.Unix(1e9, 0)))
	}
	check(w.Mkdir("/aaaaaaaaaa", 0o755))
	put("/aaaaaaaaaa/cccc", 0o644, "inside\n")
	check(w.Symlink(outside, "/bbbbbbbbbb"))
	check(w.Mkdir("/usr", 0o755))
	check(w.Mkdir("/usr/bin", 0o555))
	put("/usr/bin/sudo", fs.ModeSetuid|fs.ModeSetgid|0o4755, strings.Repeat("x", 10000))
	check(w.Mkdir("/tmp", fs.ModeSticky|0o777))
	check(w.Chmod("/tmp", fs.ModeSticky|0o777))
	check(w.Symlink("/etc", "/run"))
	check(w.Mknod("/null", syscall.S_IFCHR|0o666, 0x103))
	check(w.Close())
	return path
}

// I13, I14: what is unpacked has the image's files, modes and times; no device, no set-user-ID bit; and where
// a driver mounts there is a folder, whatever the image has.
func TestExtracted(t *testing.T) {
	canary := t.TempDir()
	tree, err := Extracted(t.Context(), image(t, canary))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(tree, "aaaaaaaaaa/cccc")); err != nil || string(b) != "inside\n" {
		t.Errorf("file: %q, %v", b, err)
	}
	fi, err := os.Lstat(filepath.Join(tree, "usr/bin/sudo"))
	if err != nil || fi.Mode() != 0o755 || fi.Size() != 10000 || !fi.ModTime().Equal(time.Unix(1e9, 0)) {
		t.Errorf("sudo: %v %v, expected -rwxr-xr-x without other bits, 10000 bytes, of 2001", fi, err)
	}
	if to, err := os.Readlink(filepath.Join(tree, "bbbbbbbbbb")); err != nil || to != canary {
		t.Errorf("link: %q %v", to, err)
	}
	if _, err := os.Lstat(filepath.Join(tree, "null")); !os.IsNotExist(err) {
		t.Errorf("a device was made on the host: %v", err)
	}
	for d, mode := range map[string]fs.FileMode{"run": fs.ModeDir | 0o755, "proc": fs.ModeDir | 0o755, "tmp": fs.ModeDir | fs.ModeSticky | 0o777} {
		if fi, err := os.Lstat(filepath.Join(tree, d)); err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v %v, expected %v", d, fi, err, mode)
		}
	}
	if fi, err := os.Lstat(tree); err != nil || fi.Mode().Perm()&0o022 != 0 {
		t.Errorf("the tree's root: %v %v", fi, err)
	}
	// The second start finds it.
	before, _ := os.Lstat(filepath.Join(tree, "aaaaaaaaaa/cccc"))
	again, err := Extracted(t.Context(), filepath.Join(filepath.Dir(tree), "root.erofs"))
	after, _ := os.Lstat(filepath.Join(again, "aaaaaaaaaa/cccc"))
	if err != nil || again != tree || before.Sys().(*syscall.Stat_t).Ino != after.Sys().(*syscall.Stat_t).Ino {
		t.Errorf("the second time: %s, %v", again, err)
	}
}

// I01, I14: names that would lead out, and one that is a folder and a link, are refused whole: nothing is outside,
// and no tree is there. The control is the same image, not altered (TestExtracted).
func TestExtractRefuses(t *testing.T) {
	for what, edit := range map[string][2]string{
		"up":                    {"aaaaaaaaaa", "../../evil"},
		"a slash":               {"aaaaaaaaaa", "bbb/../../"},
		"a link and a folder":   {"aaaaaaaaaa", "bbbbbbbbbb"},
		"an absolute path":      {"aaaaaaaaaa", "/tmp/evil1"},
		"a damaged super block": {"\xe2\xe1\xf5\xe0", "\xe2\xe1\xf5\xe1"},
	} {
		t.Run(what, func(t *testing.T) {
			canary := t.TempDir()
			path := image(t, canary)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			bad := bytes.Replace(b, []byte(edit[0]), []byte(edit[1]), 1)
			if bytes.Equal(bad, b) {
				t.Fatal("nothing was altered")
			}
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if tree, err := Extracted(t.Context(), path); err == nil {
				t.Errorf("unpacked to %s", tree)
			}
			if _, err := os.Lstat(filepath.Join(filepath.Dir(path), treeName)); !os.IsNotExist(err) {
				t.Errorf("a tree is there: %v", err)
			}
			for _, dir := range []string{canary, filepath.Dir(filepath.Dir(path))} {
				_ = filepath.WalkDir(dir, func(p string, _ fs.DirEntry, _ error) error {
					if strings.Contains(p, "evil") || filepath.Dir(p) == canary {
						t.Errorf("%s was made outside", p)
					}
					return nil
				})
			}
		})
	}
}

// FuzzExtract alters an image anywhere. Whatever comes of it lies beneath one folder.
func FuzzExtract(f *testing.F) {
	base, err := os.ReadFile(image(f, "/nowhere"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(1024), []byte{0})
	f.Add(uint32(1100), []byte("../../../evil"))
	f.Add(uint32(4096), bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, at uint32, with []byte) {
		b := bytes.Clone(base)
		copy(b[int(at)%len(b):], with)
		top := t.TempDir()
		dir := filepath.Join(top, "a", "b", "c")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "root.erofs")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = Extracted(t.Context(), path)
		for _, d := range []string{top, filepath.Join(top, "a"), filepath.Join(top, "a", "b")} {
			if es, _ := os.ReadDir(d); len(es) != 1 {
				t.Fatalf("%s has %v", d, es)
			}
		}
		if err := removeTree(dir); err != nil {
			t.Fatal(err)
		}
	})
}
