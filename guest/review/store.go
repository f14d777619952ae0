package review

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
)

// ErrDamaged means that a store cannot be read. An import mends it: the guest
// still has its changes.
var ErrDamaged = errors.New("the review is damaged (import it again: carrel diff, with the guest running)")

// Store is the change set of one share of one guest, in a folder:
//
//	index       the entries, and what was applied or discarded and the guest may
//	            still have; replaced as a whole
//	blobs/xx/y  contents of files, by their SHA-256
//	tmp/        what is being written
//	base        see Base
//	lock        held for the moment in which the index is replaced
//	importing   held for the length of an import
//
// Several processes may have it open. Each sees the index as it was when it
// last opened, reloaded or changed it.
type Store struct {
	dir  string
	root *os.Root

	mu  sync.Mutex
	idx index
	// swept: what had no name when this process came was removed.
	swept bool

	opening sync.Mutex
	blobs   *os.Root // the folder of contents, once somebody has looked for one
}

// Open opens the store in a folder that is there. A folder without an index is
// an empty store; a damaged one is an ErrDamaged.
func Open(dir string) (*Store, error) {
	s, err := open(dir)
	if err != nil {
		return nil, err
	}
	if err := s.Reload(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// OpenToImport opens the store in a folder, whatever state its index is in: an
// import makes a new one.
func OpenToImport(dir string) (*Store, error) {
	s, err := open(dir)
	if err != nil {
		return nil, err
	}
	if err := s.Reload(); err != nil && !errors.Is(err, ErrDamaged) {
		s.Close()
		return nil, err
	}
	return s, nil
}

func open(dir string) (*Store, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open a review: %w", err)
	}
	return &Store{dir: dir, root: root}, nil
}

// Close lets go of the folder. It may be called twice.
func (s *Store) Close() error {
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.blobs != nil {
		s.blobs.Close()
	}
	return s.root.Close()
}

// Reload reads the index as it is now.
func (s *Store) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reloadLocked()
}

func (s *Store) reloadLocked() error {
	idx, err := s.readIndex(&s.idx)
	if err != nil {
		s.idx = index{}
		return fmt.Errorf("read the review in %s: %w", s.dir, err)
	}
	s.idx = idx
	return nil
}

// Entries returns the entries, each folder before what is in it.
func (s *Store) Entries() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.idx.entries)
}

// Counts counts the entries.
func (s *Store) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.idx.counts()
}

// Drop takes entries out, because they were applied or discarded: by name, with
// the stamp that each had. One that has another stamp by now stays. What is
// dropped is remembered: until the guest has let go of it too, it does not come
// back with an import unless the guest has changed it again.
func (s *Store) Drop(stamps map[string]string) error {
	if len(stamps) == 0 {
		return nil
	}
	err := s.change(func(idx *index) {
		idx.entries = slices.DeleteFunc(idx.entries, func(e Entry) bool {
			stamp, ok := stamps[e.Name]
			if ok && stamp == e.Stamp {
				idx.drop(e.Name, e.Stamp)
				return true
			}
			return false
		})
	})
	if err != nil {
		return err
	}
	return s.sweep()
}

// Forget takes entries out of the memory that Drop makes, because the guest has
// let go of them.
func (s *Store) Forget(names []string) error {
	return s.change(func(idx *index) {
		for _, n := range names {
			delete(idx.dropped, n)
		}
	})
}

// Dropped returns the names that the guest still has to let go of.
func (s *Store) Dropped() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.idx.dropped))
	for n := range s.idx.dropped {
		names = append(names, n)
	}
	slices.SortFunc(names, less)
	return names
}

// dropped gives the stamps that they had; that of what went with its folder is
// empty.
func (s *Store) dropped() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]string, len(s.idx.dropped))
	maps.Copy(all, s.idx.dropped)
	return all
}

// change replaces the index by what do makes of the newest one.
func (s *Store) change(do func(*index)) error { return s.replaceIndex(do, false) }

// replaceIndex is change, anew if do makes a whole one, so that the old one may
// be damaged.
func (s *Store) replaceIndex(do func(*index), anew bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	unlock, _, err := s.lock("lock", true)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.reloadLocked(); err != nil && !(anew && errors.Is(err, ErrDamaged)) {
		return err
	}
	was := s.idx.sum
	s.idx.sum = [sha256.Size]byte{} // until it is written
	do(&s.idx)
	return s.writeIndex(&s.idx, was)
}

// lock takes a lock among processes; got is false if somebody else has it and
// wait is not set.
func (s *Store) lock(name string, wait bool) (unlock func(), got bool, err error) {
	f, err := openOwn(s.root, name, os.O_RDWR|os.O_CREATE)
	if err == nil {
		got, err = lockFile(f, wait)
		if err == nil && got {
			return func() { f.Close() }, true, nil
		}
		f.Close()
	}
	if err != nil {
		return nil, false, fmt.Errorf("lock the review in %s: %w", s.dir, err)
	}
	return nil, false, nil
}

// openOwn opens a regular file of the store. A link or anything else under its
// name is none of ours.
func openOwn(root *os.Root, name string, flags int) (*os.File, error) {
	is, err := root.Lstat(name)
	if err == nil && !is.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("%w: it is no regular file", ErrDamaged)}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return root.OpenFile(name, flags, 0o600)
}
