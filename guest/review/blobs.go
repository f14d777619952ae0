package review

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
)

const (
	blobsDir = "blobs"
	tmpDir   = "tmp"
)

func blobPath(sum string) string { return path.Join(blobsDir, sum[:2], sum[2:]) }

// Blob opens the content of a File for reading, by its name in Entry.Blob.
func (s *Store) Blob(name string) (*os.File, error) {
	if !isSum(name) {
		return nil, fmt.Errorf("the review has no content %.70q", name)
	}
	var f *os.File
	err := s.atBlob(name, func(in *os.Root, at string) (err error) {
		f, err = openOwn(in, at, os.O_RDONLY)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the content %.12s is gone", ErrDamaged, name)
	}
	return f, err
}

// atBlob calls do with where a content is. The folder of contents is kept open:
// an os.Root opens each folder on the way anew.
func (s *Store) atBlob(name string, do func(in *os.Root, at string) error) error {
	s.opening.Lock()
	if s.blobs == nil {
		s.blobs, _ = s.root.OpenRoot(blobsDir) // there may be none
	}
	blobs := s.blobs
	s.opening.Unlock()
	if blobs != nil {
		if err := do(blobs, path.Join(name[:2], name[2:])); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return do(s.root, blobPath(name)) // it may be another folder by now
}

// blob is a content that is being written.
type blob struct {
	s    *Store
	file *os.File
	name string // in tmp
	sum  hash.Hash
	size int64
}

func (s *Store) newBlob() (*blob, error) {
	name := path.Join(tmpDir, rand.Text())
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := s.root.OpenFile(name, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.mkdir(tmpDir); err != nil {
			return nil, err
		}
		f, err = s.root.OpenFile(name, flags, 0o600)
	}
	if err != nil {
		return nil, err
	}
	return &blob{s: s, file: f, name: name, sum: sha256.New()}, nil
}

func (b *blob) Write(p []byte) (int, error) {
	n, err := b.file.Write(p)
	b.sum.Write(p[:n])
	b.size += int64(n)
	return n, err
}

// abandon throws it away.
func (b *blob) abandon() {
	b.file.Close()
	b.s.root.Remove(b.name)
}

// keep puts it in its place and returns its sum. It is not waited for: who
// reads it compares the sum (CopyBlob), and an import brings it again.
func (b *blob) keep() (string, error) {
	sum := hex.EncodeToString(b.sum.Sum(nil))
	to := blobPath(sum)
	err := b.file.Close()
	if err == nil {
		err = b.s.root.Rename(b.name, to) // also over a damaged one
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err = errors.Join(b.s.mkdir(blobsDir), b.s.mkdir(path.Dir(to))); err == nil {
			err = b.s.root.Rename(b.name, to)
		}
	}
	if err != nil {
		b.s.root.Remove(b.name)
		return "", err
	}
	return sum, nil
}

// CopyBlob writes a content to w. What was written counts only if there is no
// error: a content that is not what its name says is ErrDamaged, and is removed
// so that the next import brings it again.
func (s *Store) CopyBlob(w io.Writer, name string) (int64, error) {
	f, err := s.Blob(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(sum, w), f)
	if err == nil && hex.EncodeToString(sum.Sum(nil)) != name {
		err = s.damaged(name)
	}
	return n, err
}

// readBlob is CopyBlob into memory, of a content of size bytes.
func (s *Store) readBlob(name string, size int64) ([]byte, error) {
	f, err := s.Blob(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, size+1)
	n, err := io.ReadFull(f, b)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	if sum := sha256.Sum256(b[:n]); hex.EncodeToString(sum[:]) != name {
		return nil, s.damaged(name)
	}
	return b[:n], nil
}

// damaged removes a content that is not what its name says.
func (s *Store) damaged(name string) error {
	s.root.Remove(blobPath(name))
	return fmt.Errorf("%w: the content %.12s is another", ErrDamaged, name)
}

func (s *Store) mkdir(name string) error {
	err := s.root.Mkdir(name, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	is, err := s.root.Lstat(name)
	if err == nil && !is.IsDir() {
		err = &fs.PathError{Op: "mkdir", Path: name, Err: fmt.Errorf("%w: it is no folder", ErrDamaged)}
	}
	return err
}

// replace writes a file beside its place and renames it.
func (s *Store) replace(name string, content []byte) error {
	b, err := s.newBlob()
	if err != nil {
		return err
	}
	if _, err := b.Write(content); err != nil {
		b.abandon()
		return err
	}
	if err := b.file.Sync(); err != nil {
		b.abandon()
		return err
	}
	if err := b.file.Close(); err != nil {
		b.abandon()
		return err
	}
	if err := s.root.Rename(b.name, name); err != nil {
		b.abandon()
		return err
	}
	return s.syncDir(".")
}

// syncDir makes a rename last, where folders can be synced.
func (s *Store) syncDir(name string) error {
	d, err := s.root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && runtime.GOOS != "windows" {
		return err
	}
	return nil
}

// sweep removes contents that no entry names any more, and what was left half
// written; not during an import, whose contents no entry names yet.
func (s *Store) sweep() error {
	unlock, got, err := s.lock("importing", false)
	if err != nil || !got {
		return err
	}
	defer unlock()
	return s.sweepAlone()
}

// sweepAlone is sweep while importing is held.
func (s *Store) sweepAlone() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	unlock, _, err := s.lock("lock", true)
	if err != nil {
		return err
	}
	defer unlock()
	idx, err := s.readIndex(&s.idx)
	if err != nil {
		return err
	}
	named := map[string]bool{}
	for n := range idx.entries {
		if b := idx.entries[n].Blob; b != "" {
			named[b] = true
		}
	}
	err = fs.WalkDir(s.root.FS(), blobsDir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if dir, file := path.Split(p); named[path.Base(dir)+file] {
			return nil
		}
		return s.root.Remove(p)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old contents of the review in %s: %w", s.dir, err)
	}
	left, _ := fs.ReadDir(s.root.FS(), tmpDir)
	for _, d := range left {
		s.root.Remove(path.Join(tmpDir, d.Name()))
	}
	return nil
}
