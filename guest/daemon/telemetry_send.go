package daemon

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/audit"
	"github.com/carrel-vm/carrel/guest/telemetry"
)

// Bounds between two tries, when the receiver does not say itself.
const (
	firstPause = time.Second
	lastPause  = 5 * time.Minute
)

// auditPage is how many records of one guest go at once, so that each has its
// turn.
const auditPage = 32

// auditTries is how often a removed guest's audit log is read that cannot be,
// once between two sets of figures, until it counts as lost.
const auditTries = 5

// sender is the one goroutine that speaks to a receiver.
//
//  1. what comes after the cursor is read from the logs, as much as one request
//     holds: events, and then of each guest whose audit log may have more
//  2. secrets are taken out of it, and what is too long is cut
//  3. it is sent, until the receiver has taken it or does not want it
//  4. the cursor is written
type sender struct {
	x        *exporter
	client   *telemetry.Client
	interval time.Duration
	after    func(time.Duration) <-chan time.Time // time.After, but in tests
	kept     func()                               // called when the cursor was written; nil but in tests

	cur   cursor
	turn  int             // whose audit log comes first
	tries map[string]int  // of audit logs that could not be read, by auditKey
	later map[string]bool // of these, those that are left alone until the next figures
	pause time.Duration   // before the next try; 0: the last one was good
}

func newSender(x *exporter, c *telemetry.Client, interval time.Duration) *sender {
	return &sender{x: x, client: c, interval: interval, after: time.After, tries: map[string]int{}, later: map[string]bool{}}
}

func (s *sender) run(ctx context.Context) {
	d := s.x.d
	var err error
	if s.cur, err = loadCursor(d.opts.Place.State); err != nil {
		d.log.Error("what was sent to the receiver of telemetry is not known, so all that the logs hold is sent", "error", err)
	}
	kept := s.cur.Events
	if d.index == nil {
		s.cur.Events = 0 // the events of this daemon are numbered anew, and last as long as it
	}
	s.all()
	figures := time.NewTicker(s.interval)
	defer figures.Stop()
	var again <-chan time.Time // runs while the receiver is left alone
	for {
		_, grown := d.events.state() // before the look: what comes after it is not missed
		if again == nil {
			more, wait := s.step(ctx, kept)
			switch {
			case ctx.Err() != nil:
				return
			case wait > 0:
				again = s.after(wait)
			case more:
				continue
			}
		}
		if again != nil {
			grown = nil // it goes on then, and not sooner
		}
		wake := s.x.wake
		if again != nil {
			wake = nil
		}
		select {
		case <-grown:
		case <-wake:
		case <-again:
			again = nil
		case <-figures.C:
			s.all()
			if err := s.client.Metrics(ctx, d.started, s.x.figures()); err != nil && ctx.Err() == nil {
				s.x.failed(err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// all has every guest's audit log looked at: a process may have written to it
// without an event's coming of it.
func (s *sender) all() {
	clear(s.later)
	es := s.x.d.entries()
	s.x.mu.Lock()
	defer s.x.mu.Unlock()
	for _, e := range es {
		s.x.dirty[e.name] = true
	}
}

// step sends once. more says that there may be more at once; wait is how long the
// receiver is left alone.
func (s *sender) step(ctx context.Context, kept uint64) (more bool, wait time.Duration) {
	b := s.gather(ctx)
	if ctx.Err() != nil || !b.moved {
		return false, 0
	}
	held, err := s.x.secrets(ctx) // after the look: a secret is known before its value is in a record
	if err != nil {
		s.lookAgain(b)
		return false, s.back(ctx, err)
	}
	for i := range b.records {
		b.records[i].Bound(held.redact)
	}
	if len(b.records) > 0 {
		if err := s.send(ctx, b.records, b.lost); err != nil {
			s.lookAgain(b)
			return false, s.back(ctx, err)
		}
	}
	s.cur, s.pause = b.cur, 0
	sent := int64(len(b.records)) - b.lost["refused"] - b.lost["rejected"]
	s.x.took(sent, b.lost, s.cur.Events)
	c := s.cur
	if s.x.d.index == nil {
		c.Events = kept
	}
	if err := c.save(s.x.d.opts.Place.State); err != nil {
		s.x.d.log.Error("keep how far telemetry was sent", "error", err)
	}
	for _, key := range b.done {
		delete(s.tries, key)
		s.x.d.dropSpooled(key)
	}
	if s.kept != nil {
		s.kept()
	}
	return true, 0
}

// lookAgain has what a batch that was not sent had looked at looked at again.
func (s *sender) lookAgain(b *batch) {
	s.x.mu.Lock()
	defer s.x.mu.Unlock()
	maps.Copy(s.x.dirty, b.dirty)
}

// back says how long to wait after a failure: as the receiver wishes, or twice as
// long as before, each daemon a little differently.
func (s *sender) back(ctx context.Context, err error) time.Duration {
	if ctx.Err() != nil {
		return 0
	}
	s.x.failed(err)
	s.pause = min(lastPause, max(firstPause, 2*s.pause))
	var e *telemetry.Error
	if errors.As(err, &e) && e.After > 0 {
		return e.After
	}
	return s.pause*3/4 + rand.N(s.pause/2)
}

// send sends records; those that the receiver refuses for themselves are found by
// halving, and counted as lost.
func (s *sender) send(ctx context.Context, list []telemetry.Record, lost map[string]int64) error {
	rejected, why, err := s.client.Logs(ctx, list)
	if err == nil {
		if rejected > 0 {
			lost["rejected"] += rejected
			s.x.d.log.Warn("the receiver of telemetry did not keep records", "records", rejected, "why", why)
		}
		return nil
	}
	var e *telemetry.Error
	if !errors.As(err, &e) || !e.Refused {
		return err
	}
	if len(list) == 1 {
		lost["refused"]++
		s.x.d.log.Warn("the receiver of telemetry refuses a record", "record", list[0].Name, "error", err)
		return nil
	}
	half := len(list) / 2
	if err := s.send(ctx, list[:half], lost); err != nil {
		return err
	}
	return s.send(ctx, list[half:], lost)
}

// batch is what goes in one request.
type batch struct {
	records []telemetry.Record
	cur     cursor // when it was taken
	moved   bool   // the cursor is not where it was
	size    int
	full    bool // a record had no room
	lost    map[string]int64
	dirty   map[string]bool // guests that were looked at
	done    []string        // logs of removed guests that were read to their end
}

func (b *batch) add(r telemetry.Record) bool {
	n := r.Size()
	if len(b.records) >= telemetry.MaxRecords || len(b.records) > 0 && b.size+n > telemetry.MaxBytes {
		b.full = true
		return false
	}
	b.records, b.size = append(b.records, r), b.size+n
	return true
}

// gather reads what comes next.
func (s *sender) gather(ctx context.Context) *batch {
	b := &batch{cur: s.cur.clone(), lost: map[string]int64{}, dirty: map[string]bool{}}
	d := s.x.d
	list, next, err := d.events.read(ctx, b.cur.Events, eventPage, "")
	if err != nil && ctx.Err() == nil {
		d.log.Error("read events for telemetry", "error", err)
		if connect.CodeOf(err) == connect.CodeDataLoss {
			b.lost["damaged"]++ // next is behind it
		}
	}
	whole := true
	for _, ev := range list {
		if !b.add(eventRecord(ev)) {
			whole = false
			break
		}
		if ev.GetGap() != nil {
			b.lost["overrun"] += int64(ev.Sequence - ev.GetGap().GetFirst() + 1)
		}
		b.cur.Events = ev.Sequence
		if ev.Guest != "" {
			b.dirty[ev.Guest] = true
		}
	}
	if whole {
		b.cur.Events = max(b.cur.Events, next)
	}
	s.audits(b)
	b.moved = b.cur.Events != s.cur.Events || !maps.Equal(b.cur.Audits, s.cur.Audits) || len(b.done) > 0
	return b
}

// audits adds what is new in the audit logs, beginning with another one each time.
func (s *sender) audits(b *batch) {
	d := s.x.d
	s.x.mu.Lock()
	maps.Copy(b.dirty, s.x.dirty)
	clear(s.x.dirty) // before the look: what is written after it is not missed
	s.x.mu.Unlock()
	dirs := d.auditDirs(b.dirty)
	keys := slices.Sorted(maps.Keys(dirs))
	again := map[string]bool{}
	s.turn++
	for i := range keys {
		key := keys[(i+s.turn)%len(keys)]
		guest, _ := guestOf(key)
		if b.full {
			again[guest] = true
			continue
		}
		if s.later[key] {
			continue
		}
		at, n := b.cur.Audits[key], 0
		to, missed, err := audit.After(dirs[key].dir, at, func(e audit.Entry) error {
			if n++; n > auditPage || !b.add(auditRecord(guest, e)) {
				again[guest] = true
				return audit.ErrEnough
			}
			return nil
		})
		if err != nil {
			d.log.Error("read an audit log for telemetry", "guest", guest, "error", err)
			s.tries[key]++
			s.later[key] = true
		} else {
			delete(s.tries, key)
		}
		if missed > 0 {
			b.lost["overrun"] += int64(missed)
		}
		if to != at {
			b.cur.Audits[key] = to
		}
		if !dirs[key].removed || again[guest] || err != nil && s.tries[key] < auditTries {
			continue
		}
		if err != nil {
			d.log.Warn("an audit log is thrown away before it was sent: it cannot be read", "guest", key)
			b.lost["damaged"]++
		}
		b.done = append(b.done, key)
		delete(b.cur.Audits, key)
	}
	s.x.mu.Lock()
	maps.Copy(s.x.dirty, again)
	s.x.mu.Unlock()
}
