// Package store keeps the daemon's index in one SQLite file: which guests and
// tasks there are and were, the answers to requests that carried an idempotency
// key, and the events. Of guests and their tasks the folders and journals are
// the truth, from which the index is made again when it is lost; what it alone
// knows are the events, and the endings of tasks whose guest was removed.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"modernc.org/sqlite" // also registers the driver; needs no C
	lib "modernc.org/sqlite/lib"
)

// File is the name of the index in the state folder.
const File = "index.db"

// Errors that a caller can tell apart.
var (
	// ErrNewer means that a newer Carrel wrote the index.
	ErrNewer = errors.New("the index was written by a newer version of Carrel")
	// ErrReused means that a key came with another request than the first time.
	ErrReused = errors.New("the idempotency key was used for another request")
	// ErrBroken means that nothing more is written until the daemon starts anew.
	ErrBroken = errors.New("the index cannot be written any more")
	// ErrNone means that there is no index: the disk was full when it was opened.
	ErrNone = errors.New("there is no index")
	// ErrClosed means that the daemon ends.
	ErrClosed = errors.New("the index is closed")
	// ErrNoRoom means that the disk takes nothing now: it is full, or the user's
	// share of it, or it is read-only.
	ErrNoRoom = errors.New("no room on the disk")
)

// maxBatch is how many writes share one sync.
const maxBatch = 256

// Store is an open index. One goroutine has the only connection, and writes what
// has gathered in one transaction: many requests share a sync of the disk. A nil
// Store answers everything with ErrNone.
type Store struct {
	// Rebuilt says why the index is new though it may not have been the first:
	// empty, if a sound one was found.
	Rebuilt string
	// First says that there was no file: there may never have been an index.
	First bool

	path   string
	db     *sql.DB
	conn   *sql.Conn
	ops    chan *op
	closed chan struct{} // closed by Close
	ended  chan struct{} // closed when serve has returned
	broken error         // only serve touches it, and taken
	taken  int           // keys since old ones were looked for
	share  share         // of the events; only serve touches it
}

type op struct {
	f    func(*tx) error
	done chan error // has room for the answer
}

// Open opens the index in dir, which only this process may do. An index of an
// older schema is copied beside itself and then brought up; one of a newer schema
// is ErrNewer. A damaged one is set aside, and a new one is begun.
func Open(dir string) (*Store, error) { return open(dir, migrations) }

func open(dir string, to []string) (*Store, error) {
	path := filepath.Join(dir, File)
	first := false
	why, err := leftDamaged(path)
	if err != nil {
		return nil, err
	}
	if _, serr := os.Lstat(path); why == "" && errors.Is(serr, os.ErrNotExist) {
		why, first = "there was none", true
	}
	s, err := openFile(path, to)
	if damaged(err) {
		why = err.Error()
		if err = setAside(path); err == nil {
			s, err = openFile(path, to)
		}
	}
	switch {
	case errors.Is(err, ErrNewer):
		return nil, err
	case noRoom(err):
		return nil, fmt.Errorf("open %s: %w: %w", path, ErrNoRoom, err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w (mend that, or move the file away: it is made again from the guests' journals, without past events)", path, err)
	}
	s.Rebuilt, s.First = why, first
	go s.serve()
	return s, nil
}

// openFile opens and migrates one file.
func openFile(path string, to []string) (s *Store, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // SQLite would make it for everybody
	if err != nil {
		return nil, err
	}
	f.Close()
	// Exclusive: no other process belongs here, and there is no -shm file. FULL:
	// a commit is on the disk when it returns. A checkpoint each 256 pages bounds
	// what a start after a kill reads again, 1 MiB.
	db, err := sql.Open("sqlite", "file:"+escape(path)+"?_pragma=locking_mode(EXCLUSIVE)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)"+
		"&_pragma=wal_autocheckpoint(256)&_pragma=cache_size(-512)&_pragma=foreign_keys(OFF)&_pragma=trusted_schema(OFF)&_pragma=cell_size_check(ON)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(context.Background())
	if err != nil {
		db.Close()
		return nil, err
	}
	s = &Store{path: path, db: db, conn: conn, ops: make(chan *op, 4*maxBatch), closed: make(chan struct{}), ended: make(chan struct{}), share: share{max: maxEvents, own: ownEvents}}
	if err := s.migrate(to); err != nil {
		conn.Close()
		db.Close()
		return nil, err
	}
	return s, nil
}

// Close writes what has gathered and closes the file. Close may be called twice.
func (s *Store) Close() error {
	if s == nil {
		return nil
	}
	select {
	case <-s.closed:
		<-s.ended
		return nil
	default:
		close(s.closed)
	}
	<-s.ended
	return errors.Join(s.conn.Close(), s.db.Close())
}

// do runs f in a transaction and returns when that is on the disk. f may run
// with others' in one transaction; if it fails, what it did is undone.
func (s *Store) do(ctx context.Context, f func(*tx) error) error {
	if s == nil {
		return fmt.Errorf("%w (make room on the disk, and start the daemon anew: carrel daemon stop)", ErrNone)
	}
	o := &op{f: f, done: make(chan error, 1)}
	if err := s.send(ctx, o); err != nil {
		return err
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err() // it may be written all the same
	case <-s.ended:
		select {
		case err := <-o.done:
			return err
		default:
			return ErrClosed
		}
	}
}

func (s *Store) send(ctx context.Context, o *op) error {
	select {
	case s.ops <- o:
		return nil
	case <-s.closed:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Store) serve() {
	defer close(s.ended)
	for {
		var batch []*op
		select {
		case o := <-s.ops:
			batch = append(batch, o)
		case <-s.closed:
		}
	gather:
		for len(batch) < maxBatch {
			select {
			case o := <-s.ops:
				batch = append(batch, o)
			default:
				break gather
			}
		}
		if len(batch) == 0 {
			return // closed, and nothing is left
		}
		for i, err := range s.write(batch) {
			batch[i].done <- err
		}
	}
}

// write runs a batch in one transaction. Each has its own error; a commit that
// fails is everybody's.
func (s *Store) write(batch []*op) []error {
	errs := make([]error, len(batch))
	all := func(err error) []error {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	if s.broken != nil {
		return all(s.broken)
	}
	t := &tx{conn: s.conn, now: time.Now().UTC(), taken: &s.taken, share: &s.share}
	fail := func(err error) []error {
		s.share.forget()
		t.exec("ROLLBACK")
		return all(s.mind(err))
	}
	if err := t.exec("BEGIN IMMEDIATE"); err != nil {
		return fail(err)
	}
	for i, o := range batch {
		if err := t.exec("SAVEPOINT one"); err != nil {
			return fail(err)
		}
		if errs[i] = o.f(t); errs[i] != nil {
			s.share.forget()
			if err := t.exec("ROLLBACK TO one"); err != nil { // a full disk ends the whole transaction
				return fail(errs[i])
			}
			errs[i] = s.mind(errs[i])
		}
		if err := t.exec("RELEASE one"); err != nil {
			return fail(err)
		}
	}
	if err := t.exec("COMMIT"); err != nil {
		return fail(err)
	}
	return errs
}

// mind looks at an error: after a failed sync nobody knows what is on the disk,
// so nothing is built on it; of a damaged file the next start is told.
func (s *Store) mind(err error) error {
	switch {
	case damaged(err):
		s.broken = fmt.Errorf("%w: %s: %w (start the daemon anew, which makes it again: carrel daemon stop)", ErrBroken, s.path, err)
		if werr := os.WriteFile(s.path+suffixDamaged, []byte(err.Error()+"\n"), 0o600); werr != nil {
			s.broken = errors.Join(s.broken, werr)
		}
		return s.broken
	// A write that failed is no sync that failed: what it left is not committed.
	// SQLite tells a full disk by its code, and a quota only by this one.
	case noRoom(err), code(err) == lib.SQLITE_IOERR_WRITE:
		return fmt.Errorf("%w: %s: %w", ErrNoRoom, s.path, err)
	case code(err)&0xff == lib.SQLITE_IOERR:
		s.broken = fmt.Errorf("%w: %s: %w (see to the disk, and start the daemon anew: carrel daemon stop)", ErrBroken, s.path, err)
		return s.broken
	}
	return err
}

// code is SQLite's extended result code, or 0.
func code(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// noRoom says whether the disk took nothing. Of the file that a log is found by,
// which is made when there is one to be read, SQLite says so by a code of its own.
func noRoom(err error) bool {
	return code(err)&0xff == lib.SQLITE_FULL || code(err) == lib.SQLITE_IOERR_SHMSIZE || isNoSpace(err)
}

// tx is one transaction of the only connection.
type tx struct {
	conn  *sql.Conn
	now   time.Time
	taken *int
	share *share
}

func (t *tx) exec(q string, args ...any) error {
	_, err := t.conn.ExecContext(context.Background(), q, args...) // nobody's leaving undoes what others wait for
	return err
}

func (t *tx) one(q string, args []any, to ...any) (found bool, err error) {
	err = t.conn.QueryRowContext(context.Background(), q, args...).Scan(to...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

func (t *tx) each(q string, args []any, f func(scan func(...any) error) error) error {
	rows, err := t.conn.QueryContext(context.Background(), q, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}
