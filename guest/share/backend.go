package share

// backend does on the host what the core has checked. Paths are components joined with '/', below the root, "" for the
// root itself; every component has passed goodName. No backend follows a link: not at the end of a path and, on Linux, not
// on the way. Errors are the host's; toErrno maps them.
//
// Two stand: linuxBackend over openat2, rootBackend over os.Root.
type backend interface {
	// seal makes every change fail with EROFS from now on, whatever the rules say: the second wall of a read-only share.
	seal()
	lstat(path string) (stat, error)
	readlink(path string) (string, error)
	// open opens a regular file, never another kind of object; trunc empties it.
	open(path string, o openMode) (file, stat, error)
	// create makes a regular file that was not there (EEXIST otherwise) and opens it.
	create(path string, o openMode, perm uint32) (file, stat, error)
	mkdir(path string, perm uint32) (stat, error)
	symlink(target, path string) (stat, error)
	link(old, path string) (stat, error)
	unlink(path string) error
	rmdir(path string) error
	// rename takes renameNoReplace and renameExchange, or fails with EINVAL where it cannot keep their promise.
	rename(old, path string, flags uint32) error
	// change sets mode and times of what is at path, itself and not what it may point to.
	change(path string, c change) error
	openDir(path string) (dir, error)
	statfs() (statfs, error)
	// gone says that the root was removed from the host's tree.
	gone() bool
	close() error
}

// file is an open regular file. It is used by several requests at once; the handle that owns it closes it last.
type file interface {
	// readAt and writeAt move segments, which may be memory that the guest is changing, at off; readAt stops early
	// only at the end of the file.
	readAt(segs [][]byte, off int64) (int, error)
	writeAt(segs [][]byte, off int64) (int, error)
	stat() (stat, error)
	truncate(size int64) error
	change(c change) error
	allocate(mode uint32, off, length int64) error
	seek(off int64, whence int) (int64, error)
	sync(dataOnly bool) error
	close() error
}

// dir is an open directory, read by one request at a time.
type dir interface {
	// seek goes to a position that next has told, or to the start with 0. The number comes from the guest.
	seek(pos uint64) error
	// next gives the entry at the position and goes on; more is false at the end.
	next() (e dirEntry, more bool, err error)
	// lstat looks at an entry of this very directory.
	lstat(name string) (stat, error)
	sync() error
	close() error
}

type dirEntry struct {
	name string
	ino  uint64
	kind uint32 // modeType bits, 0 if not known
	next uint64 // the position after this entry
}

// openMode says how a file is opened. Zero opens for reading.
type openMode struct {
	read, write, trunc, append, sync bool
}

// change is the part of SETATTR that is not a size. Nil pointers leave things alone.
type change struct {
	mode         *uint32
	atime, mtime *timespec
}

type timespec struct {
	sec  int64
	nsec uint32
	now  bool // the host's clock, at the time of the call
}

// stat is an object on the host. dev and ino tell objects apart; both are 0 where the host has no such number.
type stat struct {
	dev, ino            uint64
	size, blocks        uint64 // bytes; units of 512 bytes
	atime, mtime, ctime timespec
	mode, nlink         uint32
	blksize             uint32
	remote              bool // a placeholder: its contents are with a cloud drive, which would fetch them
}

func (st *stat) kind() uint32 { return st.mode & modeType }

// same says whether two stats are of one object, as far as the host can tell.
func (st *stat) same(dev, ino uint64) bool {
	return st.ino == 0 || ino == 0 || st.ino == ino && st.dev == dev
}

type statfs struct {
	bsize                              uint64
	blocks, bfree, bavail, files, free uint64
}
