package review

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/carrel-vm/carrel/guest/share"
)

// MaxUndo is how many bytes of pre-images are kept for one share of one guest,
// counted as if nothing were shared with the files that they are of.
const MaxUndo = 4 << 30

const (
	undoName    = "undo"
	journalName = "journal"
	// undoneName is a journal of its own, since the share process may still be
	// writing the other one.
	undoneName = "undone"
	maxSets    = 256
	// recordCost is what one line counts for.
	recordCost = 256
)

// ErrUndoFull means that no more pre-images are kept, so that a change which
// needs one is refused.
var ErrUndoFull = errors.New("the room for undoing changes is used up (apply or discard less at once, or end the task: older sets then make room)")

// Undo keeps what stood on the host before it was changed: by a guest in a
// live share, or by an apply. Each task and each apply makes a set, a folder
// with a journal and the contents of files by their numbers in it.
//
// A content is on the disk, and then its line in the journal, before Keep
// returns. The line of an entry without content is handed to the host's kernel
// only: a power failure may lose it, and with it the undoing of a creation, of
// a removed link or of a change of mode; a crash of ours loses nothing.
//
// Once a set is begun, the oldest ended ones are removed until half of the room
// is free; within a set nothing is ever removed, and what finds no room is
// refused. It is safe for use by several goroutines.
type Undo struct {
	// Max is in bytes; 0: MaxUndo. It is set before the first use.
	Max int64

	root  *share.Root
	top   *share.Folder
	once  singleflight.Group
	mu    sync.Mutex
	used  int64
	cur   *set
	task  string
	fresh bool // the next Keep begins a set
}

// set is one that is being written.
type set struct {
	id     string
	folder *share.Folder
	log    journal
	n      int
	seen   map[string]bool
}

// OpenUndo opens what is kept for undoing in a store's folder, and makes it if
// there is none.
func OpenUndo(dir string) (*Undo, error) {
	path, err := filepath.EvalSymlinks(dir) // of the host's own: /tmp may be a link
	if err != nil {
		return nil, fmt.Errorf("open the undo store: %w", err)
	}
	root, err := share.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open the undo store: %w", err)
	}
	u := &Undo{root: root, fresh: true}
	if err := u.open(); err != nil {
		u.Close()
		return nil, fmt.Errorf("open the undo store in %s: %w", dir, err)
	}
	return u, nil
}

func (u *Undo) open() error {
	f, err := u.root.Folder("")
	if err != nil {
		return err
	}
	err = f.Mkdir(undoName, 0o700)
	f.Close()
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if u.top, err = u.root.Folder(undoName); err != nil {
		return err
	}
	ids, err := u.sets()
	for _, id := range ids {
		u.used += u.size(id)
	}
	return err
}

// Close ends the set that was begun. It may be called twice.
func (u *Undo) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	err := u.endLocked()
	u.fresh = false
	if u.top != nil {
		u.top.Close()
	}
	return errors.Join(err, u.root.Close())
}

// Session ends the set before and begins one for a task; "" for what happens
// between tasks. A set that keeps nothing leaves no trace.
func (u *Undo) Session(task string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	err := u.endLocked()
	u.task, u.fresh = task, true
	return errors.Join(err, u.trimLocked())
}

func (u *Undo) endLocked() error {
	s := u.cur
	if s == nil {
		return nil
	}
	u.cur = nil
	now := time.Now()
	err := s.log.append(record{End: &now})
	return errors.Join(err, s.log.sync(), s.close())
}

func (s *set) close() error { return errors.Join(s.log.file.Close(), s.folder.Close()) }

// sets returns the ids of all sets, the oldest first.
func (u *Undo) sets() (ids []string, err error) {
	err = u.top.Names(func(name string) bool {
		if len(name) == idLength {
			ids = append(ids, name)
		}
		return len(ids) < 4*maxSets
	})
	slices.Sort(ids)
	return ids, err
}

const idLength = 16 + 1 + 8

func newID() string {
	var r [4]byte
	rand.Read(r[:])
	return fmt.Sprintf("%016x-%s", time.Now().UnixNano(), hex.EncodeToString(r[:]))
}

// folder opens the folder of a set.
func (u *Undo) folder(id string) (*share.Folder, error) { return u.root.Folder(undoName + "/" + id) }

func (u *Undo) size(id string) (bytes int64) {
	f, err := u.folder(id)
	if err != nil {
		return 0
	}
	defer f.Close()
	f.Names(func(name string) bool {
		if info, err := f.Lstat(name); err == nil {
			bytes += info.Size
		}
		return true
	})
	return bytes
}

// read reads the journal of a set.
func (u *Undo) read(id string) (*history, error) {
	f, err := u.folder(id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, info, err := f.Open(journalName)
	if errors.Is(err, fs.ErrNotExist) {
		return &history{}, nil // it was being begun
	}
	if err != nil {
		return nil, err
	}
	defer h.Close()
	j, err := readJournal(io.NewSectionReader(h, 0, info.Size))
	if err != nil {
		return nil, err
	}
	back, info, err := f.Open(undoneName)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, err
	}
	defer back.Close()
	u2, err := readJournal(io.NewSectionReader(back, 0, info.Size))
	if err == nil {
		j.undone, j.undoneSize = u2.undone, u2.size
	}
	return j, err
}

// glance tells how the journal of a set begins, and whether it ends: its first
// line and its last, without what may be a million between them. A journal that
// cannot be read, or was cut off, does not end.
func (u *Undo) glance(id string) (b begin, ended bool) {
	f, err := u.folder(id)
	if err != nil {
		return b, false
	}
	defer f.Close()
	h, info, err := f.Open(journalName)
	if err != nil {
		return b, false
	}
	defer h.Close()
	head, tail := make([]byte, min(maxRecord, info.Size)), make([]byte, min(maxRecord, info.Size))
	if n, _ := h.ReadAt(head, 0); n < len(head) {
		return b, false
	}
	if n, _ := h.ReadAt(tail, info.Size-int64(len(tail))); n < len(tail) {
		return b, false
	}
	var first, last record
	if line, _, whole := bytes.Cut(head, []byte{'\n'}); whole && json.Unmarshal(line, &first) == nil && first.Begin != nil {
		b = *first.Begin
	}
	if line, whole := bytes.CutSuffix(tail, []byte{'\n'}); whole {
		line = line[bytes.LastIndexByte(line, '\n')+1:]
		ended = json.Unmarshal(line, &last) == nil && last.End != nil
	}
	return b, ended
}

// trimLocked removes the oldest ended sets while more than half of the room is
// used. A set of which the end is not known stays until it was looked after.
func (u *Undo) trimLocked() error {
	ids, err := u.sets()
	if err != nil {
		return err
	}
	if u.used <= u.max()/2 && len(ids) <= maxSets {
		return nil
	}
	live := ""
	for _, id := range ids {
		if b, ended := u.glance(id); !ended && b.Kind == setTask {
			live = id // the newest one: a share process may be writing it
		}
	}
	for n := len(ids); len(ids) > 0 && (u.used > u.max()/2 || n > maxSets); ids = ids[1:] {
		if ids[0] == live || u.cur != nil && ids[0] == u.cur.id {
			continue
		}
		if b, ended := u.glance(ids[0]); !ended && b.Kind != setTask {
			continue
		}
		size := u.size(ids[0])
		if err := u.remove(ids[0]); err != nil {
			return err
		}
		u.used -= min(u.used, size)
		n--
	}
	return nil
}

// remove removes a set, its journal last but one: what is left by a crash is
// still known for one.
func (u *Undo) remove(id string) error {
	f, err := u.folder(id)
	if err != nil {
		return err
	}
	defer f.Close()
	var names []string
	if err := f.Names(func(n string) bool { names = append(names, n); return true }); err != nil {
		return err
	}
	for _, n := range names {
		if n != journalName {
			if err := f.Unlink(n); err != nil {
				return err
			}
		}
	}
	if err := f.Unlink(journalName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return u.top.Rmdir(id)
}

func (u *Undo) max() int64 {
	if u.Max > 0 {
		return u.Max
	}
	return MaxUndo
}

// begin makes the folder of a set.
func (u *Undo) begin(b begin) (*set, error) {
	b.At = time.Now()
	id := newID()
	if err := u.top.Mkdir(id, 0o700); err != nil {
		return nil, err
	}
	f, err := u.folder(id)
	if err != nil {
		return nil, err
	}
	h, err := f.Create(journalName, 0o600)
	if err != nil {
		f.Close()
		return nil, err
	}
	s := &set{id: id, folder: f, log: journal{file: h}, seen: map[string]bool{}}
	if err = s.log.append(record{Begin: &b}); err == nil {
		err = errors.Join(s.log.sync(), f.Sync(), u.top.Sync())
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// Keep implements share.PreImages. Of a link, open gives the target.
func (u *Undo) Keep(path string, is *share.Info, open func() (share.Reader, error)) error {
	if path == "" { // the root's own mode and times
		return nil
	}
	if err := goodName(path); err != nil {
		return fmt.Errorf("keep what %.100q was: the name %w", path, err)
	}
	// Two changes of one entry at once: the second waits for the first's image.
	_, err, _ := u.once.Do(path, func() (any, error) { return nil, u.keepTask(path, is, open) })
	if err != nil {
		return fmt.Errorf("keep what %.300q was: %w", path, err)
	}
	return nil
}

func (u *Undo) keepTask(path string, is *share.Info, open func() (share.Reader, error)) error {
	u.mu.Lock()
	if u.fresh {
		s, err := u.begin(begin{Kind: setTask, Task: u.task})
		if err != nil {
			u.mu.Unlock()
			return err
		}
		u.cur, u.fresh = s, false
	}
	s := u.cur
	if s == nil {
		u.mu.Unlock()
		return os.ErrClosed
	}
	if s.seen[path] {
		u.mu.Unlock()
		return nil
	}
	i := s.n
	s.n++
	u.mu.Unlock()

	p, kept, size, err := u.image(s, i, path, is, open)
	if kept != nil {
		if err = errors.Join(kept.Sync(), kept.Close()); err != nil {
			s.folder.Unlink(blobName(i))
			u.refund(size)
		}
	}
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.cur != s { // the task has ended meanwhile; the image is of no use to it
		u.used -= min(u.used, size)
		if p.Kept {
			s.folder.Unlink(blobName(i))
		}
		return errors.New("the task has ended")
	}
	if err := s.log.append(record{Pre: &p}); err != nil {
		return err
	}
	s.seen[path] = true
	if p.Kept {
		return s.log.sync()
	}
	return nil
}
