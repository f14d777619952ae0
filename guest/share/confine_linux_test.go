package share

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// probes are what a confined share process must not be able to do. Each works (or fails otherwise) without confinement: the
// control runs the same code with the confinement left out.
func probes(outside string) map[string]func() error {
	closing := func(fd int, err error) error {
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	open := func(path string, flags uint64) error {
		return closing(unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC}))
	}
	return map[string]func() error{
		"read a file outside":    func() error { return open(filepath.Join(outside, "canary"), unix.O_RDONLY) },
		"write a file outside":   func() error { return open(filepath.Join(outside, "canary"), unix.O_WRONLY) },
		"list a folder outside":  func() error { return open(outside, unix.O_RDONLY|unix.O_DIRECTORY) },
		"make a file outside":    func() error { return open(outside, unix.O_RDWR|unix.O_TMPFILE) },
		"make a folder outside":  func() error { return unix.Mkdirat(unix.AT_FDCWD, filepath.Join(outside, "made"), 0o755) },
		"open the old way":       func() error { return closing(unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)) },
		"make a TCP socket":      func() error { return closing(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)) },
		"make a Unix socket":     func() error { return closing(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)) },
		"signal another process": func() error { return unix.Kill(os.Getppid(), 0) },
		"signal another's thread": func() error {
			return unix.Tgkill(os.Getppid(), os.Getppid(), 0)
		},
		"map code": func() error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
			return err
		},
		"start a program":        func() error { return exec.Command("/proc/self/exe", "-test.run=^$").Run() },
		"look at its parent":     func() error { _, err := unix.PidfdOpen(os.Getppid(), 0); return err },
		"make a user namespace":  func() error { return unix.Unshare(unix.CLONE_FS) },
		"raise its file limit":   func() error { return unix.Prlimit(os.Getppid(), unix.RLIMIT_NOFILE, nil, new(unix.Rlimit)) },
		"change its credentials": func() error { return unix.Setgroups(nil) },
	}
}

// TestConfine runs this test binary again as a share process: confined it can serve its folder, and none of the probes works.
func TestConfine(t *testing.T) {
	if mode := os.Getenv("CARREL_CONFINED"); mode != "" {
		confinedChild(mode)
	}
	for _, mode := range []string{"rw", "ro", "own", "control"} {
		t.Run(mode, func(t *testing.T) {
			root := newFolder(t)
			if mode == "control" {
				base, err := filepath.EvalSymlinks(t.TempDir()) // its probes do touch what is outside
				want(t, "resolve", err, nil)
				root = filepath.Join(base, "root")
				want(t, "mkdir", os.Mkdir(root, 0o755), nil)
				want(t, "mkdir", os.Mkdir(filepath.Join(base, "outside"), 0o755), nil)
				want(t, "write", os.WriteFile(filepath.Join(base, "outside/canary"), nil, 0o644), nil)
			}
			want(t, "write", os.WriteFile(filepath.Join(root, "f"), []byte("contents"), 0o644), nil)
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestConfine$")
			cmd.Env = append(os.Environ(), "CARREL_CONFINED="+mode, "CARREL_ROOT="+root, "CARREL_OWN="+t.TempDir())
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "all done") {
				t.Errorf("%v\n%s", err, out)
			}
			if _, err := os.Stat(filepath.Join(root, "made")); (err == nil) != (mode == "rw" || mode == "control") {
				t.Errorf("what the confined server was to make: %v", err)
			}
		})
	}
}

func confinedChild(mode string) {
	bad := 0
	say := func(format string, a ...any) { fmt.Printf(format+"\n", a...); bad++ }
	path := os.Getenv("CARREL_ROOT")
	for range 4 { // threads that are there already are confined too
		go func() { runtime.LockOSThread(); select {} }()
	}
	root, err := OpenRoot(path)
	if err != nil {
		say("%v", err)
		os.Exit(1)
	}
	control := mode == "control"
	if !control {
		var own []string
		if mode == "own" {
			own, mode = []string{os.Getenv("CARREL_OWN")}, "ro"
		}
		if err := Confine(root, mode == "ro", own...); err != nil {
			say("%v", err)
			os.Exit(1)
		}
		for _, dir := range own {
			if err := keepOwn(dir); err != nil {
				say("%v", err)
			}
		}
	}
	for what, try := range probes(filepath.Join(filepath.Dir(path), "outside")) {
		err := try()
		denied := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSYS)
		if denied == control {
			say("%s: %v", what, err)
		}
	}
	allowed := rules.Options{Mode: rules.ReadWrite, Plain: true}
	if mode == "ro" {
		allowed.Mode = rules.ReadOnly
	}
	set, err := rules.Compile(allowed)
	if err != nil {
		say("%v", err)
	}
	s := New(root, Options{Rules: set})
	done := make(chan string, 8)
	for range cap(done) { // new threads, garbage collection and timers go on working
		go func() {
			defer func() {
				if p := recover(); p != nil {
					done <- fmt.Sprint(p)
				}
			}()
			done <- serveConfined(s, mode)
		}()
	}
	for range cap(done) {
		if complaint := <-done; complaint != "" {
			say("%s", complaint)
		}
	}
	runtime.GC()
	time.Sleep(time.Millisecond)
	if err := s.Close(); err != nil {
		say("close: %v", err)
	}
	if bad == 0 {
		fmt.Println("all done")
	}
	os.Exit(min(bad, 1))
}

// keepOwn does what keeping changes takes.
func keepOwn(dir string) error {
	a, b := filepath.Join(dir, "d/a"), filepath.Join(dir, "b")
	if err := errors.Join(os.Mkdir(filepath.Dir(a), 0o700), os.WriteFile(a, []byte("a"), 0o600), os.Rename(a, b), os.Remove(filepath.Dir(a))); err != nil {
		return err
	}
	src, err := os.Open(b)
	if err != nil {
		return err
	}
	dst, err := os.Create(filepath.Join(dir, "c"))
	if err != nil {
		return err
	}
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("clone: %w", err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	if _, err := unix.IoctlGetInt(int(dst.Fd()), unix.TIOCINQ); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("another ioctl: %v", err)
	}
	return dst.Sync()
}

// serveConfined does a bit of everything by hand; several of it run at once.
func serveConfined(s *Server, mode string) string {
	out := make([]byte, MaxMessage)
	call := func(op opcode, node uint64, parts ...any) ([]byte, errno) {
		g := &guest{t: &quiet{}, s: s, out: out}
		return g.call(op, node, parts...)
	}
	call(opInit, 0, uint32(7), uint32(41), uint64(0))
	b, e := call(opLookup, rootID, "f")
	if e != ok {
		return "LOOKUP: " + e.Error()
	}
	node := le.Uint64(b)
	if b, e = call(opOpen, node, uint64(oRdonly)); e != ok {
		return "OPEN: " + e.Error()
	}
	if b, e = call(opRead, node, readArgs(le.Uint64(b), 0, 99)...); e != ok || string(b) != "contents" {
		return "READ: " + e.Error()
	}
	if b, e = call(opOpendir, rootID, uint64(0)); e != ok {
		return "OPENDIR: " + e.Error()
	}
	if _, e = call(opReaddirplus, rootID, readArgs(le.Uint64(b), 0, 4096)...); e != ok {
		return "READDIRPLUS: " + e.Error()
	}
	if _, e = call(opStatfs, rootID); e != ok {
		return "STATFS: " + e.Error()
	}
	if mode == "ro" {
		if _, _, err := (&linuxBackend{root: s.back.(*linuxBackend).root}).create("made", openMode{}, 0o644); !errors.Is(err, unix.EACCES) {
			return fmt.Sprintf("with the rules and the backend out of the way, a file in a read-only share: %v", err)
		}
		return ""
	}
	for what, step := range map[string]func() errno{
		"CREATE": func() errno {
			_, e := call(opCreate, rootID, uint32(oRdwr), uint32(0o644), uint64(0), "made")
			return e
		},
		"MKDIR":   func() errno { _, e := call(opMkdir, rootID, uint64(0o755), "d"); return e },
		"SYMLINK": func() errno { _, e := call(opSymlink, rootID, "l", "x"); return e },
		"LINK":    func() errno { _, e := call(opLink, rootID, node, "h"); return e },
		"SETATTR": func() errno {
			_, e := call(opSetattr, node, setattrArgs(fattrMode|fattrMtime, 0, 0, 0o600, 0)...)
			return e
		},
		"truncate": func() errno {
			_, e := call(opSetattr, node, setattrArgs(fattrSize, 0, 8, 0, 0)...)
			return e
		},
	} {
		if e := step(); e != ok && e != eEXIST {
			return what + ": " + e.Error()
		}
	}
	b, e = call(opCreate, rootID, uint32(oRdwr), uint32(0o644), uint64(0), "made")
	if e != ok {
		return "CREATE: " + e.Error()
	}
	node, fh := le.Uint64(b), le.Uint64(b[entryOutSize:])
	if _, e = call(opWrite, node, writeArgs(fh, 0, []byte("x"))...); e != ok {
		return "WRITE: " + e.Error()
	}
	if _, e = call(opFallocate, node, fh, uint64(0), uint64(4096), uint64(0)); e != ok && e != eOPNOTSUPP {
		return "FALLOCATE: " + e.Error()
	}
	if _, e = call(opFsync, node, fh, uint64(0)); e != ok {
		return "FSYNC: " + e.Error()
	}
	return ""
}

// quiet is a testing.TB for the child, where no test runs: what is fatal there is a panic, which serveConfined's caller reports.
type quiet struct{ testing.TB }

func (*quiet) Helper()                      {}
func (*quiet) Fatalf(f string, args ...any) { panic(fmt.Sprintf(f, args...)) }
