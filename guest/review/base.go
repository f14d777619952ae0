package review

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"

	"github.com/carrel-vm/carrel/guest/share"
)

// Bounds of a base. What is beyond them is not known, and so a conflict.
const (
	maxBase      = 1_000_000
	maxBaseBytes = 256 << 20
	baseName     = "base"
)

// Base is what the guest was told of the host's entries: the state from which
// its changes set out. The share process writes it while it serves, and other
// processes may have it open meanwhile.
//
// It is a file of lines that only grows (line in baseline.go), and later lines
// go before earlier ones. Nothing waits for the disk: Sync does, before an
// import. A line that was not written whole is passed over.
type Base struct {
	mu   sync.Mutex
	file *os.File
	// known are the words that count. later are newer ones, which count once
	// it is known that the guest had not changed the entry before (Settle).
	known, later map[string]fact
	// changed are names that the guest had changed when it was last asked.
	changed map[string]bool
	read    int64 // how far the file was read
	full    bool
	// synced is the size that is on the disk.
	synced int64
}

// OpenBase opens the base in a store's folder, and makes it if there is none.
func OpenBase(dir string) (*Base, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the base of a review: %w", err)
	}
	defer root.Close()
	f, err := openOwn(root, baseName, os.O_RDWR|os.O_APPEND|os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("open the base of a review in %s: %w", dir, err)
	}
	b := &Base{file: f, known: map[string]fact{}, later: map[string]fact{}, changed: map[string]bool{}}
	if err := b.catchUp(true); err != nil {
		f.Close()
		return nil, fmt.Errorf("read the base of a review in %s: %w", dir, err)
	}
	return b, nil
}

// Close lets go of the file. It may be called twice.
func (b *Base) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		return nil
	}
	err := b.file.Close()
	b.file = nil
	return err
}

// Served notes what the guest is told of an entry. The first word for a path
// counts. It is cheap when nothing is new: call it at every look-up and open.
// An error is of no use to the caller: what could not be noted is a conflict.
func (b *Base) Served(path string, is share.Info) {
	if path == "" || len(path) > MaxName {
		return
	}
	now := factOf(&is)
	b.mu.Lock()
	defer b.mu.Unlock()
	was, ok := b.known[path]
	last, newer := b.later[path]
	if !newer {
		last, newer = was, ok
	}
	switch {
	case newer && last.same(now):
	case ok:
		b.noteLocked(wordLater, path, now)
	default:
		b.noteLocked(wordFirst, path, now)
	}
}

// Opened notes that the guest opens a regular file: it is this one that its
// layer copies before the guest writes, so that it counts at once. Once a file
// is known to be changed, the guest's copy is made, and an open is somebody
// else's.
func (b *Base) Opened(path string, is share.Info) {
	if path == "" || len(path) > MaxName {
		return
	}
	now := factOf(&is)
	b.mu.Lock()
	defer b.mu.Unlock()
	was, ok := b.known[path]
	switch {
	case !ok:
		b.noteLocked(wordFirst, path, now)
	case !b.changed[path] && !was.same(now):
		b.noteLocked(wordSet, path, now)
	}
}

// Look returns the host's entry as the guest knew it before it changed it.
func (b *Base) Look(path string) (share.Info, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.catchUp(false)
	f, ok := b.known[path]
	if !ok || f.gone() {
		return share.Info{}, false
	}
	return f.info(), true
}

// Rebase says what stands on the host now that a change was applied; nil:
// nothing does. It counts from now on.
func (b *Base) Rebase(path string, is *share.Info) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.catchUp(false)
	delete(b.changed, path)
	return b.noteLocked(wordSet, path, factOf(is))
}

// Below returns what was served below a folder, in no order, and not the folder
// itself.
func (b *Base) Below(dir string) iter.Seq2[string, share.Info] {
	type pair struct {
		path string
		f    fact
	}
	b.mu.Lock()
	b.catchUp(false)
	var found []pair
	for path, f := range b.known {
		if path != dir && within(path, dir) && !f.gone() {
			found = append(found, pair{path, f})
		}
	}
	b.mu.Unlock()
	return func(yield func(string, share.Info) bool) {
		for _, p := range found {
			if !yield(p.path, p.f.info()) {
				return
			}
		}
	}
}

// Settle lets the newest words count, except for what changed says: at the end
// of a complete import the guest is known not to have changed the others, and
// what it does to them later sets out from what it was told last.
func (b *Base) Settle(changed func(path string) bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.catchUp(false); err != nil {
		return err
	}
	clear(b.changed)
	for path := range b.known {
		if changed(path) {
			b.changed[path] = true
		}
	}
	for path, f := range b.later {
		if b.changed[path] {
			continue
		}
		if err := b.noteLocked(wordSet, path, f); err != nil {
			return err
		}
	}
	return nil
}

// letGo says that the guest has the host's entries of these names again.
func (b *Base) letGo(names []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range names {
		delete(b.changed, n)
	}
}

// Sync waits until what was noted is on the disk.
func (b *Base) Sync() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		return os.ErrClosed
	}
	is, err := b.file.Stat()
	if err != nil || is.Size() == b.synced { // it only grows
		return err
	}
	if err = b.file.Sync(); err == nil {
		b.synced = is.Size()
	}
	return err
}

// errFull means that a base takes no more.
var errFull = errors.New("the base of the review is full: further changes will count as conflicts")

func (b *Base) noteLocked(w word, path string, f fact) error {
	switch {
	case b.file == nil:
		return os.ErrClosed
	case b.full && w != wordSet: // what was applied is noted as long as the disk lets it
		return errFull
	}
	line := appendLine(nil, w, path, f)
	// One call and O_APPEND, so that the lines of two processes do not mix.
	if _, err := b.file.Write(line); err != nil {
		return fmt.Errorf("write the base of a review: %w", err)
	}
	b.takeLocked(w, path, f)
	b.full = b.full || len(b.known)+len(b.later) >= maxBase
	return nil
}

func (b *Base) takeLocked(w word, path string, f fact) {
	switch w {
	case wordFirst:
		if _, ok := b.known[path]; !ok {
			b.known[path] = f
		}
	case wordLater:
		b.later[path] = f
	case wordSet:
		b.known[path] = f
		delete(b.later, path)
	}
}

// catchUp reads what has come since, from this process or another one. At the
// start a last line without its end is closed, so that the next stands alone.
func (b *Base) catchUp(start bool) error {
	if b.file == nil {
		return os.ErrClosed
	}
	is, err := b.file.Stat()
	if err != nil {
		return err
	}
	size := min(is.Size(), maxBaseBytes)
	b.full = b.full || is.Size() >= maxBaseBytes
	if size <= b.read {
		return nil
	}
	n, whole, err := readLines(io.NewSectionReader(b.file, b.read, size-b.read), func(w word, path string, f fact) {
		if len(b.known)+len(b.later) < maxBase || w == wordSet {
			b.takeLocked(w, path, f)
		}
	})
	b.read += n
	b.full = b.full || len(b.known)+len(b.later) >= maxBase
	if err == nil && start && !whole {
		_, err = b.file.Write([]byte("\n"))
	}
	return err
}
