package main

import (
	"os"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/carrel-vm/carrel/guest/api"
)

func span(name, by string, begin, end int64) *api.Span {
	return &api.Span{Name: name, By: by, BeginNanos: 1e18 + begin*1e6, EndNanos: 1e18 + end*1e6}
}

func TestTimingsTable(t *testing.T) {
	spans := []*api.Span{
		span("hello", "guest", 60, 80), span("run", "carrel", 0, 100), span("daemon found", "carrel", 0, 5), span("settled", "daemon", 100, 100),
	}
	sortSpans(spans)
	want := strings.Join([]string{
		"  FROM ms   TOOK ms  BY      PART",
		"      0.0     100.0  carrel  run           ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━",
		"      0.0       5.0  carrel  daemon found  ━━",
		"     60.0      20.0  guest   hello                               ━━━━━━━",
		"    100.0       0.0  daemon  settled                                           ╴",
		"",
	}, "\n")
	got := timingsTable(spans, 80)
	if got != want {
		t.Errorf("the table is\n%s\nwant\n%s", got, want)
	}
	for _, width := range []int{40, 50, 60, 80, 200} {
		for line := range strings.Lines(timingsTable(spans, width)) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > max(width, 42) {
				t.Errorf("in %d columns a line has %d: %q", width, n, line)
			}
		}
	}
	if s := timingsTable(nil, 80); s != "" {
		t.Errorf("without a part there is a table: %q", s)
	}
}

// What a guest, or a keeper that its guest has taken over, makes of a name does
// not reach the terminal.
func TestTimingsTableIsHarmless(t *testing.T) {
	spans := []*api.Span{span("run", "carrel", 0, 100), span("\x1b]0;owned\a\n\u202e"+strings.Repeat("long ", 100), "gu\x1b[2Jest", -1<<20, 1<<20)}
	sortSpans(spans)
	got := timingsTable(spans, 80)
	if strings.ContainsAny(got, "\x1b\a\u202e") || strings.Count(got, "\n") != 3 {
		t.Errorf("the table is %q", got)
	}
}

func TestFirst(t *testing.T) {
	var b strings.Builder
	var once sync.Once
	n := 0
	out, err := first{&b, &once, func() { n++ }}, first{os.Stderr, &once, func() { n++ }}
	if n != 0 {
		t.Error("it was called before anything was written")
	}
	for range 3 {
		if _, werr := out.Write([]byte("x")); werr != nil {
			t.Fatal(werr)
		}
	}
	if _, werr := err.Write(nil); werr != nil || n != 1 || b.String() != "xxx" {
		t.Errorf("called %d times, wrote %q, %v", n, b.String(), werr)
	}
}
