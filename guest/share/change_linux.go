package share

import (
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Modes and times are changed through descriptors of open files alone. The other
// calls for them take a name, or a descriptor of an object that was only named
// (O_PATH), of any file that this user has: Landlock, which keeps everything else
// to the folder, does not look at them (kernel Documentation/userspace-api/landlock.rst,
// "Current limitations"). What is opened must lie below the folder. So those
// calls are refused to a confined process altogether (confine_linux.go).
//
// It costs: the times of a link itself cannot be set, nor anything of a pipe, a
// socket or a device, since to open one would be a deed of its own; and what its
// owner may not open needs a descriptor from before it was so.

func (b *linuxBackend) change(path string, c change) error {
	if err := b.writable(); err != nil {
		return err
	}
	st, err := b.lstat(path)
	if err != nil {
		return err
	}
	switch st.kind() {
	case modeRegular, modeDir:
	case modeSymlink:
		if c.mode != nil {
			return unix.EOPNOTSUPP // Linux has no mode for links
		}
		return nil // tar and cp count a refusal as a failure
	default:
		return unix.EPERM
	}
	fd, err := b.toChange(path, st)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return changeOpen(fd, c)
}

// toChange opens the file or folder at path, which was just looked at.
func (b *linuxBackend) toChange(path string, is stat) (int, error) {
	flags := unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	if is.kind() == modeDir {
		flags |= unix.O_DIRECTORY
	}
	fd, err := b.openat(path, flags|unix.O_RDONLY, 0)
	if err == unix.EACCES && is.kind() == modeRegular {
		fd, err = b.openat(path, flags|unix.O_WRONLY, 0)
	}
	if err == unix.EACCES {
		if kept := shut.get(is.dev, is.ino); kept >= 0 {
			return kept, nil
		}
	}
	if err != nil {
		return -1, err
	}
	if st, err := fstat(fd); err != nil || st.kind() != is.kind() { // something else was put there
		unix.Close(fd)
		return -1, unix.EPERM
	}
	return fd, nil
}

// changeOpen changes mode and times of an open file or folder.
func changeOpen(fd int, c change) error {
	if c.mode != nil {
		if *c.mode&0o400 == 0 {
			shut.keep(fd)
		}
		if err := unix.Fchmod(fd, *c.mode); err != nil {
			return err
		}
	}
	return changeTimes(fd, c)
}

// changeTimes is futimens(3): utimensat with no name at all.
func changeTimes(fd int, c change) error {
	if c.atime == nil && c.mtime == nil {
		return nil
	}
	ts := [2]unix.Timespec{times(c.atime), times(c.mtime)}
	if _, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0); e != 0 {
		return e
	}
	return nil
}

func times(t *timespec) unix.Timespec {
	switch {
	case t == nil:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case t.now:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: t.sec, Nsec: int64(t.nsec)}
}

// maxShut is how many descriptors are kept of what cannot be opened again.
const maxShut = 256

// shut has a descriptor of each file and folder that a guest has made unreadable
// for its owner, so that it can make it readable again. The oldest go first.
var shut shutFiles

type shutFiles struct {
	mu  sync.Mutex
	all []shutFile
}

type shutFile struct {
	dev, ino uint64
	fd       int
}

// keep remembers what fd is open to, if there is a descriptor left for it.
func (s *shutFiles) keep(fd int) {
	st, err := fstat(fd)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	left := s.all[:0]
	for _, f := range s.all {
		is, err := fstat(f.fd)
		if err != nil || is.nlink == 0 || is.mode&0o400 != 0 || f.dev == st.dev && f.ino == st.ino {
			unix.Close(f.fd) // it is gone, or can be opened again
			continue
		}
		left = append(left, f)
	}
	s.all = left
	if len(s.all) >= maxShut {
		unix.Close(s.all[0].fd)
		s.all = append(s.all[:0], s.all[1:]...)
	}
	if own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
		s.all = append(s.all, shutFile{st.dev, st.ino, own})
	}
}

// get gives a descriptor of the caller's own, or -1.
func (s *shutFiles) get(dev, ino uint64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.all {
		if f.dev != dev || f.ino != ino {
			continue
		}
		if own, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			return own
		}
	}
	return -1
}

// fileTimes sets times through the descriptor, to the nanosecond.
func fileTimes(f *os.File, c change) error { return changeTimes(int(f.Fd()), c) }
