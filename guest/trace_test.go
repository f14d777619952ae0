package guest

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
)

// A guest's claims are cut to what lies between two moments that the host saw.
func TestTraceClaims(t *testing.T) {
	since := time.Unix(1_700_000_000, 0)
	until := since.Add(time.Second)
	for _, tc := range []struct {
		claim int64
		want  time.Duration // of the part; -1: there is none
	}{
		{int64(100 * time.Millisecond), 100 * time.Millisecond},
		{int64(time.Second), time.Second},
		{int64(time.Hour), time.Second},
		{math.MaxInt64, time.Second},
		{0, -1}, {-1, -1}, {math.MinInt64, -1},
	} {
		tr := NewTrace("keeper")
		tr.claim("init", tc.claim, since, until)
		spans := tr.Spans()
		if tc.want < 0 {
			if len(spans) != 0 {
				t.Errorf("a claim of %d is a part: %v", tc.claim, spans)
			}
			continue
		}
		if len(spans) != 1 || spans[0].By != "guest" || spans[0].EndNanos != until.UnixNano() || time.Duration(spans[0].EndNanos-spans[0].BeginNanos) != tc.want {
			t.Errorf("a claim of %d is %v", tc.claim, spans)
		}
	}
}

func TestTraceIsBounded(t *testing.T) {
	tr := NewTrace("keeper")
	for range 10 * maxSpans {
		tr.Begin("part")()
	}
	if n := len(tr.Spans()); n != maxSpans {
		t.Errorf("it has %d parts", n)
	}
	(*Trace)(nil).Add("part", time.Now(), time.Now())
	if (*Trace)(nil).Spans() != nil {
		t.Error("no trace has parts")
	}
}

// What a daemon hears from a keeper is bounded, whoever has written it.
func TestBoundSpans(t *testing.T) {
	good := &api.Span{Name: "part", By: "keeper", BeginNanos: 1, EndNanos: 2}
	list := []*api.Span{nil, {Name: "ends before it begins", BeginNanos: 2, EndNanos: 1}, {Name: "never"}, {Name: "\x1b[2J" + strings.Repeat("x", 1<<20), By: "keeper", BeginNanos: 1, EndNanos: 1}}
	for range 10 * maxSpans {
		list = append(list, good)
	}
	got := BoundSpans(list)
	if len(got) != maxSpans || got[1].Name != "part" || got[1].By != "keeper" || got[1].EndNanos != 2 {
		t.Fatalf("%d parts are left, the second of them %v", len(got), got[1])
	}
	if n := got[0].Name; len(n) > maxSpanName || strings.Contains(n, "\x1b") {
		t.Errorf("a name of %d bytes is left: %q", len(n), n)
	}
}
