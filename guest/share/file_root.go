package share

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
)

// rootFile is an *os.File of a regular file, which waits by itself for those who use it before it closes.
type rootFile struct {
	f   *os.File
	app bool
	mu  sync.Mutex // appending, and seeking
}

func (f *rootFile) readAt(segs [][]byte, off int64) (int, error) {
	done := 0
	for _, s := range segs {
		n, err := f.f.ReadAt(s, off+int64(done))
		done += n
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && done == 0 {
			return 0, err
		}
		if err != nil || n < len(s) {
			break
		}
	}
	return done, nil
}

func (f *rootFile) writeAt(segs [][]byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.app {
		info, err := f.f.Stat()
		if err != nil {
			return 0, err
		}
		off = info.Size()
	}
	done := 0
	for _, s := range segs {
		n, err := f.f.WriteAt(s, off+int64(done))
		done += n
		if err != nil && done == 0 {
			return 0, err
		}
		if err != nil {
			break
		}
	}
	return done, nil
}

func (f *rootFile) stat() (stat, error) {
	info, err := f.f.Stat()
	if err != nil {
		return stat{}, err
	}
	return infoStat(info), nil
}

func (f *rootFile) truncate(size int64) error { return f.f.Truncate(size) }

func (f *rootFile) change(c change) error {
	if c.mode != nil {
		if err := f.f.Chmod(fs.FileMode(*c.mode & modePerm)); err != nil {
			return err
		}
	}
	if c.atime != nil || c.mtime != nil {
		return fileTimes(f.f, c)
	}
	return nil
}

func (f *rootFile) allocate(uint32, int64, int64) error { return eOPNOTSUPP }

// seek knows no holes: everything is data up to the end (what lseek(2) allows a file system to say).
func (f *rootFile) seek(off int64, whence int) (int64, error) {
	info, err := f.f.Stat()
	switch {
	case err != nil:
		return 0, err
	case off >= info.Size():
		return 0, eNXIO
	case whence == seekHole:
		return info.Size(), nil
	}
	return off, nil
}

func (f *rootFile) sync(bool) error { return f.f.Sync() }
func (f *rootFile) close() error    { return f.f.Close() }

// rootDir is a list of names, taken when it is first read and again at each start over. Positions are indices plus one.
type rootDir struct {
	b     *rootBackend
	path  string
	f     *os.File
	names []fs.DirEntry
	taken bool
	at    uint64
}

// maxDirEntries bounds one such list: 65,536 names of up to 255 bytes. What is beyond is not shown, and found by name only.
const maxDirEntries = 1 << 16

func (b *rootBackend) openDir(p string) (dir, error) {
	name, err := b.straight(p)
	if err != nil {
		return nil, err
	}
	info, err := b.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, eNOTDIR
	}
	if st := b.stat(info); st.remote {
		return nil, eNODATA // listing it would fetch it
	}
	f, err := b.root.Open(name)
	if err != nil {
		return nil, err
	}
	return &rootDir{b: b, path: p, f: f}, nil
}

func (d *rootDir) seek(pos uint64) error {
	if pos == 0 && d.taken {
		if _, err := d.f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		d.names, d.taken = nil, false
	}
	d.at = pos
	return nil
}

func (d *rootDir) next() (e dirEntry, more bool, err error) {
	if !d.taken {
		d.names, err = d.f.ReadDir(maxDirEntries)
		if err != nil && !errors.Is(err, io.EOF) {
			return e, false, err
		}
		d.taken = true
	}
	switch at := d.at; {
	case at < 2:
		e = dirEntry{name: []string{".", ".."}[at], kind: modeDir}
	case at-2 < uint64(len(d.names)):
		n := d.names[at-2]
		e = dirEntry{name: n.Name(), kind: linuxMode(n.Type()) & modeType}
	default:
		return e, false, nil
	}
	d.at++
	e.next = d.at
	return e, true, nil
}

func (d *rootDir) lstat(name string) (stat, error) { return d.b.lstat(path.Join(d.path, name)) }
func (d *rootDir) sync() error                     { return nil }
func (d *rootDir) close() error                    { return d.f.Close() }
