package share

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"
)

// roots opens a folder with each backend that this host has.
func roots(t *testing.T, dir string) map[string]*Root {
	t.Helper()
	all := map[string]*Root{}
	for name, pin := range map[string]func(string) (backend, stat, error){"own": pin, "portable": pinPortable} {
		r, err := openRoot(dir, pin)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		all[name] = r
	}
	return all
}

func realDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestFolder does each operation once, and each where it would lead outside.
func TestFolder(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("links need a right of their own")
	}
	for name := range roots(t, realDir(t)) {
		t.Run(name, func(t *testing.T) {
			dir, outside := realDir(t), realDir(t)
			r := roots(t, dir)[name]
			secret := filepath.Join(outside, "secret")
			if err := errors.Join(os.WriteFile(secret, []byte("secret"), 0o600), os.MkdirAll(filepath.Join(dir, "a/b"), 0o755),
				os.Symlink(outside, filepath.Join(dir, "out")), os.Symlink(secret, filepath.Join(dir, "a/link"))); err != nil {
				t.Fatal(err)
			}
			f, err := r.Folder("a")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			h, err := f.Create("new", 0o6755)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.WriteAt([]byte("hello"), 0); err != nil {
				t.Fatal(err)
			}
			at := time.Unix(1_000_000_000, 0)
			if err := errors.Join(h.Chmod(0o6755|os.ModeSetuid), h.SetModified(at), h.Sync(), h.Close(), f.Rename("new", "file"), f.Sync(),
				f.Mkdir("c", 0o700), f.Chmod("c", 0o750), f.Symlink("../..", "up")); err != nil {
				t.Fatal(err)
			}
			info, err := f.Lstat("file")
			if err != nil || info.Mode != 0o755 || info.Size != 5 || !info.Mtime.Equal(at) {
				t.Errorf("the file is %+v, %v", info, err)
			}
			real, _ := os.Lstat(filepath.Join(dir, "a/file"))
			if real == nil || real.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
				t.Errorf("on the host it is %v", real)
			}
			if target, err := f.Readlink("up"); err != nil || target != "../.." {
				t.Errorf("the link points to %q, %v", target, err)
			}
			var names []string
			if err := f.Names(func(n string) bool { names = append(names, n); return true }); err != nil {
				t.Error(err)
			}
			slices.Sort(names)
			if !slices.Equal(names, []string{"b", "c", "file", "link", "up"}) {
				t.Errorf("it has %q", names)
			}
			if err := f.Rename("file", "c"); !errors.Is(err, fs.ErrExist) {
				t.Errorf("a rename over a folder: %v", err)
			}
			if err := f.Exchange("file", "up"); err == nil {
				if i, _ := f.Lstat("up"); i.Size != 5 || i.Mode.Type() != 0 {
					t.Errorf("after an exchange it is %+v", i)
				}
				f.Exchange("file", "up")
			} else if !errors.Is(err, errors.ErrUnsupported) {
				t.Error(err)
			}

			// None of this may reach what is outside.
			for _, p := range []string{"out", "..", "../x", "a/../..", "/", "a//b", "a/", ".", "a/\x00"} {
				if f, err := r.Folder(p); err == nil {
					t.Errorf("the folder %q was opened", p)
					f.Close()
				}
			}
			for _, n := range []string{"", ".", "..", "b/x", "/", "../out"} {
				if _, err := f.Create(n, 0o600); err == nil {
					t.Errorf("%q was made", n)
				}
				if err := errors.Join(f.Unlink(n)); err == nil {
					t.Errorf("%q was removed", n)
				}
			}
			if _, _, err := f.Open("link"); err == nil {
				t.Error("a link was opened")
			}
			if err := f.Chmod("link", 0o777); err == nil {
				t.Error("a link has another mode")
			}
			f.SetModified("link", at)
			if info, err := os.Stat(secret); err != nil || info.Mode() != 0o600 || info.ModTime().Equal(at) {
				t.Errorf("what the link points to has changed: %v, %v", info, err)
			}
			if _, err := r.Folder("a/link"); !IsAstray(err) {
				t.Errorf("a link for a folder: %v", err)
			}
			if err := errors.Join(f.Unlink("link"), f.Unlink("up"), f.Unlink("file"), f.Rmdir("b"), f.Rmdir("c")); err != nil {
				t.Error(err)
			}
			if _, err := f.Lstat("file"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what was removed: %v", err)
			}
		})
	}
}

// TestFolderStays: a folder that was opened stays that one when its name comes to mean another.
func TestFolderStays(t *testing.T) {
	for name, r := range roots(t, realDir(t)) {
		t.Run(name, func(t *testing.T) {
			dir := r.Path()
			os.RemoveAll(filepath.Join(dir, "a"))
			os.RemoveAll(filepath.Join(dir, "moved"))
			if err := os.Mkdir(filepath.Join(dir, "a"), 0o755); err != nil {
				t.Fatal(err)
			}
			f, err := r.Folder("a")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "moved")); err != nil {
				t.Skip(err) // Windows holds on to open folders
			}
			outside := realDir(t)
			if err := os.Symlink(outside, filepath.Join(dir, "a")); err != nil {
				t.Skip(err)
			}
			h, err := f.Create("x", 0o600)
			if err != nil {
				t.Fatal(err)
			}
			h.Close()
			if _, err := os.Lstat(filepath.Join(dir, "moved/x")); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(filepath.Join(outside, "x")); err == nil {
				t.Error("it was made outside")
			}
		})
	}
}
