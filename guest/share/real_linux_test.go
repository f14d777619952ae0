package share

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var presented = Options{UID: 1000, GID: 1000}

// want reports an error that is not the expected one; nil expects success.
func want(t *testing.T, what string, got error, expected error) {
	t.Helper()
	if !errors.Is(got, expected) || expected == nil && got != nil {
		t.Errorf("%s: %v, want %v", what, got, expected)
	}
}

func TestRealFileOperations(t *testing.T) {
	eachBackend(t, presented, func(t *testing.T, s *Server, root string) {
		mnt := hostMount(t, s, root)
		at := func(name string) string { return filepath.Join(mnt, name) }
		host := func(name string) string { return filepath.Join(root, name) }

		want(t, "mkdir", os.Mkdir(at("d"), 0o755), nil)
		want(t, "write", os.WriteFile(at("d/f"), []byte("hello"), 0o644), nil)
		got, err := os.ReadFile(host("d/f"))
		want(t, "host reads", err, nil)
		if string(got) != "hello" {
			t.Errorf("host reads %q", got)
		}
		var st unix.Stat_t
		want(t, "stat", unix.Stat(at("d/f"), &st), nil)
		if st.Uid != 1000 || st.Gid != 1000 {
			t.Errorf("shown as %d:%d", st.Uid, st.Gid)
		}
		want(t, "host stat", unix.Stat(host("d/f"), &st), nil)
		if int(st.Uid) != os.Getuid() {
			t.Errorf("on the host it belongs to %d", st.Uid)
		}

		want(t, "exclusive create over a file", tryOpen(at("d/f"), os.O_CREATE|os.O_EXCL|os.O_WRONLY), unix.EEXIST)
		want(t, "open with O_TRUNC", tryOpen(at("d/f"), os.O_WRONLY|os.O_TRUNC), nil)
		want(t, "host stat", unix.Stat(host("d/f"), &st), nil)
		if st.Size != 0 {
			t.Errorf("O_TRUNC left %d bytes", st.Size)
		}
		want(t, "append", appendTo(at("d/f"), "one"), nil)
		want(t, "append", appendTo(at("d/f"), "two"), nil)
		if got, _ := os.ReadFile(host("d/f")); string(got) != "onetwo" {
			t.Errorf("appended: %q", got)
		}
		want(t, "truncate", os.Truncate(at("d/f"), 3), nil)
		if got, _ := os.ReadFile(at("d/f")); string(got) != "one" {
			t.Errorf("truncated: %q", got)
		}

		want(t, "chmod", os.Chmod(at("d/f"), 0o600), nil)
		when := time.Unix(1_000_000_000, 0)
		want(t, "chtimes", os.Chtimes(at("d/f"), when, when), nil)
		info, err := os.Stat(host("d/f"))
		want(t, "host stat", err, nil)
		if info.Mode().Perm() != 0o600 || !info.ModTime().Equal(when) {
			t.Errorf("host: %v %v", info.Mode(), info.ModTime())
		}

		want(t, "symlink", os.Symlink("../outside/canary", at("l")), nil)
		target, err := os.Readlink(at("l"))
		want(t, "readlink", err, nil)
		if target != "../outside/canary" {
			t.Errorf("readlink: %q", target)
		}
		want(t, "link", os.Link(at("d/f"), at("hard")), nil)
		want(t, "stat of the link", unix.Stat(at("hard"), &st), nil)
		var other unix.Stat_t
		want(t, "stat", unix.Stat(at("d/f"), &other), nil)
		if st.Ino != other.Ino || st.Nlink != 2 {
			t.Errorf("hard link: inode %d and %d, %d links", st.Ino, other.Ino, st.Nlink)
		}

		want(t, "rename", os.Rename(at("d/f"), at("d/g")), nil)
		want(t, "rename no replace", unix.Renameat2(unix.AT_FDCWD, at("d/g"), unix.AT_FDCWD, at("hard"), unix.RENAME_NOREPLACE), unix.EEXIST)
		want(t, "rmdir of a full folder", os.Remove(at("d")), unix.ENOTEMPTY)
		want(t, "rename of a folder", os.Rename(at("d"), at("e")), nil)
		if got, err := os.ReadFile(at("e/g")); string(got) != "one" || err != nil {
			t.Errorf("below the renamed folder: %q %v", got, err)
		}
		want(t, "unlink", os.Remove(at("e/g")), nil)
		want(t, "rmdir", os.Remove(at("e")), nil)
		want(t, "stat of nothing", tryOpen(at("e/g"), os.O_RDONLY), unix.ENOENT)

		var fs unix.Statfs_t
		want(t, "statfs", unix.Statfs(mnt, &fs), nil)
		if fs.Namelen != 255 || fs.Blocks == 0 || uint64(fs.Bsize)*fs.Bavail > 64<<30 {
			t.Errorf("statfs: %+v", fs)
		}
	})
}

// A program may go on with a file whose name is gone: fstat, read, write, truncate, and then give it a name back in no way.
func TestRealUnlinkedButOpen(t *testing.T) {
	eachBackend(t, presented, func(t *testing.T, s *Server, root string) {
		mnt := hostMount(t, s, root)
		f, err := os.Create(filepath.Join(mnt, "f"))
		want(t, "create", err, nil)
		defer f.Close()
		want(t, "unlink", os.Remove(f.Name()), nil)
		_, err = f.WriteString("still here")
		want(t, "write", err, nil)
		time.Sleep(1100 * time.Millisecond) // past the attributes' validity, so that fstat asks the server
		info, err := f.Stat()
		want(t, "fstat", err, nil)
		if err == nil && info.Size() != 10 {
			t.Errorf("size %d", info.Size())
		}
		want(t, "ftruncate", f.Truncate(5), nil)
		want(t, "fchmod", f.Chmod(0o600), nil)
		got := make([]byte, 10)
		n, err := f.ReadAt(got, 0)
		want(t, "read", err, io.EOF)
		if string(got[:n]) != "still" {
			t.Errorf("read %q", got[:n])
		}
	})
}

func TestRealListing(t *testing.T) {
	eachBackend(t, presented, func(t *testing.T, s *Server, root string) {
		mnt := hostMount(t, s, root)
		expected := map[string]bool{}
		for i := range 3000 {
			name := filepath.Join(root, string(bytes.Repeat([]byte{'a' + byte(i%26)}, 1+i%200))+time.Duration(i).String())
			want(t, "host create", os.WriteFile(name, nil, 0o644), nil)
			expected[filepath.Base(name)] = true
		}
		for range 2 {
			entries, err := os.ReadDir(mnt)
			want(t, "readdir", err, nil)
			seen := map[string]bool{}
			for _, e := range entries {
				if seen[e.Name()] {
					t.Fatalf("%q twice", e.Name())
				}
				seen[e.Name()] = true
				if _, err := e.Info(); err != nil || !expected[e.Name()] {
					t.Fatalf("%q: %v", e.Name(), err)
				}
			}
			if len(seen) != len(expected) {
				t.Fatalf("%d entries, want %d", len(seen), len(expected))
			}
		}
		want(t, "rm -r", os.RemoveAll(filepath.Join(mnt, "nothing")), nil)
		d, err := os.Open(mnt)
		want(t, "open", err, nil)
		defer d.Close()
		removed := 0
		for {
			names, err := d.Readdirnames(100) // removing while listing, as rm -r does
			if errors.Is(err, io.EOF) {
				break
			}
			want(t, "readdirnames", err, nil)
			for _, n := range names {
				want(t, "unlink", os.Remove(filepath.Join(mnt, n)), nil)
				removed++
			}
		}
		if removed != len(expected) {
			t.Errorf("removed %d of %d", removed, len(expected))
		}
	})
}

func TestRealBulk(t *testing.T) {
	eachBackend(t, presented, func(t *testing.T, s *Server, root string) {
		mnt := hostMount(t, s, root)
		data := make([]byte, 9<<20+12345)
		chacha := rand.NewChaCha8([32]byte{1})
		_, _ = chacha.Read(data)
		want(t, "write", os.WriteFile(filepath.Join(mnt, "big"), data, 0o644), nil)
		for _, path := range []string{filepath.Join(root, "big"), filepath.Join(mnt, "big")} {
			got, err := os.ReadFile(path)
			want(t, "read "+path, err, nil)
			if sha256.Sum256(got) != sha256.Sum256(data) {
				t.Errorf("%s: other bytes came back", path)
			}
		}
	})
}

// What the host changes is seen, also after the guest has cached it: contents at the next open a second later, a file that was
// replaced as another file.
func TestRealHostEdits(t *testing.T) {
	eachBackend(t, presented, func(t *testing.T, s *Server, root string) {
		host, guest := filepath.Join(root, "f"), filepath.Join(hostMount(t, s, root), "f")
		want(t, "host write", os.WriteFile(host, []byte("first"), 0o644), nil)
		old := time.Now().Add(-time.Hour)
		want(t, "host chtimes", os.Chtimes(host, old, old), nil)
		for range 2 { // the second open may keep what the first has cached
			got, err := os.ReadFile(guest)
			want(t, "read", err, nil)
			if string(got) != "first" {
				t.Fatalf("read %q", got)
			}
		}
		open, err := os.Open(guest)
		want(t, "open", err, nil)
		defer open.Close()

		want(t, "host write in place", os.WriteFile(host, []byte("FIRST"), 0o644), nil)
		eventually(t, coherent, func() bool { got, _ := os.ReadFile(guest); return string(got) == "FIRST" }, "the new contents")

		want(t, "host write", os.WriteFile(host+".new", []byte("third"), 0o600), nil)
		want(t, "host replace", os.Rename(host+".new", host), nil)
		eventually(t, coherent, func() bool { got, _ := os.ReadFile(guest); return string(got) == "third" }, "the new file")
		got := make([]byte, 5)
		_, err = open.ReadAt(got, 0)
		want(t, "read of the old file", err, nil)
		if string(got) != "FIRST" {
			t.Errorf("an open file became another: %q", got)
		}
		want(t, "host remove", os.Remove(host), nil)
		eventually(t, coherent, func() bool { _, err := os.Stat(guest); return errors.Is(err, unix.ENOENT) }, "the end of the file")
	})
}

func eventually(t *testing.T, within time.Duration, is func() bool, what string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("not seen within %v: %s", within, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func tryOpen(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0o644)
	if err == nil {
		err = f.Close()
	}
	return err
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
