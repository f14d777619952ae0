// Package audit keeps one log for each guest: JSON lines, each of which holds
// the hash of the one before, so that a line that was changed, taken out or put
// in shows. Several processes append to it under a file lock.
//
// A line is printable ASCII and looks like this:
//
//	{"seq":2,"time":"2026-01-02T03:04:05.678Z","kind":"egress","prev":"<sha256 of line 1>","data":{...},"sum":"<16 hex digits>"}
//
// prev is the SHA-256 of the line before, without its newline; sum begins the
// SHA-256 of all that stands before it in its own line, so that damage to the
// last line shows, too. audit.jsonl is written to; when it has 16 MiB it becomes
// audit.1.jsonl, audit.2.jsonl and so on, and the chain goes on across the
// files. The oldest are removed, which the log says, so that the chain still has
// a beginning that can be checked.
//
// What it cannot show: whoever may write the files can cut lines off the end, or
// write the whole log anew. Report.Head, noted elsewhere, shows both.
package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"
)

// Bounds.
const (
	// MaxRecord is the most that a record's fields may take, in bytes of JSON. Of
	// longer ones the beginning is kept.
	MaxRecord = 64 << 10
	maxLine   = 6*MaxRecord + 1024 // every byte of them may become \u00xx
	maxKind   = 64
	// rotateAt is how long a file gets, and keep how many of them stay beside the
	// one that is written to: 144 MiB in all.
	rotateAt = 16 << 20
	keep     = 8
)

// lockTime bounds the wait for other processes that append. Only a test sets it,
// whose processes append without a pause.
var lockTime = 5 * time.Second

const (
	current  = "audit.jsonl"
	lockName = "audit.lock"
)

// Kinds of records that the log writes about itself.
const (
	// kindRepaired: a line was half written when its writer or the machine died.
	kindRepaired = "audit.repaired"
	// kindRotated begins a new file.
	kindRotated = "audit.rotated"
	// kindRemoved says that an old file is removed, and where its chain ended.
	kindRemoved = "audit.removed"
)

// nothing is what the first line has as the hash of the line before.
var nothing = strings.Repeat("0", 2*sha256.Size)

// Log appends to the log of one guest. It may be used by several goroutines, and
// by several processes at once. Records are in the kernel's hands when Append
// returns: they survive the death of any process, but only those before the
// last Sync or rotation are sure to survive that of the machine.
type Log struct {
	mu     sync.Mutex
	root   *os.Root // never left: a link out of the folder leads nowhere
	lock   *os.File
	redact func(string) string

	at     tail // as it was after our last append
	rotate int64
	keep   int
	now    func() time.Time
}

// tail is the end of a chain.
type tail struct {
	file os.FileInfo // of the file that is written to; nil: not known
	size int64
	seq  uint64
	hash string
}

// Open opens the log in dir and makes the folder if it is not there. A line that
// a crash left half written is taken off, and a record says so, when the next
// one is appended.
func Open(dir string) (*Log, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the folder of the audit log: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	lock, err := root.OpenFile(lockName, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	return &Log{root: root, lock: lock, rotate: rotateAt, keep: keep, now: time.Now}, nil
}

// Redact has f applied to the fields of every record from now on: it takes JSON
// and returns it without secrets. What it puts in their place must not need
// escaping in a JSON string.
func (l *Log) Redact(f func(string) string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.redact = f
}

// Close lets go of the log. It may be called twice.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock == nil {
		return nil
	}
	err := errors.Join(l.lock.Close(), l.root.Close())
	l.lock = nil
	return err
}

// Append adds one record. kind is a stable word ("egress", "task.started");
// fields is a proto.Message or whatever encoding/json makes an object of, or
// nil.
func (l *Log) Append(kind string, fields any) error {
	if kind == "" || len(kind) > maxKind || strings.ContainsFunc(kind, func(r rune) bool { return r != '.' && r != '_' && (r < 'a' || r > 'z') }) {
		return fmt.Errorf("append to the audit log: %.80q is not a kind of record", kind)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock == nil {
		return errors.New("append to the audit log: it is closed")
	}
	data, err := encode(fields, l.redact)
	if err != nil {
		return fmt.Errorf("append %s to the audit log: %w", kind, err)
	}
	if err := lockFile(l.lock, lockTime); err != nil {
		return fmt.Errorf("append %s to the audit log: %w", kind, err)
	}
	defer unlockFile(l.lock)
	if err := l.appendLocked(kind, data); err != nil {
		l.at = tail{}
		return fmt.Errorf("append %s to the audit log: %w", kind, err)
	}
	return nil
}

func (l *Log) appendLocked(kind string, data []byte) error {
	f, err := l.root.OpenFile(current, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file (move it away)", current)
	}
	// Another process may have appended, or begun a new file, since.
	if l.at.file == nil || !os.SameFile(l.at.file, fi) || l.at.size != fi.Size() {
		if err := l.catchUp(f, fi); err != nil {
			return err
		}
	}
	if l.at.size > 0 && l.at.size+int64(len(data))+512 > l.rotate {
		old := f
		if f, err = l.rotateLocked(old); err != nil {
			return err
		}
	}
	return l.write(f, kind, data)
}

// write appends one line with one call, so that no other writer's can be in it.
func (l *Log) write(f *os.File, kind string, data []byte) error {
	line := compose(l.at.seq+1, l.now(), kind, l.at.hash, data)
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	l.at = tail{file: fi, size: fi.Size(), seq: l.at.seq + 1, hash: hashOf(line)}
	return nil
}

func hashOf(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// Sync has what was appended outlive the machine.
func (l *Log) Sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock == nil {
		return nil
	}
	f, err := l.root.OpenFile(current, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sync the audit log: %w", err)
	}
	defer f.Close()
	return f.Sync()
}
