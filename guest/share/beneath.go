package share

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
)

// Folder is an open folder beneath a root, for those who write into a share on the host's behalf. Every operation takes one
// name in exactly this folder, whatever has become of the way that led to it, and follows no link: what was looked at and
// what is then changed are in one place. It is safe for use by several goroutines at once.
type Folder struct {
	back backend
	path string // for messages
}

// GoodPath says why path cannot be that of an entry below a root: it is neither clean nor one that this host could store.
// "" is the root itself.
func GoodPath(path string) error {
	if path == "" {
		return nil
	}
	if len(path) > maxPath {
		return fmt.Errorf("the name has %d bytes; %d are possible", len(path), maxPath)
	}
	for part := range strings.SplitSeq(path, "/") {
		if e := goodName([]byte(part)); e != ok {
			return fmt.Errorf("%.300q has a part that is not a name of a file here (%.300q)", path, part)
		}
	}
	return nil
}

// Folder opens the folder at path, "" for the root itself. A link or a mount point on the way, or in the end, is an error.
func (r *Root) Folder(path string) (*Folder, error) {
	if err := GoodPath(path); err != nil {
		return nil, err
	}
	var back backend
	var err error
	if b, portable := r.back.(*rootBackend); portable {
		back, err = b.below(path)
	} else {
		back, err = below(r.back, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the folder %q below %s: %w", path, r.path, err)
	}
	return &Folder{back: back, path: path}, nil
}

// below opens a folder for a backend of its own.
func (b *rootBackend) below(path string) (backend, error) {
	name, err := b.straight(path)
	if err != nil {
		return nil, err
	}
	before, err := b.root.Lstat(name)
	switch {
	case err != nil:
		return nil, err
	case before.Mode()&fs.ModeSymlink != 0:
		return nil, eLOOP
	case !before.IsDir():
		return nil, eNOTDIR
	}
	root, err := b.root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	if after, err := root.Stat("."); err != nil || !os.SameFile(before, after) {
		root.Close()
		return nil, errors.Join(err, eSTALE)
	}
	return &rootBackend{root: root, readOnly: b.readOnly}, nil
}

// Lstat looks at one entry of the root's tree.
func (r *Root) Lstat(path string) (Info, error) {
	if err := GoodPath(path); err != nil {
		return Info{}, err
	}
	st, err := r.back.lstat(path)
	if err != nil {
		return Info{}, said("look at", path, err)
	}
	return st.info(), nil
}

// Move gives an entry another name, in another folder, that is not there yet.
func (r *Root) Move(from, to string) error {
	if err := errors.Join(GoodPath(from), GoodPath(to)); err != nil {
		return err
	}
	return said("rename", from, r.back.rename(from, to, renameNoReplace))
}

// Path is where the folder was opened, relative to the root.
func (f *Folder) Path() string { return f.path }

// Close lets go of the folder.
func (f *Folder) Close() error { return f.back.close() }

// one refuses what is not one name.
func one(name string) error {
	if goodName([]byte(name)) != ok {
		return fmt.Errorf("%.300q is not a name of a file here: %w", name, fs.ErrInvalid)
	}
	return nil
}

// said gives an error of the host with what was tried.
func said(what, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %.300q: %w", what, name, err)
}

// Lstat looks at an entry. Nothing there is fs.ErrNotExist.
func (f *Folder) Lstat(name string) (Info, error) {
	if name != "" { // the folder itself
		if err := one(name); err != nil {
			return Info{}, err
		}
	}
	st, err := f.back.lstat(name)
	if err != nil {
		return Info{}, said("look at", name, err)
	}
	return st.info(), nil
}

// Readlink gives a link's target.
func (f *Folder) Readlink(name string) (string, error) {
	if err := one(name); err != nil {
		return "", err
	}
	target, err := f.back.readlink(name)
	return target, said("read the link", name, err)
}

// Open opens a regular file for reading; anything else is an error. Info is of what was opened.
func (f *Folder) Open(name string) (*Handle, Info, error) {
	if err := one(name); err != nil {
		return nil, Info{}, err
	}
	h, st, err := f.back.open(name, openMode{read: true})
	if err != nil {
		return nil, Info{}, said("open", name, err)
	}
	return &Handle{f: h}, st.info(), nil
}

// OpenWritable opens a regular file that is there for reading and writing.
func (f *Folder) OpenWritable(name string) (*Handle, Info, error) {
	if err := one(name); err != nil {
		return nil, Info{}, err
	}
	h, st, err := f.back.open(name, openMode{read: true, write: true})
	if err != nil {
		return nil, Info{}, said("open", name, err)
	}
	return &Handle{f: h}, st.info(), nil
}

// Create makes a regular file that was not there, for reading and writing.
func (f *Folder) Create(name string, perm os.FileMode) (*Handle, error) {
	if err := one(name); err != nil {
		return nil, err
	}
	h, _, err := f.back.create(name, openMode{read: true, write: true}, uint32(perm.Perm()))
	if err != nil {
		return nil, said("make", name, err)
	}
	return &Handle{f: h}, nil
}

// Mkdir makes a folder.
func (f *Folder) Mkdir(name string, perm os.FileMode) error {
	if err := one(name); err != nil {
		return err
	}
	_, err := f.back.mkdir(name, uint32(perm.Perm()))
	return said("make the folder", name, err)
}

// Symlink makes a link; where it points is not looked at.
func (f *Folder) Symlink(target, name string) error {
	if err := one(name); err != nil {
		return err
	}
	if target == "" || len(target) > maxTarget || strings.IndexByte(target, 0) >= 0 {
		return fmt.Errorf("make the link %.300q: %d bytes are no target of a link: %w", name, len(target), fs.ErrInvalid)
	}
	_, err := f.back.symlink(target, name)
	return said("make the link", name, err)
}

// Rename gives an entry another name in this folder, which is not there yet. On hosts without such a call, only this process
// keeps from replacing what another program makes in between.
func (f *Folder) Rename(from, to string) error { return f.rename(from, to, renameNoReplace) }

// Replace is Rename over what may be there.
func (f *Folder) Replace(from, to string) error { return f.rename(from, to, 0) }

// Exchange swaps two entries at once. It is errors.ErrUnsupported on hosts or file systems that cannot.
func (f *Folder) Exchange(a, b string) error {
	err := f.rename(a, b, renameExchange)
	if err != nil && toErrno(err) == eINVAL {
		return errors.Join(errors.ErrUnsupported, err)
	}
	return err
}

func (f *Folder) rename(from, to string, flags uint32) error {
	if err := errors.Join(one(from), one(to)); err != nil {
		return err
	}
	return said("rename", from, f.back.rename(from, to, flags))
}

// Chmod sets the permission bits of a file or a folder, itself and not what a link points to; no other bits.
func (f *Folder) Chmod(name string, perm os.FileMode) error {
	if err := one(name); err != nil {
		return err
	}
	mode := uint32(perm.Perm())
	return said("change the mode of", name, f.back.change(name, change{mode: &mode}))
}

// SetModified sets when an entry, itself, was last modified.
func (f *Folder) SetModified(name string, at time.Time) error {
	if err := one(name); err != nil {
		return err
	}
	return said("change the time of", name, f.back.change(name, change{mtime: spec(at)}))
}

func spec(at time.Time) *timespec { return &timespec{sec: at.Unix(), nsec: uint32(at.Nanosecond())} }

// Unlink removes an entry that is not a folder.
func (f *Folder) Unlink(name string) error {
	if err := one(name); err != nil {
		return err
	}
	return said("remove", name, f.back.unlink(name))
}

// Rmdir removes an empty folder.
func (f *Folder) Rmdir(name string) error {
	if err := one(name); err != nil {
		return err
	}
	return said("remove the folder", name, f.back.rmdir(name))
}

// Names calls take with each name in the folder, until it says no. The order is the host's.
func (f *Folder) Names(take func(name string) bool) error {
	d, err := f.back.openDir("")
	if err != nil {
		return said("list", f.path, err)
	}
	defer d.close()
	for {
		e, more, err := d.next()
		switch {
		case err != nil:
			return said("list", f.path, err)
		case !more:
			return nil
		case e.name != "." && e.name != ".." && !take(e.name):
			return nil
		}
	}
}

// Sync makes what was done to the folder's names last.
func (f *Folder) Sync() error {
	d, err := f.back.openDir("")
	if err != nil {
		return said("sync", f.path, err)
	}
	defer d.close()
	if err := d.sync(); err != nil && toErrno(err) != eINVAL { // some file systems have nothing to do
		return said("sync", f.path, err)
	}
	return nil
}

// Handle is an open regular file.
type Handle struct{ f file }

// ReadAt implements io.ReaderAt.
func (h *Handle) ReadAt(p []byte, off int64) (int, error) {
	n, err := h.f.readAt([][]byte{p}, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// WriteAt implements io.WriterAt.
func (h *Handle) WriteAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) { // a write that is cut short has its error when it goes on
		some, err := h.f.writeAt([][]byte{p[n:]}, off+int64(n))
		if err == nil && some <= 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return n, err
		}
		n += some
	}
	return n, nil
}

// Lstat looks at the file, whatever has become of its name.
func (h *Handle) Lstat() (Info, error) {
	st, err := h.f.stat()
	return st.info(), err
}

// Chmod sets the permission bits, and no other.
func (h *Handle) Chmod(perm os.FileMode) error {
	mode := uint32(perm.Perm())
	return h.f.change(change{mode: &mode})
}

// SetModified sets when the file was last modified.
func (h *Handle) SetModified(at time.Time) error { return h.f.change(change{mtime: spec(at)}) }

// Sync makes the content last.
func (h *Handle) Sync() error { return h.f.sync(false) }

// StartSync begins what Sync waits for, where the host has a call for that: of
// several files that are to last, the disk then takes all in one go.
func (h *Handle) StartSync() { startSync(h.f) }

// Close closes the file.
func (h *Handle) Close() error { return h.f.close() }

// info is what others see of a stat.
func (st *stat) info() Info {
	mode := os.FileMode(st.mode & modePerm)
	switch st.kind() {
	case modeRegular:
	case modeDir:
		mode |= fs.ModeDir
	case modeSymlink:
		mode |= fs.ModeSymlink
	case modeFIFO:
		mode |= fs.ModeNamedPipe
	case modeSocket:
		mode |= fs.ModeSocket
	case modeBlock:
		mode |= fs.ModeDevice
	case modeChar:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	default:
		mode |= fs.ModeIrregular
	}
	if st.mode&0o4000 != 0 {
		mode |= fs.ModeSetuid
	}
	if st.mode&0o2000 != 0 {
		mode |= fs.ModeSetgid
	}
	return Info{
		Dev: st.dev, Ino: st.ino, Size: int64(st.size), Mode: mode, Nlink: st.nlink,
		Mtime: time.Unix(st.mtime.sec, int64(st.mtime.nsec)), Ctime: time.Unix(st.ctime.sec, int64(st.ctime.nsec)),
	}
}

// Is lets errors.Is know the numbers that a backend gives by itself.
func (e errno) Is(target error) bool {
	switch target {
	case fs.ErrNotExist:
		return e == eNOENT
	case fs.ErrExist:
		return e == eEXIST
	case fs.ErrPermission:
		return e == eACCES || e == ePERM
	case errors.ErrUnsupported:
		return e == eOPNOTSUPP || e == eNOSYS
	}
	return false
}

// IsFull says that the host has no room: on the disk, or in the user's quota.
func IsFull(err error) bool {
	e := toErrno(err)
	return e == eNOSPC || e == eDQUOT
}

// IsAstray says that a path could not be followed, since a part of it is a link, a file or a mount point.
func IsAstray(err error) bool {
	e := toErrno(err)
	return e == eLOOP || e == eNOTDIR || e == eXDEV
}
