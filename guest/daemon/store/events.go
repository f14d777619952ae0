package store

import (
	"context"
	"fmt"
	"time"
)

// Bounds of events.
const (
	maxEvents = 50_000
	// ownEvents is how many of one guest nobody else's can push out: who has more
	// gives first when there are too many.
	ownEvents  = 1000
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
// than 50,000 the oldest go of the guest that has the most, if it has more than
// 1,000; else the oldest of all. So one guest that makes many pushes out its own.
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
		return t.fair(guest)
	})
	if err != nil {
		return 0, err
	}
	return seq, nil
}

// Events returns what came after a number, at most limit, and the number of
// the oldest event that is still there, or of the next one if there is none: an
// after that is more than one below it has missed some.
func (s *Store) Events(ctx context.Context, after uint64, limit int) ([]Event, uint64, error) {
	var list []Event // not results: who no longer waits does not touch them
	var first uint64
	if after > 1<<62 {
		after = 1 << 62
	}
	limit = max(1, min(limit, MaxEvents))
	err := s.do(ctx, func(t *tx) error {
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

// Ends returns the numbers of the oldest event that is still there, or of the next
// one if there is none, and of the newest that there ever was.
func (s *Store) Ends(ctx context.Context) (uint64, uint64, error) {
	var first, last uint64
	err := s.do(ctx, func(t *tx) error {
		_, err := t.one("SELECT coalesce((SELECT min(seq) FROM events), seq + 1), seq FROM sqlite_sequence WHERE name = 'events'", nil, &first, &last)
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	return first, last, nil
}

// fair counts an event of a guest, and makes room if there are too many. The
// counts are of one transaction after the other: see share.
func (t *tx) fair(guest string) error {
	h := t.share
	if h.count == nil {
		if err := t.countEvents(); err != nil {
			return err
		}
	} else {
		h.add(guest, 1)
	}
	for h.all > h.max {
		most, n := h.most()
		q, args := "SELECT seq, guest FROM events ORDER BY seq LIMIT 1", []any(nil)
		if n > h.own {
			q, args = "SELECT seq, guest FROM events WHERE seq > ? AND guest = ? ORDER BY seq LIMIT 1", []any{h.gone[most], most}
		}
		var seq int64
		var whose string
		found, err := t.one(q, args, &seq, &whose)
		if err != nil {
			return err
		}
		if !found { // the counts are not right
			return t.countEvents()
		}
		if err := t.exec("DELETE FROM events WHERE seq = ?", seq); err != nil {
			return err
		}
		if h.add(whose, -1); n > h.own {
			h.gone[most] = seq // so that the next look begins behind it
		}
	}
	return nil
}

func (t *tx) countEvents() error {
	h := t.share
	h.forget()
	h.count, h.gone = map[string]int{}, map[string]int64{}
	return t.each("SELECT guest, count(*) FROM events GROUP BY guest", nil, func(scan func(...any) error) error {
		var guest string
		var n int
		if err := scan(&guest, &n); err != nil {
			return err
		}
		h.add(guest, n)
		return nil
	})
}

// share is how many events each guest has in the log. It is made from the log when
// it is needed, and anew after a transaction that was taken back.
type share struct {
	max, own int
	all      int
	count    map[string]int   // nil: not counted yet
	gone     map[string]int64 // the last event of a guest's that was pushed out before its turn
}

func (h *share) forget() { h.all, h.count, h.gone = 0, nil, nil }

func (h *share) add(guest string, n int) {
	h.all += n
	if h.count[guest] += n; h.count[guest] <= 0 {
		delete(h.count, guest)
		delete(h.gone, guest)
	}
}

// most is the guest that has the most events.
func (h *share) most() (guest string, n int) {
	for g, c := range h.count {
		if c > n || c == n && g < guest {
			guest, n = g, c
		}
	}
	return guest, n
}
