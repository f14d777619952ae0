package share

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestDifferential does the same random operations in a plain folder and, through the kernel, in a share: the same errors, the
// same contents, the same trees. (No hard links: two names of one file are two nodes, coherent only after a second.)
func TestDifferential(t *testing.T) {
	seed := uint64(os.Getpid())
	t.Logf("seed %d", seed)
	for name, pin := range map[string]func(string) (backend, stat, error){"openat2": pin, "os.Root": pinPortable} {
		t.Run(name, func(t *testing.T) {
			bare, root := newFolder(t), newFolder(t)
			pinned, err := openRoot(root, pin)
			if err != nil {
				t.Fatal(err)
			}
			s := New(pinned, plain(t, Options{}))
			t.Cleanup(func() { want(t, "close", s.Close(), nil) })
			mnt := hostMount(t, s, root)
			r := rand.New(rand.NewPCG(seed, 1))
			for i := range 3000 {
				op := randomOp(r, name == "openat2")
				a, b := op.do(bare), op.do(mnt)
				if a != b {
					t.Fatalf("step %d, %s (seed %d):\nin a folder: %.300s\nin the share: %.300s", i, op.what, seed, a, b)
				}
			}
			a, b, c := treeOf(t, bare), treeOf(t, mnt), treeOf(t, root)
			if a != b || b != c {
				t.Errorf("seed %d\nfolder:\n%s\nshare:\n%s\non the host:\n%s", seed, a, b, c)
			}
			if strings.Count(a, "\n") < 5 {
				t.Errorf("the operations have made next to nothing:\n%s", a)
			}
		})
	}
}

type randomOperation struct {
	what string
	do   func(base string) string // what came of it, as text
}

func randomOp(r *rand.Rand, exchange bool) randomOperation {
	path := func() string {
		p := ""
		for range 1 + r.IntN(3) {
			p = filepath.Join(p, string(rune('a'+r.IntN(4))))
		}
		return p
	}
	p, q := path(), path()
	at := func(base, p string) string { return filepath.Join(base, p) }
	say := func(err error) string {
		var e syscall.Errno
		if errors.As(err, &e) {
			return e.Error()
		}
		return fmt.Sprint(err)
	}
	data := strings.Repeat(string(rune('A'+r.IntN(26))), r.IntN(9000))
	off, size, mode := int64(r.IntN(20000)), int64(r.IntN(20000)), fs.FileMode(0o400|r.IntN(0o1000))
	flags := []int{os.O_RDWR, os.O_RDWR | os.O_CREATE, os.O_WRONLY | os.O_CREATE | os.O_EXCL, os.O_WRONLY | os.O_CREATE | os.O_TRUNC, os.O_WRONLY | os.O_APPEND}[r.IntN(5)]
	ops := []randomOperation{
		{"mkdir " + p, func(b string) string { return say(os.Mkdir(at(b, p), 0o755)) }},
		{"mkdir " + q, func(b string) string { return say(os.Mkdir(at(b, q), 0o700)) }},
		{fmt.Sprintf("write %s flags %#x at %d", p, flags, off), func(b string) string {
			f, err := os.OpenFile(at(b, p), flags, 0o640)
			if err != nil {
				return say(err)
			}
			var n int
			if flags&os.O_APPEND != 0 {
				n, err = f.WriteString(data)
			} else {
				n, err = f.WriteAt([]byte(data), off)
			}
			return fmt.Sprint(n, say(err), say(f.Close()))
		}},
		{"read " + p, func(b string) string { d, err := os.ReadFile(at(b, p)); return string(d) + say(err) }},
		{"truncate " + p, func(b string) string { return say(os.Truncate(at(b, p), size)) }},
		{"chmod " + p, func(b string) string {
			if info, err := os.Lstat(at(b, p)); err == nil && info.Mode()&fs.ModeSymlink != 0 {
				return "a link"
			}
			return say(os.Chmod(at(b, p), mode))
		}},
		{"unlink " + p, func(b string) string { return say(unix.Unlink(at(b, p))) }},
		{"rmdir " + p, func(b string) string { return say(unix.Rmdir(at(b, p))) }},
		{"rename " + p + " " + q, func(b string) string { return say(unix.Rename(at(b, p), at(b, q))) }},
		{"rename noreplace " + p + " " + q, func(b string) string {
			return say(unix.Renameat2(unix.AT_FDCWD, at(b, p), unix.AT_FDCWD, at(b, q), unix.RENAME_NOREPLACE))
		}},
		{"symlink " + p, func(b string) string { return say(os.Symlink(filepath.Base(q), at(b, p))) }},
		{"readlink " + p, func(b string) string { l, err := os.Readlink(at(b, p)); return l + say(err) }},
		{"lstat " + p, func(b string) string {
			info, err := os.Lstat(at(b, p))
			if err != nil {
				return say(err)
			}
			if info.IsDir() {
				return info.Mode().String()
			}
			return fmt.Sprint(info.Mode(), info.Size())
		}},
		{"list " + p, func(b string) string {
			entries, err := os.ReadDir(at(b, p))
			return fmt.Sprint(entries, say(err))
		}},
	}
	if exchange {
		ops = append(ops, randomOperation{"exchange " + p + " " + q, func(b string) string {
			return say(unix.Renameat2(unix.AT_FDCWD, at(b, p), unix.AT_FDCWD, at(b, q), unix.RENAME_EXCHANGE))
		}})
	}
	return ops[r.IntN(len(ops))]
}

// treeOf lists names, modes, lengths and contents below base.
func treeOf(t *testing.T, base string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(base, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == base {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(base, path)
		fmt.Fprintf(&b, "%s %v", rel, info.Mode())
		switch {
		case info.Mode().IsRegular():
			d, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %.40q", len(d), d)
		case info.Mode()&fs.ModeSymlink != 0:
			l, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", l)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
