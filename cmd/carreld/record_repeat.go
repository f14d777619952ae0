package main

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/carrel-vm/carrel/guest/api"
)

// Bounds of what refusals write into the audit log. The guest says how many
// there are: at 500 a second it would have pushed all else out of the log within
// ten minutes. With these it takes more than half a day,
// with the longest paths.
const (
	// repeatTime is how long a refusal stands for others like it.
	repeatTime = 10 * time.Second
	// refusals a second are recorded one by one, after the first refusalBurst;
	// beyond, their number is.
	refusals     = 1
	refusalBurst = 512
)

// repeats thins out refusals: the first of a kind is recorded at once, those like
// it in the next seconds as one number, and so are all beyond the bounds.
type repeats struct {
	write func(kind string, fields any)

	mu     sync.Mutex
	pace   *rate.Limiter
	open   map[alike]int
	lost   int
	timer  *time.Timer // runs while something is counted
	closed bool
}

// alike is what makes refusals alike.
type alike struct {
	kind               api.EgressEventKind
	task, host, method string
	port               uint32
	reason             string
}

// repeated is the record of a number of refusals.
type repeated struct {
	Task    string `json:"task,omitempty"`
	Host    string `json:"host,omitempty"`
	Port    uint32 `json:"port,omitempty"`
	Method  string `json:"method,omitempty"`
	Reason  string `json:"reason"`
	More    int    `json:"more"`
	Seconds int    `json:"seconds"`
}

func newRepeats(write func(kind string, fields any)) *repeats {
	return &repeats{write: write, pace: rate.NewLimiter(refusals, refusalBurst), open: map[alike]int{}}
}

// event records an event, or counts it.
func (r *repeats) event(ev *api.EgressEvent) {
	if ev.Verdict.GetAction() != api.EgressAction_EGRESS_ACTION_DENY || ev.Kind == api.EgressEventKind_EGRESS_EVENT_KIND_END {
		r.write("egress", ev)
		return
	}
	key := alike{ev.Kind, ev.Task, ev.Host, ev.Method, ev.Port, ev.Verdict.Reason}
	r.mu.Lock()
	defer r.mu.Unlock()
	n, like := r.open[key]
	switch {
	case like: // it stands for this one
		r.open[key] = n + 1
	case r.closed:
		r.write("egress", ev)
	case r.pace.Allow():
		r.open[key] = 0
		r.write("egress", ev)
	default:
		r.lost++
	}
	if r.timer == nil && !r.closed {
		r.timer = time.AfterFunc(repeatTime, r.flush)
	}
}

// flush records the numbers and begins anew.
func (r *repeats) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, n := range r.open {
		if n > 0 {
			r.write("egress.repeated", repeated{key.task, key.host, key.port, key.method, key.reason, n, int(repeatTime.Seconds())})
		}
	}
	if r.lost > 0 {
		r.write("egress.repeated", repeated{Reason: "too many different refusals to record each", More: r.lost, Seconds: int(repeatTime.Seconds())})
	}
	clear(r.open)
	r.lost, r.timer = 0, nil
}

// close records what was counted so far.
func (r *repeats) close() {
	r.mu.Lock()
	if r.closed = true; r.timer != nil {
		r.timer.Stop()
	}
	r.mu.Unlock()
	r.flush()
}
