package share

import (
	"golang.org/x/sys/unix"
)

// linuxFile is a descriptor of a regular file.
type linuxFile int

// maxSegments is IOV_MAX: what one preadv or pwritev takes.
const maxSegments = 1024

// move repeats call until the segments are done, or it says 0 (the end of the file) or an error. What was moved before
// an error counts, and the error is said to whoever asks for the rest.
func move(segs [][]byte, off int64, call func(segs [][]byte, off int64) (int, error)) (int, error) {
	done := 0
	for len(segs) > 0 {
		n, err := retry(func() (int, error) { return call(segs[:min(len(segs), maxSegments)], off+int64(done)) })
		if err != nil && done == 0 {
			return 0, err
		}
		if err != nil || n <= 0 {
			break
		}
		done += n
		for len(segs) > 0 && n >= len(segs[0]) {
			n -= len(segs[0])
			segs = segs[1:]
		}
		if n > 0 {
			segs[0] = segs[0][n:]
		}
	}
	return done, nil
}

func (f linuxFile) readAt(segs [][]byte, off int64) (int, error) {
	return move(segs, off, func(segs [][]byte, off int64) (int, error) {
		if len(segs) == 1 {
			return unix.Pread(int(f), segs[0], off)
		}
		return unix.Preadv(int(f), segs, off)
	})
}

func (f linuxFile) writeAt(segs [][]byte, off int64) (int, error) {
	return move(segs, off, func(segs [][]byte, off int64) (int, error) {
		if len(segs) == 1 {
			return unix.Pwrite(int(f), segs[0], off)
		}
		return unix.Pwritev(int(f), segs, off)
	})
}

func (f linuxFile) stat() (stat, error) { return fstat(int(f)) }

func (f linuxFile) truncate(size int64) error {
	_, err := retry(func() (int, error) { return 0, unix.Ftruncate(int(f), size) })
	return err
}

func (f linuxFile) change(c change) error { return changeOpen(int(f), c) }

func (f linuxFile) allocate(mode uint32, off, length int64) error {
	_, err := retry(func() (int, error) { return 0, unix.Fallocate(int(f), mode, off, length) })
	return err
}

func (f linuxFile) seek(off int64, whence int) (int64, error) {
	// The position of the descriptor is used by nothing else, so requests that seek at once do not disturb each other.
	return unix.Seek(int(f), off, whence)
}

func (f linuxFile) sync(dataOnly bool) error {
	_, err := retry(func() (int, error) {
		if dataOnly {
			return 0, unix.Fdatasync(int(f))
		}
		return 0, unix.Fsync(int(f))
	})
	return err
}

func (f linuxFile) close() error { return unix.Close(int(f)) }

// linuxDir reads a directory with getdents64. Positions are the host's own (d_off), which any number may be tried as.
type linuxDir struct {
	fd   int
	buf  []byte // read, not given yet
	full []byte // 4 KiB once something was read: about a hundred entries
}

const dirBuffer = 4 << 10

func (b *linuxBackend) openDir(path string) (dir, error) {
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
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
		return nil, err
	}
	return &linuxDir{fd: fd}, nil
}

func (d *linuxDir) seek(pos uint64) error {
	d.buf = nil
	_, err := unix.Seek(d.fd, int64(pos), unix.SEEK_SET)
	return err
}

// next takes struct linux_dirent64 apart: ino, off (8 bytes each), reclen (2), type (1), name and NUL.
func (d *linuxDir) next() (e dirEntry, more bool, err error) {
	if len(d.buf) == 0 {
		if d.full == nil {
			d.full = make([]byte, dirBuffer)
		}
		n, err := retry(func() (int, error) { return unix.Getdents(d.fd, d.full) })
		if err != nil || n <= 0 {
			return e, false, err
		}
		d.buf = d.full[:n]
	}
	const header = 19
	if len(d.buf) < header {
		return e, false, unix.EIO
	}
	length := int(le.Uint16(d.buf[16:]))
	if length < header || length > len(d.buf) {
		return e, false, unix.EIO
	}
	e.ino = le.Uint64(d.buf[0:])
	e.next = le.Uint64(d.buf[8:])
	e.kind = uint32(d.buf[18]) << 12
	name := d.buf[header:length]
	for i, c := range name {
		if c == 0 {
			name = name[:i]
			break
		}
	}
	e.name = string(name)
	d.buf = d.buf[length:]
	return e, true, nil
}

func (d *linuxDir) lstat(name string) (stat, error) { return lstatat(d.fd, name) }
func (d *linuxDir) sync() error                     { return linuxFile(d.fd).sync(false) }
func (d *linuxDir) close() error                    { return unix.Close(d.fd) }
