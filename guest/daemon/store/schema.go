package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// migrations lead from an empty file to the schema of this version; the file's
// user_version counts those that it has seen. One that was released is never
// changed: another is added.
var migrations = []string{`
CREATE TABLE guests (
	name    TEXT PRIMARY KEY,
	created INTEGER NOT NULL              -- nanoseconds since 1970, as everywhere here
) STRICT, WITHOUT ROWID;

-- A task's state is 1 queued, 2 running, 3 exited or 4 interrupted; the last two
-- are final.
CREATE TABLE tasks (
	id      TEXT PRIMARY KEY,             -- a ULID, so that rows lie in the order of their acceptance
	guest   TEXT NOT NULL,
	state   INTEGER NOT NULL,
	record  BLOB NOT NULL,                -- api.Task, without what only a start needs
	sum     INTEGER NOT NULL              -- of id, state and record
) STRICT, WITHOUT ROWID;
CREATE INDEX tasks_of ON tasks (guest, state);
CREATE TRIGGER tasks_final BEFORE UPDATE ON tasks WHEN OLD.state >= 3
BEGIN SELECT RAISE(ABORT, 'a final state is never left'); END;

CREATE TABLE keys (
	key     TEXT PRIMARY KEY,
	at      INTEGER NOT NULL,
	method  TEXT NOT NULL,
	request BLOB NOT NULL,                -- its SHA-256; empty when only a journal knew the key
	answer  BLOB,                         -- NULL until there is one
	sum     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_at ON keys (at);

CREATE TABLE events (
	seq     INTEGER PRIMARY KEY AUTOINCREMENT,
	at      INTEGER NOT NULL,
	kind    TEXT NOT NULL,
	guest   TEXT NOT NULL,
	payload BLOB NOT NULL
) STRICT;
`}

// application marks the file as ours: "Crrl".
const application = 0x4372726c

// migrate brings the file's schema up to the last of to.
func (s *Store) migrate(to []string) error {
	t := &tx{conn: s.conn}
	var version, whose int
	if _, err := t.one("PRAGMA user_version", nil, &version); err != nil {
		return err
	}
	if _, err := t.one("PRAGMA application_id", nil, &whose); err != nil {
		return err
	}
	switch {
	case version > len(to):
		return fmt.Errorf("%w: %s has schema %d, and this version knows up to %d (install the newer version again, or put its copy %s from before the change in the file's place, or move the file away: it is made again from the guests' journals, without past events)",
			ErrNewer, s.path, version, len(to), filepath.Base(backupPath(s.path, len(to))))
	case version > 0 && whose != application:
		return fmt.Errorf("%w: it belongs to another program", errDamaged)
	case version == len(to):
		// A file that holds no table of ours is none of ours.
		_, err := t.one("SELECT count(*) FROM guests WHERE name = ''", nil, &version)
		return err
	case version > 0:
		if err := s.backup(version); err != nil {
			return fmt.Errorf("copy it before its schema changes: %w", err)
		}
	}
	if err := t.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	err := func() error {
		for _, m := range to[version:] {
			if err := t.exec(m); err != nil {
				return err
			}
		}
		if version == 0 {
			// Sequence numbers of a new file come after those of any file before
			// it: a subscriber's old number shows a gap, and never skips what is new.
			if err := t.exec("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', ?)", time.Now().UnixMilli()); err != nil {
				return err
			}
		}
		return t.exec(fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", application, len(to)))
	}()
	if err == nil {
		err = t.exec("COMMIT")
	}
	if err != nil {
		t.exec("ROLLBACK")
		return fmt.Errorf("bring it from schema %d to %d: %w", version, len(to), err)
	}
	return syncDir(filepath.Dir(s.path))
}

func backupPath(path string, version int) string { return fmt.Sprintf("%s.schema-%d", path, version) }

// backup copies the file as it stands, whole or not at all.
func (s *Store) backup(version int) error {
	to := backupPath(s.path, version)
	tmp := to + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, err := s.conn.ExecContext(context.Background(), "VACUUM INTO ?", tmp); err != nil {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = errors.Join(f.Chmod(0o600), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, to)
	}
	if err == nil {
		err = syncDir(filepath.Dir(to))
	}
	return err
}

// escape makes a path part of SQLite's URI.
func escape(path string) string {
	return strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23", `\`, "/").Replace(path)
}
