package share

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sysFileSetattr is file_setattr(2) (Linux 6.17), which has the same number everywhere.
const sysFileSetattr = 469

// metaArgs is what the calls point to, at places that do not move.
var metaArgs struct {
	times [2]unix.Timespec
	value [1]byte
	set   struct {
		value       uint64
		size, flags uint32
	}
	flags [3]uint64
	kept  []*byte
}

// metadataForms are all ways that Linux has to change what a file is beside its contents, each tried on one file: by name, by
// a descriptor that only stands for a name (O_PATH), by the name that /proc has for one. A form that this kernel or file
// system does not have says so without confinement, and is left out then.
func metadataForms(file string) map[string]func() error {
	text := func(s string) *byte {
		b, _ := unix.BytePtrFromString(s)
		metaArgs.kept = append(metaArgs.kept, b)
		return b
	}
	name, none, attr := text(file), text(""), text("user.carrel")
	magic := func() (fd int, path string) {
		fd, err := unix.Open(file, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			fd, _ = unix.Openat2(unix.AT_FDCWD, file, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
		}
		return fd, fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	fd, link := magic()
	linkName := text(link)
	cwd := unix.AT_FDCWD
	at, p := uintptr(cwd), func(b *byte) uintptr { return uintptr(unsafe.Pointer(b)) }
	call := func(nr uintptr, a ...uintptr) func() error {
		return func() error {
			var x [6]uintptr
			copy(x[:], a)
			if _, _, e := unix.Syscall6(nr, x[0], x[1], x[2], x[3], x[4], x[5]); e != 0 {
				return e
			}
			return nil
		}
	}
	me, group := uintptr(os.Getuid()), uintptr(os.Getgid())
	ts, value, set, flags := &metaArgs.times, &metaArgs.value, &metaArgs.set, &metaArgs.flags
	set.value, set.size = uint64(uintptr(unsafe.Pointer(value))), 1
	return map[string]func() error{
		"fchmodat":             call(unix.SYS_FCHMODAT, at, p(name), 0o640),
		"fchmodat2":            call(unix.SYS_FCHMODAT2, at, p(name), 0o640, 0),
		"fchmodat2, no name":   call(unix.SYS_FCHMODAT2, uintptr(fd), p(none), 0o640, unix.AT_EMPTY_PATH),
		"fchmodat, /proc":      call(unix.SYS_FCHMODAT, at, p(linkName), 0o640),
		"utimensat":            call(unix.SYS_UTIMENSAT, at, p(name), uintptr(unsafe.Pointer(ts)), 0),
		"utimensat, no name":   call(unix.SYS_UTIMENSAT, uintptr(fd), p(none), uintptr(unsafe.Pointer(ts)), unix.AT_EMPTY_PATH),
		"utimensat, /proc":     call(unix.SYS_UTIMENSAT, at, p(linkName), uintptr(unsafe.Pointer(ts)), 0),
		"fchownat":             call(unix.SYS_FCHOWNAT, at, p(name), me, group, 0),
		"fchownat, no name":    call(unix.SYS_FCHOWNAT, uintptr(fd), p(none), me, group, unix.AT_EMPTY_PATH),
		"setxattr":             call(unix.SYS_SETXATTR, p(name), p(attr), p(&value[0]), 1, 0),
		"lsetxattr":            call(unix.SYS_LSETXATTR, p(name), p(attr), p(&value[0]), 1, 0),
		"setxattr, /proc":      call(unix.SYS_SETXATTR, p(linkName), p(attr), p(&value[0]), 1, 0),
		"setxattrat":           call(unix.SYS_SETXATTRAT, at, p(name), 0, p(attr), uintptr(unsafe.Pointer(set)), 16),
		"removexattr":          call(unix.SYS_REMOVEXATTR, p(name), p(attr)),
		"truncate":             call(unix.SYS_TRUNCATE, p(name), 0),
		"file_setattr":         call(sysFileSetattr, at, p(name), uintptr(unsafe.Pointer(flags)), 24, 0),
		"link into the folder": func() error { return unix.Linkat(cwd, file, cwd, filepath.Join(os.Getenv("CARREL_ROOT"), "hard"), 0) },
	}
}

// TestConfineMetadata is containment.md's S group for what Landlock has no word on: a taken-over share process changes the
// modes, times, owners and attributes of no file outside its folder, in whatever form it asks. The control is the same process
// before it confines itself; and what serving needs works inside the folder.
func TestConfineMetadata(t *testing.T) {
	if mode := os.Getenv("CARREL_CONFINED_META"); mode != "" {
		metadataChild(mode)
	}
	for _, mode := range []string{"rw", "ro", "review"} {
		t.Run(mode, func(t *testing.T) {
			root, outside := newFolder(t), filepath.Join(t.TempDir(), "victim")
			want(t, "write", os.WriteFile(filepath.Join(root, "f"), []byte("contents"), 0o644), nil)
			want(t, "write", os.WriteFile(outside, []byte("contents"), 0o600), nil)
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestConfineMetadata$")
			cmd.Env = append(os.Environ(), "CARREL_CONFINED_META="+mode, "CARREL_ROOT="+root, "CARREL_OUTSIDE="+outside)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "all done") {
				t.Errorf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}

func metadataChild(mode string) {
	bad := 0
	say := func(format string, a ...any) { fmt.Printf(format+"\n", a...); bad++ }
	root, err := OpenRoot(os.Getenv("CARREL_ROOT"))
	if err != nil {
		say("%v", err)
		os.Exit(1)
	}
	outside := os.Getenv("CARREL_OUTSIDE")
	forms := metadataForms(outside)
	has := map[string]bool{}
	for name, try := range forms {
		err := try()
		os.Remove(filepath.Join(os.Getenv("CARREL_ROOT"), "hard"))
		if has[name] = err == nil; err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EXDEV) {
			say("control: %s: %v", name, err)
		}
	}
	// As it was, but for its times, which are told apart by the hour.
	then := time.Unix(1e9, 0)
	if err := errors.Join(os.WriteFile(outside, []byte("contents"), 0o600), os.Chmod(outside, 0o600), os.Chtimes(outside, then, then)); err != nil {
		say("%v", err)
	}
	before := metaOf(outside)
	confine := func() error { return Confine(root, mode == "ro") }
	if mode == "review" { // a review process that applies
		confine = func() error { return ConfineAll([]*Root{root}, false) }
	}
	if err := confine(); err != nil {
		say("%v", err)
		os.Exit(1)
	}
	refused := 0
	for name, try := range forms {
		if !has[name] {
			continue
		}
		if err := try(); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EXDEV) {
			say("%s: %v", name, err)
		}
		refused++
	}
	// The forms that are left take no descriptor that could be had of it.
	fd, err := unix.Openat2(unix.AT_FDCWD, outside, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
	if err != nil {
		say("O_PATH: %v", err)
	}
	if err := unix.Fchmod(fd, 0o777); err == nil {
		say("fchmod of what is only named works")
	}
	if err := changeTimes(fd, change{mtime: &timespec{sec: 1}}); err == nil {
		say("futimens of what is only named works")
	}
	if err := unix.Fsetxattr(fd, "user.carrel", []byte("x"), 0); err == nil {
		say("fsetxattr of what is only named works")
	}
	if after := metaOf(outside); after != before {
		say("the file outside was %v and is %v", before, after)
	}
	mode640 := uint32(0o640)
	inside := root.back.change("f", change{mode: &mode640, mtime: &timespec{sec: 7}})
	switch st, _ := root.back.lstat("f"); {
	case mode == "ro" && inside == nil:
		say("a read-only share changes modes")
	case mode != "ro" && (inside != nil || st.mode&modePerm != 0o640 || st.mtime.sec != 7):
		say("inside the folder: %v, mode %o, time %d", inside, st.mode&modePerm, st.mtime.sec)
	}
	if bad == 0 {
		fmt.Printf("%d forms refused, all done\n", refused)
	}
	os.Exit(min(bad, 1))
}

func metaOf(path string) string {
	info, err := os.Lstat(path)
	if err != nil {
		return err.Error()
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprint(info.Mode(), info.ModTime(), st.Uid, st.Gid, st.Nlink, info.Size())
}

// TestShut: what a guest has made unreadable for its owner it can make readable again, though the calls that could do so by
// name are gone. Root can open everything, so this is tried as somebody else.
func TestShut(t *testing.T) {
	if os.Getenv("CARREL_SHUT") != "" {
		shutChild()
	}
	root := newFolder(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestShut$")
	cmd.Env = append(os.Environ(), "CARREL_SHUT=1", "CARREL_ROOT="+root)
	if os.Getuid() == 0 {
		for at := root; at != "/" && at != os.TempDir(); at = filepath.Dir(at) {
			want(t, "let in", os.Chmod(at, 0o777), nil)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
		cmd.Path = copyOfSelf(t)
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "all done") {
		t.Errorf("%v\n%s", err, out)
	}
}

// copyOfSelf is this program where others may start it.
func copyOfSelf(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "carrel-shut-")
	want(t, "mkdir", err, nil)
	t.Cleanup(func() { os.RemoveAll(dir) })
	want(t, "let in", os.Chmod(dir, 0o755), nil)
	b, err := os.ReadFile("/proc/self/exe")
	want(t, "read", err, nil)
	path := filepath.Join(dir, "test")
	want(t, "write", os.WriteFile(path, b, 0o755), nil)
	return path
}

func shutChild() {
	bad := 0
	say := func(format string, a ...any) { fmt.Printf(format+"\n", a...); bad++ }
	must := func(what string, err error) {
		if err != nil {
			say("%s: %v", what, err)
		}
	}
	top := os.Getenv("CARREL_ROOT")
	must("write", os.WriteFile(filepath.Join(top, "f"), nil, 0o644))
	must("write", os.WriteFile(filepath.Join(top, "was"), nil, 0o000))
	root, err := OpenRoot(top)
	must("open", err)
	if err != nil {
		os.Exit(1)
	}
	must("confine", Confine(root, false))
	b := root.back
	set := func(name string, mode uint32) error { return b.change(name, change{mode: &mode}) }
	is := func(name string, mode uint32) {
		if st, err := b.lstat(name); err != nil || st.mode&modePerm != mode {
			say("%s has %o, %v; want %o", name, st.mode&modePerm, err, mode)
		}
	}
	must("shut", set("f", 0))
	is("f", 0)
	if _, _, err := b.open("f", openMode{read: true}); err == nil {
		say("the owner can read it all the same: nothing is tried here")
	}
	must("open again", set("f", 0o600))
	is("f", 0o600)
	_, err = b.mkdir("d", 0o300)
	must("mkdir", err)
	is("d", 0o300)
	must("open the folder", set("d", 0o755))
	is("d", 0o755)
	f, _, err := b.create("new", openMode{write: true}, 0)
	must("create", err)
	f.close()
	must("open what was made so", set("new", 0o644))
	is("new", 0o644)
	for n := range maxShut + 8 { // the oldest are let go of, and no descriptor is lost
		name := fmt.Sprint("n", n)
		f, _, err := b.create(name, openMode{write: true}, 0)
		must("create", err)
		f.close()
	}
	if len(shut.all) != maxShut {
		say("%d descriptors are kept, want %d", len(shut.all), maxShut)
	}
	if err := set("was", 0o644); err == nil {
		say("what was unreadable before the share can be changed: document that")
	}
	if bad == 0 {
		fmt.Println("all done")
	}
	os.Exit(min(bad, 1))
}
