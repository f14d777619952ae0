package store

import (
	"context"
	"fmt"
	"time"
)

// maxTasks bounds the tasks of guests that were removed; the oldest go.
const maxTasks = 100_000

// A State is a task's, in the numbers of the API.
//
//	queued ──> running ──> exited
//	   │          └──────> interrupted
//	   └───────────────────────┘
type State int

// The states of a task.
const (
	Queued      State = 1
	Running     State = 2
	Exited      State = 3
	Interrupted State = 4
)

// Final says whether a task that is in it stays in it.
func (s State) Final() bool { return s == Exited || s == Interrupted }

// Task is a row of the index.
type Task struct {
	ID    string // a ULID
	Guest string
	State State
	// Record is the task as the API shows it, marshalled by the caller.
	Record []byte
}

// Conflict is an ending of a task that the index knows with another one.
type Conflict struct {
	ID       string
	Was, Now State
}

// Known is what is known of one guest.
type Known struct {
	Guest   string
	Created time.Time // zero: not said now
	Tasks   []Task
	Keys    []Answered
}

// Update writes what is known of a guest, and returns when that is on the disk.
// A task that has its ending keeps it; one that comes with another ending is
// returned, and not written.
func (s *Store) Update(ctx context.Context, k Known) (bad []Conflict, err error) {
	err = s.do(ctx, func(t *tx) error {
		bad, err = t.update(k)
		return err
	})
	return bad, err
}

// Later is Update for what a journal holds too, and which nobody waits for. What
// is asked afterwards is answered as if it had been written.
func (s *Store) Later(ctx context.Context, k Known) {
	if s == nil {
		return
	}
	s.send(ctx, &op{done: make(chan error, 1), f: func(t *tx) error {
		_, err := t.update(k)
		return err
	}})
}

// Settle gives the tasks of a guest that have no ending in the index the one that
// find knows. Nobody waits for it.
func (s *Store) Settle(ctx context.Context, guest string, find func(id string) (Task, bool)) {
	if s == nil {
		return
	}
	s.send(ctx, &op{done: make(chan error, 1), f: func(t *tx) error {
		open, err := t.open(guest)
		if err != nil {
			return err
		}
		var now []Task
		for _, k := range open {
			if k, ok := find(k.ID); ok {
				now = append(now, k)
			}
		}
		_, err = t.tasks(guest, now)
		return err
	}})
}

// open reads the tasks of a guest that have no ending.
func (t *tx) open(guest string) (list []Task, err error) {
	err = t.read("SELECT id, guest, state, record, sum FROM tasks WHERE guest = ? AND state < ? ORDER BY id", &list, guest, int(Exited))
	return list, err
}

func (t *tx) update(k Known) (bad []Conflict, err error) {
	if !k.Created.IsZero() {
		if err := t.exec("INSERT INTO guests (name, created) VALUES (?, ?) ON CONFLICT DO UPDATE SET created = excluded.created WHERE created != excluded.created", k.Guest, k.Created.UnixNano()); err != nil {
			return nil, err
		}
	}
	if err := t.learn(k.Keys); err != nil {
		return nil, err
	}
	return t.tasks(k.Guest, k.Tasks)
}

func (t *tx) tasks(guest string, tasks []Task) (bad []Conflict, err error) {
	for _, k := range tasks {
		if k.State < Queued || k.State > Interrupted {
			return nil, fmt.Errorf("task %s is in no state that there is: %d", k.ID, k.State)
		}
		was, _, found, err := t.task(k.ID)
		switch {
		case err != nil:
			return nil, err
		case found && was.Final() && k.State.Final() && was != k.State:
			bad = append(bad, Conflict{k.ID, was, k.State})
		case found && (was.Final() || was >= k.State): // what is late changes nothing
		default:
			if k.Record == nil {
				k.Record = []byte{}
			}
			if err := t.exec("INSERT INTO tasks (id, guest, state, record, sum) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET state = excluded.state, record = excluded.record, sum = excluded.sum",
				k.ID, guest, int(k.State), k.Record, sum(k.ID, int64(k.State), k.Record)); err != nil {
				return nil, err
			}
		}
	}
	return bad, nil
}

func (t *tx) task(id string) (s State, record []byte, found bool, err error) {
	var want int64
	found, err = t.one("SELECT state, record, sum FROM tasks WHERE id = ?", []any{id}, &s, &record, &want)
	if found && want != sum(id, int64(s), record) {
		err = fmt.Errorf("%w: a task is not what was written", errDamaged)
	}
	return s, record, found, err
}

// Removed writes the last word on a guest and forgets it; its tasks stay. settle
// gives those their ending of which nobody said one. It is called before the
// guest's folder goes, and returns when all is on the disk.
func (s *Store) Removed(ctx context.Context, k Known, settle func(Task) Task) (bad []Conflict, err error) {
	err = s.do(ctx, func(t *tx) error {
		if bad, err = t.update(k); err != nil {
			return err
		}
		open, err := t.open(k.Guest)
		if err != nil {
			return err
		}
		for i := range open {
			open[i] = settle(open[i])
		}
		if _, err := t.tasks(k.Guest, open); err != nil {
			return err
		}
		if err := t.exec("DELETE FROM guests WHERE name = ?", k.Guest); err != nil {
			return err
		}
		var n int
		if _, err := t.one("SELECT count(*) FROM tasks", nil, &n); err != nil || n <= maxTasks {
			return err
		}
		return t.exec("DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE guest NOT IN (SELECT name FROM guests) ORDER BY id LIMIT ?)", n-maxTasks)
	})
	return bad, err
}

// Guests returns the guests that the index knows, with the time at which each
// was made.
func (s *Store) Guests(ctx context.Context) (names map[string]time.Time, err error) {
	err = s.do(ctx, func(t *tx) error {
		names = map[string]time.Time{}
		return t.each("SELECT name, created FROM guests", nil, func(scan func(...any) error) error {
			var name string
			var at int64
			if err := scan(&name, &at); err != nil {
				return err
			}
			names[name] = time.Unix(0, at).UTC()
			return nil
		})
	})
	return names, err
}

// Tasks returns the newest tasks, those of removed guests too, in the order of
// their acceptance; guest "" stands for all. limit is at most 10,000.
func (s *Store) Tasks(ctx context.Context, guest string, limit int) (list []Task, err error) {
	limit = max(1, min(limit, 10_000))
	err = s.do(ctx, func(t *tx) error {
		list = nil
		return t.read("SELECT id, guest, state, record, sum FROM (SELECT * FROM tasks WHERE ? IN ('', guest) ORDER BY id DESC LIMIT ?) ORDER BY id", &list, guest, limit)
	})
	return list, err
}

// read adds the tasks that a query finds.
func (t *tx) read(q string, to *[]Task, args ...any) error {
	return t.each(q, args, func(scan func(...any) error) error {
		var k Task
		var want int64
		if err := scan(&k.ID, &k.Guest, &k.State, &k.Record, &want); err != nil {
			return err
		}
		if want != sum(k.ID, int64(k.State), k.Record) {
			return fmt.Errorf("%w: a task is not what was written", errDamaged)
		}
		*to = append(*to, k)
		return nil
	})
}
