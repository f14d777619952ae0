package guest

import (
	"slices"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// Bounds of a trace: a start has some thirty parts, and only the first task of a
// guest is followed.
const (
	maxSpans    = 64
	maxSpanName = 64 // bytes
)

// Trace collects the parts of a guest's start, first task and end, as one
// process measures them. A nil Trace collects nothing.
type Trace struct {
	by string

	mu    sync.Mutex
	spans []*api.Span
}

// NewTrace returns an empty trace of the process that is called by.
func NewTrace(by string) *Trace { return &Trace{by: by} }

// Begin begins a part and returns what ends it.
func (t *Trace) Begin(name string) (end func()) {
	begin := time.Now()
	return func() { t.Add(name, begin, time.Now()) }
}

// Add adds a part.
func (t *Trace) Add(name string, begin, end time.Time) {
	if t != nil {
		t.add(&api.Span{Name: name, By: t.by, BeginNanos: begin.UnixNano(), EndNanos: end.UnixNano()})
	}
}

// claim adds a part that the guest says it took, up to a moment that the host
// saw. It is cut to what lies between the host's own moments, so that a guest
// can lie about its own parts only.
func (t *Trace) claim(name string, nanos int64, since, until time.Time) {
	if t == nil || nanos <= 0 {
		return
	}
	begin := max(until.UnixNano()-min(nanos, int64(until.Sub(since))), since.UnixNano())
	t.add(&api.Span{Name: name, By: "guest", BeginNanos: begin, EndNanos: until.UnixNano()})
}

// boot adds what a guest's boot was made of, as the host saw it and as the guest
// says.
func (t *Trace) boot(g *Guest, begun time.Time, said *wire.Ready) {
	t.Add("guest boots, to its hello", g.Ran, g.Greeted)
	t.Add("guest set up, to its ready", g.Greeted, g.Ready)
	// A guest that shares the host's kernel says how long that has run.
	if up := g.Hello.UpNanos; up < int64(g.Greeted.Sub(begun)) {
		t.claim("kernel and init", up, begun, g.Greeted)
	}
	t.claim("init, to its hello", g.Hello.InitNanos, begun, g.Greeted)
	t.claim("mounts", said.MountNanos, g.Greeted, g.Ready)
	t.claim("way out steered", said.SteerNanos, g.Greeted, g.Ready)
}

func (t *Trace) add(s *api.Span) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.spans) < maxSpans {
		t.spans = append(t.spans, s)
	}
}

// task adds a part of a task that ends now. Tasks after the first have no room
// left at some point.
func (t *Trace) task(name string, begin time.Time) { t.Add(name, begin, time.Now()) }

// Spans are the parts so far.
func (t *Trace) Spans() []*api.Span {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.spans)
}

// BoundSpans returns what of another process's spans is kept: what is possible,
// and no more than a trace has.
func BoundSpans(spans []*api.Span) (out []*api.Span) {
	for _, s := range spans {
		if len(out) < maxSpans && s != nil && s.BeginNanos > 0 && s.EndNanos >= s.BeginNanos {
			out = append(out, &api.Span{Name: wire.Text(s.Name, maxSpanName), By: wire.Text(s.By, maxSpanName), BeginNanos: s.BeginNanos, EndNanos: s.EndNanos})
		}
	}
	return out
}
