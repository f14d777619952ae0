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

// Update writes what is known of a guest and its tasks, and returns when that is
// on the disk. A task that has its ending keeps it; one that comes with another
// ending is returned, and not written.
func (s *Store) Update(ctx context.Context, guest string, created time.Time, tasks ...Task) (bad []Conflict, err error) {
	err = s.do(ctx, func(t *tx) error {
		bad = nil
		if err := t.exec("INSERT INTO guests (name, created) VALUES (?, ?) ON CONFLICT DO UPDATE SET created = excluded.created WHERE created != excluded.created", guest, created.UnixNano()); err != nil {
			return err
		}
		bad, err = t.tasks(guest, tasks)
		return err
	})
	return bad, err
}

// Later is Update for what a journal holds too, and which nobody waits for.
func (s *Store) Later(ctx context.Context, guest string, tasks ...Task) {
	if s == nil {
		return
	}
	s.send(ctx, &op{done: make(chan error, 1), f: func(t *tx) error {
		_, err := t.tasks(guest, tasks)
		return err
	}})
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

// Removed writes the last word on a guest's tasks, of which each must have its
// ending, and forgets the guest. It is called before the guest's folder goes.
func (s *Store) Removed(ctx context.Context, guest string, tasks ...Task) (bad []Conflict, err error) {
	err = s.do(ctx, func(t *tx) error {
		if bad, err = t.tasks(guest, tasks); err != nil {
			return err
		}
		if err := t.exec("DELETE FROM guests WHERE name = ?", guest); err != nil {
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
		return t.each("SELECT id, guest, state, record, sum FROM (SELECT * FROM tasks WHERE ? IN ('', guest) ORDER BY id DESC LIMIT ?) ORDER BY id", []any{guest, limit}, func(scan func(...any) error) error {
			var k Task
			var want int64
			if err := scan(&k.ID, &k.Guest, &k.State, &k.Record, &want); err != nil {
				return err
			}
			if want != sum(k.ID, int64(k.State), k.Record) {
				return fmt.Errorf("%w: a task is not what was written", errDamaged)
			}
			list = append(list, k)
			return nil
		})
	})
	return list, err
}
