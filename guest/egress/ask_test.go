package egress

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/wire"
)

func asking(host string, ports ...uint32) *api.EgressRule {
	return anyRule(api.EgressAction_EGRESS_ACTION_ASK, host, ports...)
}

// A question holds its connections, and nothing is resolved or dialled before
// the answer. All that wait for it get the same one.
func TestAsk(t *testing.T) {
	for _, x := range []struct {
		answer       api.EgressAnswer
		yes, settled bool
	}{
		{api.EgressAnswer_EGRESS_ANSWER_UNSPECIFIED, false, false},
		{api.EgressAnswer_EGRESS_ANSWER_DENY, false, false},
		{api.EgressAnswer_EGRESS_ANSWER_ONCE, true, false},
		{api.EgressAnswer_EGRESS_ANSWER_GUEST, true, true},
		{api.EgressAnswer_EGRESS_ANSWER_ALWAYS, true, true},
	} {
		w := newWorld(t, nil, asking("a.example", 7))
		w.serve("a.example", somewhere, 7, echo)
		var wg sync.WaitGroup
		conns := make([]net.Conn, 3)
		for i := range conns {
			conns[i] = w.open("a.example", 7)
			wg.Go(func() {
				if err := says(conns[i]); (err == nil) != x.yes {
					t.Errorf("%v: %v", x.answer, err)
				}
			})
		}
		q := w.seen("question", isQuestion)
		w.waiting(3)
		if lookups, dials := w.outside(); len(lookups)+len(dials) > 0 {
			t.Errorf("before the answer: resolved %q, dialled %v", lookups, dials)
		}
		if d, r, err := w.Question(q.Question); err != nil || r != nil || d.String() != "a.example:7" {
			t.Errorf("%v %v %v", d, r, err)
		}
		if err := w.Answer(q.Question, x.answer); err != nil {
			t.Error(err)
		}
		if err := w.Answer(q.Question, x.answer); !errors.Is(err, ErrNoQuestion) {
			t.Errorf("a second answer: %v", err)
		}
		wg.Wait()
		if x.yes {
			// New rules that still ask leave what was answered alone.
			if n := w.configure(w.current().source.Rules...); n != 0 {
				t.Errorf("%d connections were closed", n)
			}
			if n := w.configure(anyRule(api.EgressAction_EGRESS_ACTION_DENY, "a.example", 7)); n != 3 {
				t.Errorf("%d connections were closed", n)
			}
			w.configure(asking("a.example", 7))
			if x.settled { // the caller keeps the answer, in this form
				w.configure(asking("a.example", 7), policy.Answer(q2(w, q), nil, true))
			}
		}
		c := w.open("a.example", 7)
		if x.settled {
			if err := says(c); err != nil {
				t.Errorf("%v: asked again: %v", x.answer, err)
			}
		} else {
			if !x.yes {
				if err := says(c); err == nil {
					t.Errorf("%v: passes at once after", x.answer)
				}
				w.configure(asking("a.example", 7)) // forgets the no
				c = w.open("a.example", 7)
			}
			again := w.seen("the second question", func(ev *api.EgressEvent) bool { return isQuestion(ev) && ev.Question != q.Question })
			w.Answer(again.Question, api.EgressAnswer_EGRESS_ANSWER_DENY)
			if err := says(c); err == nil {
				t.Errorf("%v: passes without a question", x.answer)
			}
		}
		n := 0
		w.mu.Lock()
		for _, ev := range w.events {
			if isQuestion(ev) {
				n++
			}
		}
		w.mu.Unlock()
		if want := map[bool]int{true: 1, false: 2}[x.settled]; n != want {
			t.Errorf("%v: %d questions", x.answer, n)
		}
	}
}

// q2 is what a question was about, as its event says it.
func q2(w *world, q *api.EgressEvent) policy.Destination {
	w.t.Helper()
	h, err := policy.ParseHost(q.Host)
	if err != nil {
		w.t.Fatal(err)
	}
	return policy.Destination{Host: h, Port: uint16(q.Port)}
}

// waiting waits until n connections wait for an answer.
func (w *world) waiting(n int) {
	w.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		w.asks.mu.Lock()
		got := w.asks.waiting
		w.asks.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%d connections wait, not %d", got, n)
		}
	}
}

// An answer for the guest holds at once for the next connection, without the
// caller's part.
func TestAskGuestHolds(t *testing.T) {
	w := newWorld(t, nil, asking("a.example", 7))
	w.serve("a.example", somewhere, 7, echo)
	c := w.open("a.example", 7)
	if err := w.Answer(w.seen("question", isQuestion).Question, api.EgressAnswer_EGRESS_ANSWER_GUEST); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := says(c); err != nil {
			t.Fatal(err)
		}
		c = w.open("a.example", 7)
	}
}

// New rules that decide the matter end the wait.
func TestAskRulesChange(t *testing.T) {
	w := newWorld(t, nil, asking("a.example", 7), asking("b.example", 7))
	w.serve("a.example", somewhere, 7, echo)
	a, b := w.open("a.example", 7), w.open("b.example", 7)
	w.waiting(2)
	w.configure(allow("a.example", 7))
	if err := says(a); err != nil {
		t.Error(err)
	}
	if err := says(b); err == nil {
		t.Error("b.example passes")
	}
}

// Questions are bounded in number and in time: nobody's answer is a no.
func TestAskBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.configure(&api.EgressRule{Action: api.EgressAction_EGRESS_ACTION_ASK, Host: "*", Ports: []uint32{7}, Wide: true})
		start := time.Now()
		for i := range maxWaiting + 1 {
			c := w.pipe(strings.Repeat("a", i%60+1)+strings.Repeat(".b", i/60)+".example", 7)
			defer c.Close()
			synctest.Wait()
		}
		w.mu.Lock()
		last := w.events[len(w.events)-1]
		w.mu.Unlock()
		if !isDenied(last) || !strings.Contains(last.Verdict.Reason, "64 others") {
			t.Errorf("%v", last)
		}
		time.Sleep(askTimeout + time.Second)
		synctest.Wait()
		w.mu.Lock()
		denied := 0
		for _, ev := range w.events {
			if isDenied(ev) {
				denied++
			}
		}
		w.mu.Unlock()
		if denied != maxWaiting+1 || time.Since(start) < askTimeout {
			t.Errorf("%d denied", denied)
		}
		w.waiting(0)
		if lookups, _ := w.outside(); len(lookups) > 0 {
			t.Errorf("resolved %q", lookups)
		}
		w.Close()
	})
}

// pipe is open over a net.Pipe, whose deadlines follow a test's own clock.
func (w *world) pipe(host string, port uint32) net.Conn {
	w.t.Helper()
	a, b := net.Pipe()
	w.wg.Go(func() { w.Serve(context.Background(), b) })
	if err := wire.Write(a, &wire.Open{Host: host, Port: port}); err != nil {
		w.t.Fatal(err)
	}
	return a
}
