package egress

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
)

// ErrNoQuestion: the question was answered, or timed out, or never was.
var ErrNoQuestion = errors.New("there is no such question (it may have timed out)")

// asks are the questions that wait for an answer.
//
//	asked → answered yes (once | guest | always) | answered no | timed out | its last waiter is gone
//
// Whoever said no is not asked the same at once again, however often the guest
// tries.
type asks struct {
	mu      sync.Mutex
	open    map[subject]*question
	waiting int
	last    int
	salt    string                // so that an answer to another process' question fits none
	noes    map[subject]time.Time // what was denied lately, and until when that holds
	pace    *rate.Limiter         // of new questions: what gives up at once could ask without end
}

// subject is what is asked about: a destination or, with a method, a request.
type subject struct {
	dest policy.Destination
	req  policy.Request
}

type question struct {
	id      string
	about   subject
	until   time.Time
	waiters int
	answer  chan struct{} // closed when yes is set
	yes     bool
}

func (a *asks) init() {
	var b [2]byte
	rand.Read(b[:])
	a.pace = rate.NewLimiter(questions, questionBurst)
	a.open, a.noes, a.salt = map[subject]*question{}, map[subject]time.Time{}, hex.EncodeToString(b[:])
}

// join returns the question about a subject; fresh if this is its first waiter.
// If it returns none, full says why.
func (a *asks) join(about subject) (q *question, fresh bool, full string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiting >= maxWaiting {
		return nil, false, fmt.Sprintf("%d others wait for an answer already", maxWaiting)
	}
	// One whose time is up may still have waiters that are about to notice.
	if q = a.open[about]; q == nil || !time.Now().Before(q.until) {
		if !a.pace.Allow() {
			return nil, false, "too much was asked about lately"
		}
		a.last++
		q = &question{id: fmt.Sprintf("q%d-%s", a.last, a.salt), about: about, until: time.Now().Add(askTimeout), answer: make(chan struct{})}
		a.open[about] = q
		fresh = true
	}
	a.waiting++
	q.waiters++
	return q, fresh, ""
}

// denied says whether somebody said no to a subject lately.
func (a *asks) denied(about subject) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Now().Before(a.noes[about])
}

// no keeps an answer for a while.
func (a *asks) no(about subject) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	for k, until := range a.noes {
		if now.After(until) {
			delete(a.noes, k)
		}
	}
	if len(a.noes) < maxNoes {
		a.noes[about] = now.Add(noHolds)
	}
}

// forget lets everything be asked again.
func (a *asks) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.noes)
}

// leave forgets a question with its last waiter.
func (a *asks) leave(q *question) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting--
	if q.waiters--; q.waiters == 0 && a.open[q.about] == q {
		delete(a.open, q.about)
	}
}

// take removes a question, so that only one answer counts.
func (a *asks) take(id string) *question {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, q := range a.open {
		if q.id == id {
			delete(a.open, q.about)
			return q
		}
	}
	return nil
}

// ask waits until somebody answers, the time is up, or the rules no longer ask:
// then it returns neither yes nor a refusal, and they are to be asked again.
// Nothing was dialled yet.
func (c *conn) ask(ctx context.Context, f *config, v policy.Verdict, r *policy.Request) (yes bool, no *refusal) {
	about := subject{dest: c.dest}
	if r != nil {
		about.req = *r
	}
	if c.s.asks.denied(about) {
		return false, &refusal{rule: v.Rule, reason: fmt.Sprintf("It was asked about, and the answer was no; it is not asked again for %d s.", int(noHolds.Seconds()))}
	}
	q, fresh, full := c.s.asks.join(about)
	if q == nil {
		return false, &refusal{rule: v.Rule, reason: "It would be asked about, but " + full + "."}
	}
	defer c.s.asks.leave(q)
	if fresh {
		kind := api.EgressEventKind_EGRESS_EVENT_KIND_QUESTION
		ev := c.event(kind)
		if r != nil {
			ev.Method, ev.Path = text(c.s.hide(r.Method), 32), text(c.s.hide(r.Path), maxPath)
		}
		ev.Question = q.id
		ev.Verdict = c.verdict(v.Action, v.Rule, v.Inspect, v.Reason, "carrel egress "+c.s.opts.Guest+" --answer "+q.id+" --once")
		c.s.log.Info("egress", "task", c.task, "to", c.dest.String(), "verdict", "ask", "question", q.id)
		c.s.events.add(ev)
		c.s.told.tell(c.task, "carrel: egress to "+c.dest.String()+" waits for an answer ("+ev.Verdict.Cure+")")
	}
	late := time.NewTimer(time.Until(q.until))
	defer late.Stop()
	for {
		select {
		case <-q.answer:
			if q.yes {
				return true, nil
			}
			return false, &refusal{rule: v.Rule, reason: "It was asked about, and the answer was no."}
		case <-late.C:
			return false, &refusal{rule: v.Rule, reason: fmt.Sprintf("It was asked about, and nobody answered within %d s.", int(askTimeout.Seconds()))}
		case <-ctx.Done():
			return false, &refusal{rule: v.Rule, reason: "It was asked about, and ended before an answer came."}
		case <-f.replaced:
			f = c.s.current()
			now := f.connect(c.dest, c.answered)
			if r != nil {
				now = f.request(c.dest, *r, false)
			}
			if now.Action != api.EgressAction_EGRESS_ACTION_ASK {
				return false, nil
			}
		}
	}
}

// Answer decides a question. GUEST and ALWAYS also add a rule to those that hold
// here; to keep it is the caller's part. All that wait for this question go on
// or are refused.
func (s *Server) Answer(id string, a api.EgressAnswer) error {
	q := s.asks.take(id)
	if q == nil {
		return fmt.Errorf("answer %q: %w", text(id, 64), ErrNoQuestion)
	}
	defer close(q.answer)
	switch a {
	case api.EgressAnswer_EGRESS_ANSWER_ONCE:
	case api.EgressAnswer_EGRESS_ANSWER_GUEST, api.EgressAnswer_EGRESS_ANSWER_ALWAYS:
		if err := s.remember(q.about); err != nil {
			return fmt.Errorf("answer %q: %w (the answer counts as no)", text(id, 64), err)
		}
	default:
		s.asks.no(q.about)
		return nil
	}
	q.yes = true
	return nil
}

// Question returns what a question is about: to keep its answer.
func (s *Server) Question(id string) (policy.Destination, *policy.Request, error) {
	s.asks.mu.Lock()
	defer s.asks.mu.Unlock()
	for _, q := range s.asks.open {
		if q.id == id {
			d, r := q.about.parts()
			return d, r, nil
		}
	}
	return policy.Destination{}, nil, fmt.Errorf("question %q: %w", text(id, 64), ErrNoQuestion)
}

func (a subject) parts() (policy.Destination, *policy.Request) {
	if a.req == (policy.Request{}) {
		return a.dest, nil
	}
	r := a.req
	return a.dest, &r
}

// remember adds the rule that an answer makes.
func (s *Server) remember(about subject) error {
	for {
		old := s.current()
		next := proto.Clone(old.source).(*api.ConfigureEdgeRequest)
		d, r := about.parts()
		next.Rules = append(next.Rules, policy.Answer(d, r, true))
		f, err := compile(next)
		if err != nil {
			return err
		}
		if _, err := s.replace(old, f); !errors.Is(err, errReplaced) {
			return err
		}
	}
}
