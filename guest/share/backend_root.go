package share

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// rootBackend works below an os.Root, on every system that Go has. os.Root keeps each operation inside the folder; it does
// follow symbolic links that stay inside, so every directory on a path is first looked at and a link refused. A link that
// is swapped in between the look and the use can lead to another place inside the folder, never outside.
//
// It is slower than openat2 (some 15 µs for each operation), does not say ENOTDIR everywhere that Linux does, and cannot
// exchange names.
type rootBackend struct {
	root     *os.Root
	readOnly bool       // set before the first request
	mu       sync.Mutex // rename without replacing, and what it must not race with
	// cloud, if not nil, says in place of the host which entries are placeholders.
	cloud func(fs.FileInfo) bool
}

// pinPortable opens a folder for a rootBackend. Between the look at its components and the opening, the host's user could put a
// link there: the folder that was opened is compared with the one that was looked at.
func pinPortable(name string) (backend, stat, error) {
	if !filepath.IsAbs(name) || filepath.Clean(name) != name {
		return nil, stat{}, errors.New("not an absolute, clean path")
	}
	var seen fs.FileInfo
	for at := name; ; at = filepath.Dir(at) {
		info, err := os.Lstat(at)
		if err != nil {
			return nil, stat{}, err
		}
		if info.Mode()&(fs.ModeSymlink|fs.ModeIrregular) != 0 {
			return nil, stat{}, &fs.PathError{Op: "open", Path: at, Err: errors.New("is a symbolic link or a junction (give the folder's real path)")}
		}
		if seen == nil {
			seen = info
		}
		if filepath.Dir(at) == at {
			break
		}
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, stat{}, err
	}
	info, err := root.Stat(".")
	if err == nil && !os.SameFile(info, seen) {
		err = errors.New("the folder was replaced while it was opened")
	}
	st := stat{}
	if err == nil {
		st = infoStat(info)
		err = identify(root, &st)
	}
	if err != nil {
		root.Close()
		return nil, stat{}, err
	}
	return &rootBackend{root: root}, st, nil
}

func (b *rootBackend) seal() { b.readOnly = true }

// straight gives the name for os.Root, after seeing that no directory on the way is a link.
func (b *rootBackend) straight(p string) (string, error) {
	if p == "" {
		return ".", nil
	}
	for i := range len(p) {
		if p[i] != '/' {
			continue
		}
		info, err := b.root.Lstat(filepath.FromSlash(p[:i]))
		switch {
		case err != nil:
			return "", err
		case info.Mode()&fs.ModeSymlink != 0:
			return "", eLOOP
		case !info.IsDir():
			return "", eNOTDIR
		}
	}
	return filepath.FromSlash(p), nil
}

func (b *rootBackend) changing(p string) (string, error) {
	if b.readOnly {
		return "", eROFS
	}
	return b.straight(p)
}

// stat is infoStat with what cloud says.
func (b *rootBackend) stat(info fs.FileInfo) stat {
	st := infoStat(info)
	if b.cloud != nil {
		st.remote = b.cloud(info)
	}
	return st
}

func (b *rootBackend) lstat(p string) (stat, error) {
	name, err := b.straight(p)
	if err != nil {
		return stat{}, err
	}
	info, err := b.root.Lstat(name)
	if err != nil {
		return stat{}, err
	}
	return b.stat(info), nil
}

func (b *rootBackend) readlink(p string) (string, error) {
	name, err := b.straight(p)
	if err != nil {
		return "", err
	}
	return b.root.Readlink(name)
}

func (b *rootBackend) open(p string, o openMode) (file, stat, error) {
	if b.readOnly && (o.write || o.trunc) {
		return nil, stat{}, eROFS
	}
	name, err := b.straight(p)
	if err != nil {
		return nil, stat{}, err
	}
	before, err := b.root.Lstat(name)
	switch {
	case err != nil:
		return nil, stat{}, err
	case before.Mode()&fs.ModeSymlink != 0:
		return nil, stat{}, eLOOP
	case !before.Mode().IsRegular():
		return nil, stat{}, eACCES
	}
	if st := b.stat(before); st.remote {
		return nil, stat{}, eNODATA
	}
	return b.openFile(name, before, o, 0, 0)
}

func (b *rootBackend) create(p string, o openMode, perm uint32) (file, stat, error) {
	name, err := b.changing(p)
	if err != nil {
		return nil, stat{}, err
	}
	o.trunc = false
	return b.openFile(name, nil, o, os.O_CREATE|os.O_EXCL, fs.FileMode(perm&modePerm))
}

// openFile opens and makes sure that it is the file that was looked at (with O_EXCL there is none), before anything is cut.
func (b *rootBackend) openFile(name string, before fs.FileInfo, o openMode, flags int, perm fs.FileMode) (file, stat, error) {
	switch {
	case o.write && o.read, o.trunc:
		flags |= os.O_RDWR
	case o.write:
		flags |= os.O_WRONLY
	}
	if o.sync {
		flags |= os.O_SYNC
	}
	f, err := b.root.OpenFile(name, flags|openNonblock, perm)
	if err != nil {
		return nil, stat{}, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = eACCES
	case before != nil && !os.SameFile(before, info):
		err = eSTALE
	case info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 && (o.write || o.trunc):
		err = f.Chmod(info.Mode() & fs.ModePerm)
	}
	if err != nil {
		f.Close()
		return nil, stat{}, err
	}
	return &rootFile{f: f, app: o.append}, infoStat(info), nil
}

func (b *rootBackend) mkdir(p string, perm uint32) (stat, error) {
	return b.make(p, func(name string) error { return b.root.Mkdir(name, fs.FileMode(perm&modePerm)) })
}

func (b *rootBackend) symlink(target, p string) (stat, error) {
	return b.make(p, func(name string) error { return b.root.Symlink(target, name) })
}

func (b *rootBackend) link(old, p string) (stat, error) {
	return b.make(p, func(name string) error {
		from, err := b.straight(old)
		if err != nil {
			return err
		}
		return b.root.Link(from, name)
	})
}

func (b *rootBackend) make(p string, call func(name string) error) (stat, error) {
	name, err := b.changing(p)
	if err != nil {
		return stat{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := call(name); err != nil {
		return stat{}, err
	}
	info, err := b.root.Lstat(name)
	if err != nil {
		return stat{}, err
	}
	return infoStat(info), nil
}

func (b *rootBackend) unlink(p string) error { return b.remove(p, false) }
func (b *rootBackend) rmdir(p string) error  { return b.remove(p, true) }

// remove looks first, since os.Root.Remove takes either kind.
func (b *rootBackend) remove(p string, wantDir bool) error {
	name, err := b.changing(p)
	if err != nil {
		return err
	}
	info, err := b.root.Lstat(name)
	switch {
	case err != nil:
		return err
	case wantDir && !info.IsDir():
		return eNOTDIR
	case !wantDir && info.IsDir():
		return eISDIR
	}
	return b.root.Remove(name)
}

// rename promises "no replacing" against the guest's own requests only: os.Root has no call for it. Exchange is EINVAL,
// which programs take as "not supported here".
func (b *rootBackend) rename(old, p string, flags uint32) error {
	if flags&^renameNoReplace != 0 {
		return eINVAL
	}
	from, err := b.changing(old)
	if err != nil {
		return err
	}
	to, err := b.changing(p)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	is, err := b.root.Lstat(to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return b.root.Rename(from, to)
	case err != nil:
		return err
	}
	was, err := b.root.Lstat(from)
	switch {
	case err != nil:
		return err
	case flags&renameNoReplace != 0:
		return eEXIST
	case os.SameFile(was, is):
		return nil
	case strings.HasPrefix(to, from+string(filepath.Separator)):
		return eINVAL
	case was.IsDir() && !is.IsDir():
		return eNOTDIR
	case !was.IsDir() && is.IsDir():
		return eISDIR
	case is.IsDir():
		// os.Root.Rename replaces no folder, where Linux replaces an empty one. Another process can get between the two.
		if strings.HasPrefix(from, to+string(filepath.Separator)) {
			return eNOTEMPTY
		}
		if err := b.root.Remove(to); err != nil {
			return err
		}
	}
	return b.root.Rename(from, to)
}

func (b *rootBackend) change(p string, c change) error {
	name, err := b.changing(p)
	if err != nil {
		return err
	}
	info, err := b.root.Lstat(name)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		if c.mode != nil {
			return eOPNOTSUPP
		}
		return nil // the times of a link itself cannot be set through os.Root; those of its target must not be
	}
	if c.mode != nil {
		if err := b.root.Chmod(name, fs.FileMode(*c.mode&modePerm)); err != nil {
			return err
		}
	}
	if c.atime != nil || c.mtime != nil {
		return b.root.Chtimes(name, c.atime.time(), c.mtime.time())
	}
	return nil
}

// time is zero, which os.Chtimes leaves alone, for nil.
func (t *timespec) time() time.Time {
	switch {
	case t == nil:
		return time.Time{}
	case t.now:
		return time.Now()
	}
	return time.Unix(t.sec, int64(t.nsec))
}

func (b *rootBackend) statfs() (statfs, error) { return rootStatfs(b.root) }

func (b *rootBackend) gone() bool {
	info, err := b.root.Stat(".")
	if err != nil {
		return true
	}
	st := infoStat(info)
	return st.ino != 0 && st.nlink == 0
}

func (b *rootBackend) close() error { return b.root.Close() }

// linuxMode gives Go's mode as Linux's bits, without set-id and sticky.
func linuxMode(m fs.FileMode) uint32 {
	perm := uint32(m & fs.ModePerm)
	switch m & fs.ModeType {
	case 0:
		return modeRegular | perm
	case fs.ModeDir:
		return modeDir | perm
	case fs.ModeSymlink:
		return modeSymlink | perm
	case fs.ModeNamedPipe:
		return modeFIFO | perm
	case fs.ModeSocket:
		return modeSocket | perm
	case fs.ModeDevice:
		return modeBlock | perm
	}
	return modeChar | perm // also what Go calls irregular: listed, never opened
}

// portableStat is what io/fs knows.
func portableStat(info fs.FileInfo) stat {
	t := info.ModTime()
	at := timespec{sec: t.Unix(), nsec: uint32(t.Nanosecond())}
	size := uint64(max(info.Size(), 0))
	return stat{
		size: size, blocks: (size + 511) / 512, atime: at, mtime: at, ctime: at,
		mode: linuxMode(info.Mode()), nlink: 1, blksize: 4096,
	}
}
