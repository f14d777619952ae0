package share

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// coherent is how long is waited for a change on the host to show. A guest's kernel asks again after validFor; when it, and this
// test, get to run on a busy machine is another matter, so how long it took is logged.
const coherent = 5 * time.Minute

// onLinux serves a folder with openat2 and the rules given, through the kernel.
func onLinux(t *testing.T, o Options) (root, mnt string, s *Server) {
	t.Helper()
	root = newFolder(t)
	r, err := OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	s = New(r, plain(t, o))
	t.Cleanup(func() { want(t, "close", s.Close(), nil) })
	return root, hostMount(t, s, root), s
}

// What editors do to save a file shows in the guest at its next open, and its old contents in nothing that is opened from then on.
func TestCoherentSaves(t *testing.T) {
	for _, mode := range []rules.Mode{rules.ReadOnly, rules.ReadWrite} {
		t.Run(mode.String(), func(t *testing.T) {
			root, mnt, _ := onLinux(t, Options{Rules: compile(t, rules.Options{Mode: mode})})
			host, guest := filepath.Join(root, "f"), filepath.Join(mnt, "f")
			old := time.Now().Add(-time.Hour)
			saves := []struct {
				what string
				save func(text string) error
			}{
				{"rename over it", func(text string) error {
					return errors.Join(os.WriteFile(host+"~", []byte(text), 0o644), os.Rename(host+"~", host))
				}},
				{"move it away, then write", func(text string) error {
					return errors.Join(os.Rename(host, host+".bak"), os.WriteFile(host, []byte(text), 0o644))
				}},
				{"write in place", func(text string) error { return os.WriteFile(host, []byte(text), 0o644) }},
				{"write in place, with the time set back", func(text string) error {
					return errors.Join(os.WriteFile(host, []byte(text), 0o644), os.Chtimes(host, old, old))
				}},
				{"remove and make", func(text string) error { return errors.Join(os.Remove(host), os.WriteFile(host, []byte(text), 0o644)) }},
			}
			for i, s := range saves {
				before, after := fmt.Sprintf("contents %d", i), fmt.Sprintf("CONTENTS, and more of them, %d", i)
				want(t, "host write", os.WriteFile(host, []byte(before), 0o644), nil)
				want(t, "host chtimes", os.Chtimes(host, old, old), nil)
				eventually(t, coherent, func() bool { got, _ := os.ReadFile(guest); return string(got) == before }, "the contents before: "+s.what)
				want(t, s.what, s.save(after), nil)
				at := time.Now()
				eventually(t, coherent, func() bool { got, _ := os.ReadFile(guest); return string(got) == after }, s.what)
				t.Logf("%s: seen after %v", s.what, time.Since(at).Round(time.Millisecond))
				for range 20 {
					if got, _ := os.ReadFile(guest); string(got) != after {
						t.Fatalf("%s: the old contents came back: %q", s.what, got)
					}
				}
			}
		})
	}
}

// A file that is cut short on the host is short in the guest, also for a program that has it open.
func TestCoherentTruncation(t *testing.T) {
	root, mnt, _ := onLinux(t, Options{Rules: compile(t, rules.Options{Mode: rules.ReadOnly})})
	host := filepath.Join(root, "log")
	want(t, "host write", os.WriteFile(host, bytes.Repeat([]byte("line\n"), 50_000), 0o644), nil)
	f, err := os.Open(filepath.Join(mnt, "log"))
	want(t, "open", err, nil)
	defer f.Close()
	all := make([]byte, 300_000)
	if n, _ := f.ReadAt(all, 0); n != 250_000 {
		t.Fatalf("read %d bytes", n)
	}
	want(t, "host truncate", os.Truncate(host, 10), nil)
	eventually(t, coherent, func() bool { n, _ := f.ReadAt(all, 0); return n == 10 }, "the shorter file, open")
	want(t, "host append", appendTo(host, "more"), nil)
	eventually(t, coherent, func() bool { n, _ := f.ReadAt(all, 0); return string(all[:n]) == "line\nline\nmore" }, "what was added")
	eventually(t, coherent, func() bool { got, _ := os.ReadFile(f.Name()); return string(got) == "line\nline\nmore" }, "the same, opened anew")
}

// The host's user checks another branch out while a build in the guest reads the tree, again and again: after each checkout the
// guest has that tree.
func TestCoherentCheckout(t *testing.T) {
	root, mnt, _ := onLinux(t, Options{Rules: compile(t, rules.Options{Mode: rules.ReadOnly})})
	for _, branch := range []string{"one", "two"} {
		if branch == "one" {
			git(t, root, "init", "-q", "-b", branch)
		} else {
			git(t, root, "checkout", "-q", "-b", branch)
			git(t, root, "rm", "-rq", ".")
		}
		for i := range 60 {
			if branch == "two" && i%3 == 0 {
				continue
			}
			name := fmt.Sprintf("d%d/f%d", i%7, i)
			if i%10 == 0 {
				name = fmt.Sprintf("%s/d/f%d", branch, i)
			}
			layout(t, root, map[string]string{name: fmt.Sprintf("%s %d %*d", branch, i, i*i%500, 0)})
		}
		git(t, root, "add", ".")
		git(t, root, "commit", "-qm", branch)
	}
	stop := make(chan struct{})
	var build sync.WaitGroup
	build.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = exec.Command("sh", "-c", "find "+mnt+" -name .git -prune -o -type f -print0 | xargs -0 cat > /dev/null").Run() // files may go meanwhile
			}
		}
	})
	for round := range 6 {
		git(t, root, "checkout", "-q", []string{"one", "two"}[round%2])
		expected := sumOf(t, root)
		eventually(t, 2*coherent, func() bool { return sumOf(t, mnt) == expected }, "the tree that was checked out")
	}
	close(stop)
	build.Wait()
}

// git runs git on a folder, as nobody in particular and at no particular time.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	out, err := tryGit(dir, args...)
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return out
}

func tryGit(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "safe.directory=*"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com", "GIT_AUTHOR_DATE=2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// sumOf is one line for names, modes, links and contents of a tree, git's own folder left out. A tree that changes meanwhile has none.
func sumOf(t testing.TB, dir string) string {
	t.Helper()
	out, _ := exec.Command("sh", "-c", "cd "+dir+" && find . -name .git -prune -o ! -type d -printf '%p %y %m %l\\n' -o -printf '%p %y %m\\n' | sort; "+
		"cd "+dir+" && find . -name .git -prune -o -type f -print0 | sort -z | xargs -0 sha256sum").CombinedOutput()
	return string(out)
}

// Disk full on the host: ENOSPC, in whatever way it is met, and all is well when there is room again.
func TestDiskFull(t *testing.T) {
	root := newFolder(t)
	want(t, "mount", unix.Mount("carrel-test", root, "tmpfs", 0, "size=1m,nr_inodes=20"), nil)
	t.Cleanup(func() { want(t, "unmount", unix.Unmount(root, unix.MNT_DETACH), nil) })
	r, err := OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	s := New(r, plain(t, Options{MinFree: 1}))
	defer s.Close()
	g := newGuest(t, s)
	node, fh := g.create(rootID, "big")
	chunk := make([]byte, 128<<10)
	full := false
	for i := uint64(0); i < 16 && !full; i++ {
		b, e := g.call(opWrite, node, writeArgs(fh, i*uint64(len(chunk)), chunk)...)
		if full = e == eNOSPC; e != ok && !full {
			t.Fatal(e)
		} else if e == ok && le.Uint32(b) == 0 {
			t.Fatal("nothing was written, and no error said")
		}
	}
	if !full {
		t.Fatal("2 MiB went into 1")
	}
	if _, is := s.back.(*linuxBackend); is {
		g.refused("FALLOCATE", opFallocate, node, []any{fh, uint64(0), uint64(4 << 20), uint32(0), uint32(0)}, eNOSPC)
	}
	made := 0
	for ; made < 30; made++ {
		if _, e := g.call(opMkdir, rootID, uint64(0o755), fmt.Sprint("d", made)); e == eNOSPC {
			break
		} else if e != ok {
			t.Fatal(e)
		}
	}
	if made == 30 {
		t.Fatal("30 folders went into 20 inodes")
	}
	g.refused("CREATE", opCreate, rootID, []any{uint32(oRdwr), uint32(0o644), uint64(0), "n"}, eNOSPC)
	g.refused("SYMLINK", opSymlink, rootID, []any{"n", "t"}, eNOSPC)
	g.must(opSetattr, node, setattrArgs(fattrSize, 0, 0, 0, 0)...)
	g.must(opRmdir, rootID, "d0")
	n, fh := g.create(rootID, "n")
	g.write(n, fh, 0, "there is room")
}

// S19: the share's drive is taken away, and another folder takes its name: the guest never gets that one.
func TestDriveGone(t *testing.T) {
	for name, pin := range map[string]func(string) (backend, stat, error){"openat2": pin, "os.Root": pinPortable} {
		t.Run(name, func(t *testing.T) {
			root := newFolder(t)
			layout(t, root, map[string]string{"f": "of the folder below"})
			want(t, "mount", unix.Mount("carrel-test", root, "tmpfs", 0, ""), nil)
			layout(t, root, map[string]string{"f": "of the drive", "g": ""})
			r, err := openRoot(root, pin)
			if err != nil {
				t.Fatal(err)
			}
			s := New(r, plain(t, Options{}))
			defer s.Close()
			g := newGuest(t, s)
			node := g.walk("f")
			want(t, "unmount", unix.Unmount(root, unix.MNT_DETACH), nil)
			// The kernel keeps the drive for those who hold it. Had it been torn out, its errors would be the guest's.
			if fh, e := g.call(opOpen, node, uint64(0)); e == ok {
				if got := g.read(node, le.Uint64(fh)); got != "of the drive" {
					t.Errorf("read %q", got)
				}
			} else if e != eIO && e != eSTALE {
				t.Errorf("OPEN: %v", e)
			}
			if _, e := g.call(opMkdir, rootID, uint64(0o755), "made"); e != ok && e != eIO && e != eSTALE {
				t.Errorf("MKDIR: %v", e)
			}
			if names, _ := os.ReadDir(root); len(names) != 1 {
				t.Errorf("the folder below has %v", names)
			}
			torn := &guest{t: t, s: s, out: make([]byte, MaxMessage)}
			s.back = broken{s.back}
			for _, err := range []error{unix.EIO, unix.ENODEV, unix.ESHUTDOWN, unix.EREMOTEIO} {
				fault = err
				torn.refused("LOOKUP", opLookup, rootID, []any{"g"}, eIO)
				torn.refused("OPEN", opOpen, node, []any{uint64(0)}, eIO)
				torn.refused("OPENDIR", opOpendir, rootID, []any{uint64(0)}, eIO)
				torn.refused("MKDIR", opMkdir, rootID, []any{uint64(0o755), "d"}, eIO)
				torn.refused("UNLINK", opUnlink, rootID, []any{"g"}, eIO)
			}
		})
	}
}

// broken is a drive that fails.
type broken struct{ backend }

var fault error

func (broken) lstat(string) (stat, error)                { return stat{}, fault }
func (broken) open(string, openMode) (file, stat, error) { return nil, stat{}, fault }
func (broken) openDir(string) (dir, error)               { return nil, fault }
func (broken) mkdir(string, uint32) (stat, error)        { return stat{}, fault }
func (broken) unlink(string) error                       { return fault }
