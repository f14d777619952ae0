package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// Bounds of keys.
const (
	// MaxKey is how long a key may be, in bytes.
	MaxKey = 128
	// KeepKeys is how long an answer is remembered at least, while there are
	// fewer than maxKeys.
	KeepKeys = 24 * time.Hour
	maxKeys  = 100_000
	// pruneEach is after how many new keys old ones are looked for.
	pruneEach = 256
)

// sum guards a row against a flipped bit, which SQLite does not see.
func sum(parts ...any) int64 {
	h := crc32.NewIEEE()
	for _, p := range parts {
		var b []byte
		switch p := p.(type) {
		case string:
			b = []byte(p)
		case []byte:
			b = p
		case int64:
			b = binary.BigEndian.AppendUint64(nil, uint64(p))
		}
		binary.Write(h, binary.BigEndian, uint32(len(b)))
		h.Write(b)
	}
	return int64(h.Sum32())
}

// Key looks a key up, and takes it for a request if it is new: request is the
// SHA-256 of what it must come with again. seen says that it was there before;
// then answer is what was answered, or nil if the daemon died before it knew:
// the request may or may not have been carried out. ErrReused: it came with
// another request or method. When Key returns, the key is on the disk.
func (s *Store) Key(ctx context.Context, key, method string, request [32]byte) (answer []byte, seen bool, err error) {
	if key == "" || len(key) > MaxKey {
		return nil, false, fmt.Errorf("an idempotency key has 1 to %d bytes, this one %d", MaxKey, len(key))
	}
	return s.look(ctx, key, method, request, true)
}

// Look is Key without taking the key: for a request of which another journal
// knows that it was carried out.
func (s *Store) Look(ctx context.Context, key, method string, request [32]byte) (answer []byte, seen bool, err error) {
	return s.look(ctx, key, method, request, false)
}

func (s *Store) look(ctx context.Context, key, method string, request [32]byte, take bool) (answer []byte, seen bool, err error) {
	err = s.do(ctx, func(t *tx) error {
		var hash []byte
		var its string
		seen, answer, err = t.key(key, &its, &hash)
		switch {
		case err != nil:
			return err
		case !seen && take:
			return t.take(key, t.now, method, request[:], nil)
		case seen && (its != method || len(hash) > 0 && string(hash) != string(request[:])):
			return fmt.Errorf("%w (%s)", ErrReused, its)
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	return answer, seen, nil
}

// take adds a key where there is none.
func (t *tx) take(key string, at time.Time, method string, request, answer []byte) error {
	if *t.taken++; *t.taken >= pruneEach {
		if err := t.prune(); err != nil {
			return err
		}
		*t.taken = 0
	}
	return t.exec("INSERT INTO keys (key, at, method, request, answer, sum) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
		key, at.UnixNano(), method, request, answer, sum(key, method, request, answer))
}

// key reads a row and checks it.
func (t *tx) key(key string, method *string, request *[]byte) (found bool, answer []byte, err error) {
	var want int64
	var answered bool
	found, err = t.one("SELECT method, request, answer, answer IS NOT NULL, sum FROM keys WHERE key = ?", []any{key}, method, request, &answer, &answered, &want)
	if answered && answer == nil { // of no bytes
		answer = []byte{}
	}
	if found && want != sum(key, *method, *request, answer) {
		return false, nil, fmt.Errorf("%w: the answer to a key is not what was written", errDamaged)
	}
	return found, answer, err
}

// prune makes room for one more key: it forgets old answers, and if there are
// too many, the oldest. A key without an answer is somebody's, who waits.
func (t *tx) prune() error {
	if err := t.exec("DELETE FROM keys WHERE at < ?", t.now.Add(-KeepKeys).UnixNano()); err != nil {
		return err
	}
	var n int
	if _, err := t.one("SELECT count(*) FROM keys", nil, &n); err != nil || n < maxKeys {
		return err
	}
	return t.exec("DELETE FROM keys WHERE key IN (SELECT key FROM keys WHERE answer IS NOT NULL ORDER BY at LIMIT ?)", n-maxKeys+1)
}

// Remember keeps the answer to a key that Key took. When it returns, the answer
// is on the disk.
func (s *Store) Remember(ctx context.Context, key string, answer []byte) error {
	if answer == nil {
		answer = []byte{}
	}
	return s.do(ctx, func(t *tx) error {
		var method string
		var request []byte
		found, was, err := t.key(key, &method, &request)
		switch {
		case err != nil:
			return err
		case !found:
			return errors.New("nobody took the key")
		case was != nil:
			return nil // the first answer stands
		}
		return t.exec("UPDATE keys SET answer = ?, sum = ? WHERE key = ?", answer, sum(key, method, request, answer), key)
	})
}

// Forget gives back a key whose request came to nothing, so that it may be tried
// again. One that was answered stays.
func (s *Store) Forget(ctx context.Context, key string) error {
	return s.do(ctx, func(t *tx) error { return t.exec("DELETE FROM keys WHERE key = ? AND answer IS NULL", key) })
}

// Answered is a key that a journal knows, with its answer.
type Answered struct {
	Key, Method string
	At          time.Time
	// Request is the SHA-256 of what it came with; empty: nobody knows any more,
	// and any will do.
	Request []byte
	Answer  []byte
}

// learn adds keys where the index knows none.
func (t *tx) learn(keys []Answered) error {
	for _, k := range keys {
		if k.Request == nil {
			k.Request = []byte{}
		}
		if k.Answer == nil {
			k.Answer = []byte{}
		}
		if t.now.Sub(k.At) > KeepKeys {
			continue
		}
		if err := t.take(k.Key, k.At, k.Method, k.Request, k.Answer); err != nil {
			return err
		}
	}
	return nil
}
