package share

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// transcript is what a program is told, line by line: errors by their names, and of files what stat says of them that does not
// depend on where they are.
type transcript struct {
	dir   string
	lines []string
}

func (x *transcript) at(name string) string { return filepath.Join(x.dir, name) }

func (x *transcript) say(format string, a ...any) {
	x.lines = append(x.lines, fmt.Sprintf(format, a...))
}

func (x *transcript) do(what string, err error) {
	var e syscall.Errno
	if errors.As(err, &e) {
		x.say("%s: %s", what, unix.ErrnoName(e))
	} else {
		x.say("%s: %v", what, err)
	}
}

func (x *transcript) rename(from, to string) {
	x.do("rename "+from+" to "+to, unix.Rename(x.at(from), x.at(to)))
}

// stat tells kind, mode, links and size; of a folder neither links nor size, which file systems count as they like.
func (x *transcript) stat(name string) {
	var st unix.Stat_t
	if err := unix.Lstat(x.at(name), &st); err != nil {
		x.do("stat "+name, err)
		return
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		x.say("stat %s: %o", name, st.Mode)
		return
	}
	x.say("stat %s: %o, %d links, %d bytes", name, st.Mode, st.Nlink, st.Size)
}

func (x *transcript) write(name, content string) {
	x.do("write "+name, os.WriteFile(x.at(name), []byte(content), 0o644))
}

func (x *transcript) read(name string) {
	b, err := os.ReadFile(x.at(name))
	x.do(fmt.Sprintf("read %s: %q", name, b), err)
}

// seenAfter is a little more than what a guest's kernel may rely on an answer for (docs/sharing.md).
const seenAfter = 1100 * time.Millisecond

// fidelity are sequences in the manner of pjdfstest, for what its users and go-fuse's suite leave thin.
var fidelity = map[string]func(x *transcript){
	// rename(2): what may take whose place, and what is left of both.
	"rename over": func(x *transcript) {
		for _, d := range []string{"empty", "full", "other"} {
			x.do("mkdir", os.Mkdir(x.at(d), 0o755))
		}
		x.write("f", "f")
		x.write("g", "g")
		x.write("full/x", "x")
		x.do("symlink", os.Symlink("g", x.at("l")))
		for _, m := range [][2]string{
			{"f", "empty"}, {"empty", "f"}, {"other", "full"}, {"full", "full/in"}, {"none", "f"}, {"f", "none/f"}, {"f", "g/f"}, {"f", "f"}, {"l", "empty"},
			{"other", "l"}, {"other", "empty"}, {"f", "l"}, {"l", "g"}, {"full/x", "full"}, {"full", "moved"},
		} {
			x.rename(m[0], m[1])
		}
		for _, n := range []string{"f", "g", "l", "empty", "other", "full", "moved", "moved/x"} {
			x.stat(n)
		}
		x.read("g")
		x.read("l")
	},
	// An open file goes on under its name's loss, and the one that took its place is another.
	"rename over an open file": func(x *transcript) {
		x.write("f", "old")
		x.write("new", "new")
		f, err := os.OpenFile(x.at("f"), os.O_RDWR, 0)
		x.do("open", err)
		if err != nil {
			return
		}
		defer f.Close()
		x.rename("new", "f")
		b := make([]byte, 8)
		n, _ := f.ReadAt(b, 0)
		x.say("the old one reads %q", b[:n])
		_, err = f.WriteAt([]byte("OLD"), 0)
		x.do("write to the old one", err)
		var st unix.Stat_t
		x.do("fstat", unix.Fstat(int(f.Fd()), &st))
		x.say("the old one has %d links and %d bytes", st.Nlink, st.Size)
		x.read("f")
	},
	"link counts": func(x *transcript) {
		x.write("a", "1")
		for _, n := range []string{"b", "c"} {
			x.do("link", os.Link(x.at("a"), x.at(n)))
			x.stat(n)
		}
		x.do("link over", os.Link(x.at("a"), x.at("b")))
		x.do("mkdir", os.Mkdir(x.at("d"), 0o755))
		x.do("link of a folder", os.Link(x.at("d"), x.at("e")))
		x.do("link to nowhere", os.Link(x.at("a"), x.at("none/a")))
		x.do("symlink", os.Symlink("a", x.at("l")))
		x.do("link of a link", unix.Linkat(unix.AT_FDCWD, x.at("l"), unix.AT_FDCWD, x.at("l2"), 0))
		x.stat("l2")
		x.rename("a", "b") // two names of one file: nothing happens
		x.stat("a")
		x.do("unlink", os.Remove(x.at("b")))
		x.do("unlink of a folder", unix.Unlink(x.at("d")))
		x.do("rmdir of a file", unix.Rmdir(x.at("c")))
		time.Sleep(seenAfter) // each name of a file has its own count in the guest's kernel
		x.stat("c")
		x.write("c", "longer")
		x.read("c")
	},
	// chmod(2), within the permissions: sticky and set-id bits are dropped (TestHostileModes).
	"modes": func(x *transcript) {
		x.write("f", "")
		x.do("mkdir", os.Mkdir(x.at("d"), 0o755))
		for _, m := range []uint32{0, 0o200, 0o400, 0o111, 0o777, 0o644} {
			x.do("chmod", unix.Chmod(x.at("f"), m))
			x.stat("f")
			x.do("chmod", unix.Chmod(x.at("d"), m))
			x.stat("d")
		}
		x.do("symlink", os.Symlink("f", x.at("l")))
		x.do("chmod through a link", unix.Chmod(x.at("l"), 0o600))
		x.stat("f")
		x.do("chmod of nothing", unix.Chmod(x.at("none"), 0o600))
		x.do("chmod below a file", unix.Chmod(x.at("f/x"), 0o600))
		for _, m := range []uint32{0, 0o400, 0o751} {
			fd, err := unix.Open(x.at(fmt.Sprintf("made%o", m)), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, m)
			x.do("create", err)
			if err == nil {
				_, err = unix.Write(fd, []byte("x"))
				x.do("write to what may not be written", err)
				unix.Close(fd)
			}
			x.stat(fmt.Sprintf("made%o", m))
			x.do("mkdir", unix.Mkdir(x.at(fmt.Sprintf("dir%o", m)), m))
			x.stat(fmt.Sprintf("dir%o", m))
		}
	},
	"times": func(x *transcript) {
		x.write("f", "x")
		x.do("mkdir", os.Mkdir(x.at("d"), 0o755))
		x.write("held", "x")
		held, err := os.Open(x.at("held"))
		x.do("open", err)
		defer held.Close()
		tell := func(name string) {
			var st unix.Stat_t
			x.do("stat", unix.Stat(x.at(name), &st))
			x.say("%s: accessed %d.%09d, modified %d.%09d", name, st.Atim.Sec, st.Atim.Nsec, st.Mtim.Sec, st.Mtim.Nsec)
		}
		// Before 1970, with nanoseconds, after 2038; one that stays.
		for _, t := range [][2]unix.Timespec{{{Sec: -1000, Nsec: 1}, {Sec: 1e9, Nsec: 999999999}}, {{Sec: 3e9, Nsec: 7}, {Nsec: unix.UTIME_OMIT}}, {{Nsec: unix.UTIME_OMIT}, {Sec: 5}}} {
			for _, name := range []string{"f", "d", "held"} {
				x.do("utimens "+name, unix.UtimesNanoAt(unix.AT_FDCWD, x.at(name), t[:], 0))
				tell(name)
			}
		}
		x.do("utimens of nothing", unix.UtimesNanoAt(unix.AT_FDCWD, x.at("none"), []unix.Timespec{{}, {}}, 0))
		// What changes a folder's time and a file's, and what does not.
		var before, after unix.Stat_t
		moved := func(what, name string, act func() error) {
			old := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}
			x.do("utimens", unix.UtimesNanoAt(unix.AT_FDCWD, x.at(name), old, 0))
			unix.Stat(x.at(name), &before)
			x.do(what, act())
			unix.Stat(x.at(name), &after)
			x.say("%s moves the time of %s: %v", what, name, after.Mtim != before.Mtim)
		}
		moved("making a file", "d", func() error { return os.WriteFile(x.at("d/a"), nil, 0o644) })
		moved("a rename", "d", func() error { return os.Rename(x.at("d/a"), x.at("d/b")) })
		moved("removing", "d", func() error { return os.Remove(x.at("d/b")) })
		moved("chmod", "f", func() error { return os.Chmod(x.at("f"), 0o600) })
		moved("a write", "f", func() error { return os.WriteFile(x.at("f"), []byte("yy"), 0) })
		moved("truncate", "f", func() error { return os.Truncate(x.at("f"), 1) })
		moved("a link", "f", func() error { return os.Link(x.at("f"), x.at("g")) })
		moved("reading", "f", func() error { _, err := os.ReadFile(x.at("f")); return err })
	},
	"sparse files": func(x *transcript) {
		f, err := os.Create(x.at("f"))
		x.do("create", err)
		if err != nil {
			return
		}
		defer f.Close()
		const hole = 8 << 20
		_, err = f.WriteAt([]byte("end"), hole)
		x.do("write behind a hole", err)
		_, err = f.WriteAt([]byte("start"), 0)
		x.do("write", err)
		x.do("sync", f.Sync())
		var st unix.Stat_t
		x.do("fstat", unix.Fstat(int(f.Fd()), &st))
		x.say("%d bytes, with holes: %v", st.Size, st.Blocks*512 < hole/2)
		b := make([]byte, 16)
		n, _ := f.ReadAt(b, hole/2)
		x.say("the hole reads %q", b[:n])
		end, err := f.Seek(1<<20, unix.SEEK_DATA)
		x.do(fmt.Sprint("data behind the hole, within 64 KiB: ", end >= hole-64<<10 && end <= hole), err)
		at, err := f.Seek(0, unix.SEEK_HOLE)
		x.do(fmt.Sprint("the hole begins within 64 KiB: ", at > 0 && at <= 64<<10), err)
		_, err = f.Seek(2*hole, unix.SEEK_DATA)
		x.do("data behind the end", err)
		x.do("truncate", f.Truncate(4*hole))
		x.do("truncate", f.Truncate(3))
		x.do("truncate", f.Truncate(100))
		x.do("fstat", unix.Fstat(int(f.Fd()), &st))
		got, err := os.ReadFile(x.at("f"))
		x.do(fmt.Sprintf("cut and grown it reads %q", strings.TrimRight(string(got), "\x00")), err)
		x.say("%d bytes", len(got))
		x.do("truncate below nothing", unix.Ftruncate(int(f.Fd()), -1))
	},
	// O_APPEND: whoever writes, each line is whole, and none is lost.
	"appending at once": func(x *transcript) {
		x.write("log", "")
		const writers, lines = 8, 200
		var all sync.WaitGroup
		for w := range writers {
			all.Go(func() {
				f, err := os.OpenFile(x.at("log"), os.O_WRONLY|os.O_APPEND, 0)
				if err != nil {
					return
				}
				defer f.Close()
				for n := range lines {
					fmt.Fprintf(f, "%d %d %s\n", w, n, strings.Repeat("x", 40+w))
				}
			})
		}
		all.Wait()
		b, err := os.ReadFile(x.at("log"))
		x.do("read", err)
		got := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		sort.Strings(got)
		for _, line := range got {
			x.say("%s", line)
		}
		x.do("remove", os.Remove(x.at("log"))) // the order is nobody's
	},
}

// thin says in which sequences the portable backend differs, and why.
var thin = map[string]string{
	"sparse files": "os.Root has no call that finds holes: everything is data up to the end",
}

// TestFidelity does the same in a plain folder, which is the control, and through the kernel in a share: a program is told the
// same in both, and the host has the same files in the end.
func TestFidelity(t *testing.T) {
	unix.Umask(0o022)
	for name, run := range fidelity {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, Options{MinFree: 1}, func(t *testing.T, s *Server, root string) {
				if _, portable := s.back.(*rootBackend); portable && thin[name] != "" {
					t.Skip(thin[name])
				}
				bare := newFolder(t)
				in, here := &transcript{dir: hostMount(t, s, root)}, &transcript{dir: bare}
				run(in)
				run(here)
				if len(here.lines) < 8 {
					t.Errorf("next to nothing was done: %q", here.lines)
				}
				for n := range max(len(in.lines), len(here.lines)) {
					a, b := "", ""
					if n < len(here.lines) {
						a = here.lines[n]
					}
					if n < len(in.lines) {
						b = in.lines[n]
					}
					if a != b {
						t.Errorf("line %d\nin a folder: %.2000s\nin the share: %.2000s", n, a, b)
					}
				}
				if a, b := treeOf(t, bare), treeOf(t, root); a != b {
					t.Errorf("in a folder:\n%s\non the host:\n%s", a, b)
				}
			})
		})
	}
}
