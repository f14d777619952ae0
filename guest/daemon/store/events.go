package store

import (
	"context"
	"fmt"
	"time"
)

// Bounds of events.
const (
	maxEvents  = 50_000
	maxPayload = 64 << 10 // bytes of one
	// MaxEvents is how many one call of Events returns at most.
	MaxEvents = 1000
)

// Event is one thing that happened.
type Event struct {
	// Seq counts up by one, and goes on when the index is made anew.
	Seq   uint64
	Time  time.Time
	Kind  string
	Guest string // or empty
	// Payload is what the caller of Append gave.
	Payload []byte
}

// Append adds an event and returns its number when it is on the disk. Of more
// than 50,000 the oldest go.
func (s *Store) Append(ctx context.Context, kind, guest string, payload []byte) (seq uint64, err error) {
	if len(payload) > maxPayload {
		return 0, fmt.Errorf("an event of %d bytes; %d are possible", len(payload), maxPayload)
	}
	if payload == nil {
		payload = []byte{}
	}
	err = s.do(ctx, func(t *tx) error {
		r, err := t.conn.ExecContext(context.Background(), "INSERT INTO events (at, kind, guest, payload) VALUES (?, ?, ?, ?)", t.now.UnixNano(), kind, guest, payload)
		if err != nil {
			return err
		}
		n, err := r.LastInsertId()
		if err != nil {
			return err
		}
		seq = uint64(n)
		return t.exec("DELETE FROM events WHERE seq <= ?", n-maxEvents)
	})
	if err != nil {
		return 0, err
	}
	return seq, nil
}

// Events returns what came after a number, at most limit. first is the number of
// the oldest event that is still there, or of the next one if there is none: an
// after below first-1 has missed some.
func (s *Store) Events(ctx context.Context, after uint64, limit int) (list []Event, first uint64, err error) {
	if after > 1<<62 {
		after = 1 << 62
	}
	limit = max(1, min(limit, MaxEvents))
	err = s.do(ctx, func(t *tx) error {
		list = nil
		if _, err := t.one("SELECT coalesce((SELECT min(seq) FROM events), (SELECT seq + 1 FROM sqlite_sequence WHERE name = 'events'))", nil, &first); err != nil {
			return err
		}
		return t.each("SELECT seq, at, kind, guest, payload FROM events WHERE seq > ? ORDER BY seq LIMIT ?", []any{int64(after), limit}, func(scan func(...any) error) error {
			var e Event
			var at int64
			if err := scan(&e.Seq, &at, &e.Kind, &e.Guest, &e.Payload); err != nil {
				return err
			}
			e.Time = time.Unix(0, at).UTC()
			list = append(list, e)
			return nil
		})
	})
	if err != nil {
		return nil, 0, err
	}
	return list, first, nil
}
