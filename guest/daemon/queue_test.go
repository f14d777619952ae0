package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// line drives a queue without goroutines: who comes, who leaves, who goes on.
type line struct {
	*queue
	clock time.Time
	all   map[string]*waiter
	atOnce,
	places int
}

func newLine(atOnce, places int) *line {
	l := &line{clock: time.Unix(0, 0), all: map[string]*waiter{}, atOnce: atOnce, places: places}
	l.queue = &queue{now: func() time.Time { return l.clock }}
	return l
}

// join lets names come, "a1.x" by connection x of session a: a letter each.
func (l *line) join(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if err := l.try(n); err != nil {
			t.Fatalf("%s: %v", n, err)
		}
	}
}

func (l *line) try(name string) error {
	session, conn, _ := strings.Cut(name, ".")
	w, err := l.come(caller{session: session[:1], conn: session[:1] + "." + conn}, l.atOnce, l.places)
	if err == nil {
		l.all[name] = w
	}
	return err
}

// went are those that may go on since the last call.
func (l *line) went() (names []string) {
	for n, w := range l.all {
		select {
		case err := <-w.turn:
			if err != nil {
				n += ": " + err.Error()
			}
			names = append(names, n)
			delete(l.all, n[:strings.IndexByte(n+":", ':')])
		default:
		}
	}
	return names
}

// order lets one after the other leave until nobody waits.
func (l *line) order() (order []string) {
	for {
		now := l.went()
		if len(now) == 0 {
			return order
		}
		order = append(order, now...)
		l.leave(time.Second)
	}
}

func TestQueueOrder(t *testing.T) {
	for name, c := range map[string]struct{ come, want string }{
		"one after the other":           {"a1 b1 c1 d1", "a1 b1 c1 d1"},
		"a thousand and one":            {"a1 a2 a3 a4 a5 b1", "a1 a2 b1 a3 a4 a5"},
		"round":                         {"a1 a2 a3 b1 b2 b3 c1", "a1 a2 b1 c1 a3 b2 b3"},
		"connections of one session":    {"a1.x a2.x a3.x a4.y", "a1.x a2.x a4.y a3.x"},
		"many connections are one":      {"a1.p a2.q a3.r a4.s b1", "a1.p a2.q b1 a3.r a4.s"},
		"both":                          {"a1.x a2.x a3.x a4.y b1.z b2.z", "a1.x a2.x b1.z a4.y b2.z a3.x"},
		"a connection's number is free": {"a1.x b1.x a2.x b2.x", "a1.x b1.x a2.x b2.x"},
	} {
		l := newLine(1, 100)
		l.join(t, strings.Fields(c.come)...)
		if got := strings.Join(l.order(), " "); got != c.want {
			t.Errorf("%s: %s went on as %s, not %s", name, c.come, got, c.want)
		}
		if len(l.served) != 0 || l.running != 0 {
			t.Errorf("%s: %d are remembered, %d run", name, len(l.served), l.running)
		}
	}
}

// Who asks for one at a time does not keep out who asked for many: nobody has
// credit from the past.
func TestQueueNobodyStarves(t *testing.T) {
	l := newLine(1, 100)
	l.join(t, "m1", "m2", "m3", "m4", "a1", "b1")
	many := 0
	for i := range 12 {
		for _, n := range l.went() {
			if n[0] == 'm' {
				many++
			} else { // it asks for the next at once
				l.join(t, fmt.Sprintf("%c%d", n[0], i+2))
			}
		}
		l.leave(time.Second)
	}
	if many != 4 {
		t.Errorf("of four %d went on in twelve turns, beside two that always ask for one more", many)
	}
}

func TestQueueAtOnce(t *testing.T) {
	l := newLine(3, 100)
	l.join(t, "a1", "a2", "a3", "a4", "b1")
	if got := l.went(); len(got) != 3 {
		t.Fatalf("%v go on at once", got)
	}
	l.atOnce = 5 // the policy has changed
	l.join(t, "c1")
	if got := l.went(); len(got) != 2 {
		t.Errorf("%v go on beside three, of five", got)
	}
}

// Places are bounded, and who comes late still finds one.
func TestQueuePlaces(t *testing.T) {
	l := newLine(1, 8)
	l.join(t, "a0")
	fill := func(session string) (n int) {
		for i := range 20 {
			err := l.try(fmt.Sprintf("%s%d", session, i+1))
			var full *fullError
			if errors.As(err, &full) {
				if full.retry < time.Second || full.mine != n {
					t.Errorf("%s: %+v", session, full)
				}
				return n
			} else if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	if a, b, c := fill("a"), fill("b"), fill("c"); a != 4 || b != 2 || c != 1 {
		t.Errorf("three sessions found %d, %d and %d of 8 places", a, b, c)
	}
	if d, e := fill("d"), fill("e"); d != 1 || e != 0 {
		t.Errorf("the last two found %d and %d", d, e)
	}
	if err := l.full(caller{session: "e"}, 1, 8); err == nil {
		t.Error("it is not full")
	}
	// The control: when one goes on there is a place.
	l.leave(time.Second)
	if e := fill("e"); e != 1 {
		t.Errorf("%d places after one went on", e)
	}
	l = newLine(1, 0)
	l.join(t, "a1")
	if err := l.try("a2"); err == nil {
		t.Error("one waits where nobody may")
	}
	if l.leave(0); l.try("a2") != nil {
		t.Error("one that need not wait is refused where nobody may wait")
	}
}

// Who gives up is out at once, and what waits behind it is told; one whose turn
// has come meanwhile passes it on.
func TestQueueGivesUp(t *testing.T) {
	l := newLine(1, 100)
	l.join(t, "a1", "a2", "a3", "b1")
	said := func(name string) int {
		select {
		case n := <-l.all[name].ahead:
			return n
		default:
			return -1
		}
	}
	l.went()
	if n := said("a3"); n != 3 {
		t.Errorf("a3 waits for %d", n)
	}
	l.giveUp(l.all["a2"])
	delete(l.all, "a2")
	if a, b := said("a3"), said("b1"); a != 1 || b != 2 {
		t.Errorf("they wait for %d and %d", a, b)
	}
	l.leave(time.Second) // it is the turn of a3, which does not know
	l.giveUp(l.all["a3"])
	delete(l.all, "a3")
	if got := l.went(); len(got) != 1 || got[0] != "b1" || l.running != 1 {
		t.Errorf("%v, %d run", got, l.running)
	}
}

// enter ends with its deadline, with its caller and with the queue; nothing is
// left of it.
func TestQueueEnter(t *testing.T) {
	q := new(queue)
	quiet := func(int) error { return nil }
	leave, err := q.enter(t.Context(), caller{1, 1}, 1, 9, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := q.enter(ctx, caller{1, 1}, 1, 9, quiet); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the deadline: %v", err)
	}
	gone := errors.New("the caller is gone")
	if _, err := q.enter(t.Context(), caller{1, 1}, 1, 9, func(n int) error { return fmt.Errorf("%w (%d)", gone, n) }); !errors.Is(err, gone) || !strings.Contains(err.Error(), "(1)") {
		t.Errorf("a caller that cannot be told: %v", err)
	}
	told, end := make(chan int, 9), make(chan error, 1)
	go func() {
		_, err := q.enter(context.Background(), caller{2, 2}, 1, 9, func(n int) error { told <- n; return nil })
		end <- err
	}()
	<-told
	if len(q.waiting) != 1 {
		t.Errorf("%d wait", len(q.waiting))
	}
	q.close()
	if err := <-end; !errors.Is(err, errClosing) {
		t.Errorf("the end of the queue: %v", err)
	}
	leave()
	leave()
	if _, err := q.enter(t.Context(), caller{1, 1}, 1, 9, quiet); !errors.Is(err, errClosing) || q.running != 0 || len(q.served) != 0 {
		t.Errorf("after its end: %v, %d run", err, q.running)
	}
}
