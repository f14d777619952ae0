package daemon

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// queue lets so many go on at once, and the others wait for their turn:
//
//	comes ── a place is free ─────────────────> goes on ──> leaves: the next goes on
//	  └──> waits ── its turn ──────────────────────┘
//	         ├── gives up (deadline, the caller is gone) ──> out at once
//	         └── the queue is closed ──> errClosing
//
// Turns go round: first among sessions, of each one, and within a session among
// its connections. So who asks for a thousand waits for who asks for one, and not
// the other way. Places to wait are bounded, and a session may take as many as it
// leaves free: one alone gets half of them, two a third each, and who comes last
// still finds one.
//
// The zero value is a queue.
type queue struct {
	now func() time.Time // nil: time.Now

	mu      sync.Mutex
	running int
	atOnce  int // as the last one that came knew it
	waiting []*waiter
	seq     uint64
	served  map[any]uint64 // when those that wait, sessions and connections, came or were served last
	closed  bool
	took    time.Duration // how long one that went on stayed, smoothed; 0: not known
}

// caller is who waits. A session is all that was started from one terminal, or by
// one service; each of its connections is one program's.
type caller struct{ session, conn any }

type waiter struct {
	caller
	seq   uint64
	turn  chan error // takes nil when it goes on
	ahead chan int   // how many go on before it, the last word
	said  int
}

// Words of a queue.
var errClosing = errors.New("the daemon is being shut down")

// fullError says that no place to wait is left for the caller.
type fullError struct {
	waiting, mine int
	retry         time.Duration // when a place may be free, roughly
}

func (e *fullError) Error() string { return "no place to wait is left" }

func (q *queue) time() time.Time {
	if q.now != nil {
		return q.now()
	}
	return time.Now()
}

// enter returns when it is the caller's turn; leave is to be called when it is done.
// tell is called with how many others go on before, whenever that has changed.
// An error of ctx, of tell, errClosing or a *fullError.
func (q *queue) enter(ctx context.Context, who caller, atOnce, places int, tell func(ahead int) error) (leave func(), err error) {
	w, err := q.come(who, atOnce, places)
	if err != nil {
		return nil, err
	}
	for {
		select {
		case err := <-w.turn:
			if err != nil {
				return nil, err
			}
			begun := q.time()
			return sync.OnceFunc(func() { q.leave(q.time().Sub(begun)) }), nil
		case <-ctx.Done():
			q.giveUp(w)
			return nil, context.Cause(ctx)
		case n := <-w.ahead:
			if err := tell(n); err != nil {
				q.giveUp(w)
				return nil, err
			}
		}
	}
}

// come takes a place.
func (q *queue) come(who caller, atOnce, places int) (*waiter, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, errClosing
	}
	if q.served == nil {
		q.served = map[any]uint64{}
	}
	q.atOnce = atOnce
	q.seq++
	w := &waiter{caller: who, seq: q.seq, turn: make(chan error, 1), ahead: make(chan int, 1), said: -1}
	if len(q.waiting) > 0 || q.running >= atOnce {
		if err := q.fullLocked(who, places); err != nil {
			return nil, err
		}
	}
	for _, x := range []any{who.session, who.conn} {
		if _, waits := q.served[x]; !waits { // it is the last in the round, whatever was before
			q.served[x] = q.seq
		}
	}
	q.waiting = append(q.waiting, w)
	q.nextLocked()
	return w, nil
}

// idle says whether nobody goes on and nobody waits.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.running == 0 && len(q.waiting) == 0
}

// full says whether a caller would be refused now.
func (q *queue) full(who caller, atOnce, places int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 && q.running < atOnce {
		return nil
	}
	return q.fullLocked(who, places)
}

func (q *queue) fullLocked(who caller, places int) error {
	mine := 0
	for _, w := range q.waiting {
		if w.session == who.session {
			mine++
		}
	}
	if free := places - len(q.waiting); mine < free {
		return nil
	}
	return &fullError{waiting: len(q.waiting), mine: mine, retry: max(time.Second, q.took/time.Duration(max(q.atOnce, 1)))}
}

// nextLocked lets go on whose turn it is, and tells the others where they stand.
func (q *queue) nextLocked() {
	for q.running < q.atOnce && len(q.waiting) > 0 {
		w := q.orderLocked()[0]
		q.running++
		q.seq++
		q.served[w.session], q.served[w.conn] = q.seq, q.seq
		q.outLocked(w)
		w.turn <- nil
	}
	for i, w := range q.orderLocked() {
		if n := i + q.running; n != w.said {
			w.said = n
			select {
			case <-w.ahead: // it was not read yet, and is old
			default:
			}
			w.ahead <- n
		}
	}
}

// outLocked takes one out of those that wait. Nothing is kept of who waits for
// nothing more.
func (q *queue) outLocked(w *waiter) {
	q.waiting = slices.DeleteFunc(q.waiting, func(x *waiter) bool { return x == w })
	for x := range q.served {
		if !slices.ContainsFunc(q.waiting, func(w *waiter) bool { return w.session == x || w.conn == x }) {
			delete(q.served, x)
		}
	}
}

// orderLocked is in which order those that wait will go on, if nobody comes.
func (q *queue) orderLocked() []*waiter {
	order := slices.Clone(q.waiting)
	q.roundLocked(order, func(w *waiter) any { return [2]any{w.session, w.conn} }, func(w *waiter) any { return w.conn })
	q.roundLocked(order, func(w *waiter) any { return w.session }, func(w *waiter) any { return w.session })
	return order
}

// roundLocked sorts by rounds: the first of each, then the second of each, ...
// Within a round who was served longest ago comes first.
func (q *queue) roundLocked(order []*waiter, key, past func(*waiter) any) {
	round := make(map[*waiter]int, len(order))
	n := map[any]int{}
	for _, w := range order {
		round[w] = n[key(w)]
		n[key(w)]++
	}
	slices.SortStableFunc(order, func(a, b *waiter) int {
		return cmp.Or(cmp.Compare(round[a], round[b]), cmp.Compare(q.served[past(a)], q.served[past(b)]))
	})
}

// leave makes room for the next one.
func (q *queue) leave(took time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running--
	if q.took == 0 {
		q.took = took
	}
	q.took += (took - q.took) / 8
	q.nextLocked()
}

// giveUp takes out one that waits, or lets the next go on if its turn had come.
func (q *queue) giveUp(w *waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case err := <-w.turn:
		if err == nil {
			q.running--
		}
	default:
		q.outLocked(w)
	}
	q.nextLocked()
}

// close sends away all that wait and all that come.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, w := range q.waiting {
		w.turn <- errClosing
	}
	q.waiting = nil
	clear(q.served)
}
