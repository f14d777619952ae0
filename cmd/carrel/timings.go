package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// began is close to the program's first instruction.
var began = time.Now()

// timings are what --timings prints; nil: nobody asked.
type timings struct {
	mu    sync.Mutex
	spans []*api.Span
}

// begin begins a part of what this program does and returns what ends it.
func (t *timings) begin(name string) (end func()) {
	from := time.Now()
	return func() { t.add(name, from) }
}

func (t *timings) add(name string, from time.Time) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spans = append(t.spans, &api.Span{Name: name, By: "carrel", BeginNanos: from.UnixNano(), EndNanos: time.Now().UnixNano()})
}

// first calls f with the first byte that is written.
type first struct {
	io.Writer
	once *sync.Once
	f    func()
}

func (w first) Write(p []byte) (int, error) {
	w.once.Do(w.f)
	return w.Writer.Write(p)
}

// endTime bounds how long --timings waits for the end of a guest: its stop, what
// it has changed, its removal.
const endTime = 60 * time.Second

// sayTimings prints the parts of a run: as a table, or as one line of JSON. It
// waits for the end of a guest that is to go; a run without it does not.
func (a *app) sayTimings(ctx context.Context, c *client.Client, name string, ended bool) {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	spans, err := c.Trace(ctx, name, ended)
	if err != nil {
		a.warn("the other processes' timings: " + err.Error())
	}
	a.timings.mu.Lock()
	spans = append(spans, a.timings.spans...)
	a.timings.mu.Unlock()
	sortSpans(spans)
	if a.json {
		line, err := jsonLine(&api.TraceGuestResponse{Spans: spans})
		if err != nil {
			a.warn(err.Error())
			return
		}
		fmt.Fprintln(a.err, line)
		return
	}
	w := width(a.err)
	if w == 0 {
		w = helpWidth
	}
	io.WriteString(a.err, timingsTable(spans, w))
}

// sortSpans sorts by beginning; of two that begin at once the longer comes first.
func sortSpans(spans []*api.Span) {
	slices.SortStableFunc(spans, func(a, b *api.Span) int {
		if a.BeginNanos != b.BeginNanos {
			return int(max(-1, min(1, a.BeginNanos-b.BeginNanos)))
		}
		return int(max(-1, min(1, b.EndNanos-a.EndNanos)))
	})
}

// Columns of the table: the widest name that is shown whole, and the bars.
const (
	timingName = 32
	timingBar  = 40
)

// timingsTable shows spans, sorted, one line each: when it began, how long it
// took, who measured it, and a bar for both.
func timingsTable(spans []*api.Span, width int) string {
	if len(spans) == 0 {
		return ""
	}
	from, to := spans[0].BeginNanos, spans[0].EndNanos
	longest := len("PART")
	for _, s := range spans {
		to = max(to, s.EndNanos)
		longest = max(longest, len([]rune(safe(s.Name))))
	}
	longest = min(longest, timingName)
	head := fmt.Sprintf("%9s %9s  %-6s  %-*s", "FROM ms", "TOOK ms", "BY", longest, "PART")
	room := min(width-len(head)-2, timingBar)
	var b strings.Builder
	b.WriteString(strings.TrimRight(head, " ") + "\n")
	for _, s := range spans {
		took := s.EndNanos - s.BeginNanos
		line := fmt.Sprintf("%9.1f %9.1f  %-6s  %-*s", millis(s.BeginNanos-from), millis(took), clip(safe(s.By), 6), longest, clip(safe(s.Name), longest))
		if room >= 8 {
			line += "  " + bar(s.BeginNanos-from, took, to-from, room)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// bar is a part's place in the whole, in cells.
func bar(at, took, whole int64, cells int) string {
	if whole <= 0 {
		return ""
	}
	begin := int(float64(at) / float64(whole) * float64(cells))
	begin = min(begin, cells-1)
	n := int(float64(took)/float64(whole)*float64(cells) + 0.5)
	if n = min(n, cells-begin); n < 1 {
		return strings.Repeat(" ", begin) + "╴"
	}
	return strings.Repeat(" ", begin) + strings.Repeat("━", n)
}

func millis(nanos int64) float64 { return float64(nanos) / 1e6 }
