package share

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// beneath is how every path of the guest is resolved: below the root, through no symbolic link, no magic link of /proc and no
// mount point. The last is so that a file system which happens to be mounted inside the folder (the /proc of a chroot, a
// network drive) is not shared along with it.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// linuxBackend works below one O_PATH descriptor with openat2 (Linux 5.6) and the *at calls.
type linuxBackend struct {
	root     int
	readOnly bool // set before the first request
	// atime: O_NOATIME was refused once (the files are somebody else's), and is not tried again.
	atime atomic.Bool
}

// pinLinux opens path without following a link on any component.
func pinLinux(path string) (backend, stat, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return nil, stat{}, errors.New("not an absolute, clean path")
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
	})
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, stat{}, fmt.Errorf("%w: it is a symbolic link, or below one (give the folder's real path)", err)
	case errors.Is(err, unix.ENOSYS):
		return nil, stat{}, fmt.Errorf("openat2: %w (a share needs Linux 5.6 or newer)", err)
	case err != nil:
		return nil, stat{}, err
	}
	st, err := fstat(fd)
	if err != nil {
		unix.Close(fd)
		return nil, stat{}, err
	}
	return &linuxBackend{root: fd}, st, nil
}

// retry repeats what a signal interrupted (the Go runtime sends itself some) and, a few times, what openat2 gave up because the tree
// was renamed under it.
func retry(call func() (int, error)) (int, error) {
	for again := 0; ; {
		n, err := call()
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN && again < 16:
			again++
		case err == unix.EAGAIN:
			return n, unix.EBUSY
		default:
			return n, err
		}
	}
}

// openat resolves a path of the guest. A mount point on the way is EACCES, since EXDEV would tell programs to copy.
func (b *linuxBackend) openat(path string, flags int, perm uint32) (int, error) {
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(perm), Resolve: beneath}
	fd, err := retry(func() (int, error) { return unix.Openat2(b.root, path, &how) })
	if err == unix.EXDEV {
		err = unix.EACCES
	}
	return fd, err
}

// parent opens the directory that path is in; release is called when done with it. Directly below the root nothing is opened.
func (b *linuxBackend) parent(path string) (fd int, name string, release func(), err error) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return b.root, path, func() {}, nil
	}
	fd, err = b.openat(path[:i], unix.O_PATH|unix.O_DIRECTORY, 0)
	return fd, path[i+1:], func() { unix.Close(fd) }, err
}

func (b *linuxBackend) seal() { b.readOnly = true }

func (b *linuxBackend) writable() error {
	if b.readOnly {
		return unix.EROFS
	}
	return nil
}

func (b *linuxBackend) lstat(path string) (stat, error) {
	switch {
	case path == "":
		return fstat(b.root)
	case strings.IndexByte(path, '/') < 0:
		return lstatat(b.root, path)
	}
	fd, err := b.openat(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return stat{}, err
	}
	defer unix.Close(fd)
	return fstat(fd)
}

func (b *linuxBackend) readlink(path string) (string, error) {
	fd, err := b.openat(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, maxTarget+1)
	n, err := unix.Readlinkat(fd, "", buf)
	if err == unix.ENOENT {
		err = unix.EINVAL // what readlinkat says of an O_PATH descriptor that is no link
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func (b *linuxBackend) openFlags(o openMode) int {
	flags := unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	switch {
	case o.write && o.read, o.trunc:
		flags |= unix.O_RDWR
	case o.write:
		flags |= unix.O_WRONLY
	}
	if o.append {
		flags |= unix.O_APPEND
	}
	if o.sync {
		flags |= unix.O_SYNC
	}
	return flags
}

// open never blocks on a FIFO and gives back nothing but regular files. O_TRUNC is left to the caller, who knows then
// what it cuts.
func (b *linuxBackend) open(path string, o openMode) (file, stat, error) {
	if o.write || o.trunc {
		if err := b.writable(); err != nil {
			return nil, stat{}, err
		}
	}
	flags := b.openFlags(o)
	noatime := 0
	if b.readOnly && !b.atime.Load() {
		noatime = unix.O_NOATIME
	}
	fd, err := b.openat(path, flags|noatime, 0)
	if err == unix.EPERM && noatime != 0 {
		b.atime.Store(true)
		fd, err = b.openat(path, flags, 0)
	}
	if err != nil {
		return nil, stat{}, err
	}
	st, err := fstat(fd)
	switch {
	case err == nil && st.kind() != modeRegular:
		err = unix.EACCES
	case err == nil && (o.write || o.trunc) && st.mode&modeSetID != 0:
		// A program that its owner had given rights does not keep them with a guest's contents; the kernel does this
		// by itself unless the server runs as root.
		if err = unix.Fchmod(fd, st.mode&modePerm); err == nil {
			st.mode &^= modeSetID
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, stat{}, err
	}
	return linuxFile(fd), st, nil
}

func (b *linuxBackend) create(path string, o openMode, perm uint32) (file, stat, error) {
	if err := b.writable(); err != nil {
		return nil, stat{}, err
	}
	o.trunc = false
	fd, err := b.openat(path, b.openFlags(o)|unix.O_CREAT|unix.O_EXCL, perm&modePerm)
	if err != nil {
		return nil, stat{}, err
	}
	st, err := fstat(fd)
	if err != nil {
		unix.Close(fd)
		return nil, stat{}, err
	}
	if perm&0o400 == 0 {
		shut.keep(fd)
	}
	return linuxFile(fd), st, nil
}

func (b *linuxBackend) mkdir(path string, perm uint32) (stat, error) {
	perm &= modePerm
	// One that cannot be opened is made so that it can, and then shut.
	st, err := b.make(path, func(fd int, name string) error { return unix.Mkdirat(fd, name, perm|0o400) })
	if err == nil && perm&0o400 == 0 {
		if err = b.change(path, change{mode: &perm}); err == nil {
			st, err = b.lstat(path)
		}
	}
	return st, err
}

func (b *linuxBackend) symlink(target, path string) (stat, error) {
	return b.make(path, func(fd int, name string) error { return unix.Symlinkat(target, fd, name) })
}

func (b *linuxBackend) link(old, path string) (stat, error) {
	return b.make(path, func(fd int, name string) error {
		from, oldName, release, err := b.parent(old)
		if err != nil {
			return err
		}
		defer release()
		return unix.Linkat(from, oldName, fd, name, 0) // 0: a link is linked, not followed
	})
}

func (b *linuxBackend) make(path string, call func(fd int, name string) error) (stat, error) {
	if err := b.writable(); err != nil {
		return stat{}, err
	}
	fd, name, release, err := b.parent(path)
	if err != nil {
		return stat{}, err
	}
	defer release()
	if err := call(fd, name); err != nil {
		return stat{}, err
	}
	return lstatat(fd, name)
}

func (b *linuxBackend) unlink(path string) error { return b.remove(path, 0) }
func (b *linuxBackend) rmdir(path string) error  { return b.remove(path, unix.AT_REMOVEDIR) }

func (b *linuxBackend) remove(path string, flags int) error {
	if err := b.writable(); err != nil {
		return err
	}
	fd, name, release, err := b.parent(path)
	if err != nil {
		return err
	}
	defer release()
	return unix.Unlinkat(fd, name, flags)
}

func (b *linuxBackend) rename(old, path string, flags uint32) error {
	if err := b.writable(); err != nil {
		return err
	}
	from, oldName, release, err := b.parent(old)
	if err != nil {
		return err
	}
	defer release()
	to, name, release2, err := b.parent(path)
	if err != nil {
		return err
	}
	defer release2()
	return unix.Renameat2(from, oldName, to, name, uint(flags))
}

func (b *linuxBackend) statfs() (statfs, error) {
	var st unix.Statfs_t
	if _, err := retry(func() (int, error) { return 0, unix.Fstatfs(b.root, &st) }); err != nil {
		return statfs{}, err
	}
	return statfs{
		bsize: uint64(max(st.Bsize, 1)), blocks: st.Blocks, bfree: st.Bfree, bavail: st.Bavail, files: st.Files, free: st.Ffree,
	}, nil
}

func (b *linuxBackend) gone() bool {
	st, err := fstat(b.root)
	return err != nil || st.nlink == 0
}

func (b *linuxBackend) close() error { return unix.Close(b.root) }
