package main

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unicode"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

const (
	added, altered, gone = api.ChangeKind_CHANGE_KIND_ADDED, api.ChangeKind_CHANGE_KIND_CHANGED, api.ChangeKind_CHANGE_KIND_REMOVED
	file, folder, link   = api.EntryType_ENTRY_TYPE_FILE, api.EntryType_ENTRY_TYPE_FOLDER, api.EntryType_ENTRY_TYPE_LINK
)

func shown(t *testing.T, stat bool, cs ...*api.Change) string {
	t.Helper()
	var b bytes.Buffer
	d := &differ{w: bufio.NewWriter(&b), cwd: "/p", stat: stat}
	for _, c := range cs {
		if err := d.show(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.end("g"); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestShowChanges(t *testing.T) {
	cs := []*api.Change{
		{Path: "/p/a.go", Kind: altered, Type: file, OldType: file, Mode: 0o755, OldMode: 0o644, Added: 2, Removed: 1, Diff: "--- a/a.go\n+++ b/a.go\n@@ -1,2 +1,3 @@\n a\n-b\n+c\td\n+--- e\n"},
		{Path: "/p/bin", Kind: added, Type: file, Mode: 0o755, Size: 2048, Binary: true},
		{Path: "/p/old", Kind: gone, OldType: folder},
		{Path: "/q/l", Kind: altered, Type: link, OldType: file, Target: "x"},
		{Path: "/p/.git/hooks/x", Kind: added, Type: file, Size: 1, Warning: "git on the host runs it", Conflict: "it changed here"},
	}
	want := "M a.go  +2 -1  (mode 0644 became 0755)\n@@ -1,2 +1,3 @@\n a\n-b\n+c\td\n+--- e\n\n" +
		"A bin  (executable, binary, 2.0 KiB)\nD old  (folder)\nM /q/l  (file became link, to x)\n" +
		"A " + filepath.FromSlash(".git/hooks/x") + "  (1 B)\n  ! needs a yes of its own: git on the host runs it\n  x cannot be applied as it is: it changed here\n" +
		"5 changes: 2 added, 2 changed, 1 removed; 1 needs a look, 1 is in conflict\n"
	if got := shown(t, false, cs...); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := shown(t, true, cs[0]); strings.Contains(got, "@@") {
		t.Errorf("--stat shows what changed: %s", got)
	}
	if got := shown(t, false); got != "guest g has changed nothing that waits for review\n" {
		t.Errorf("%q", got)
	}
}

// P08, H11: nothing of what a guest wrote reaches the terminal as a command, or
// as a line of ours. The control is that the rest of it is there.
func TestHostileChanges(t *testing.T) {
	evil := "e\x1b]0;x\x07\u202e\nA safe\r\u009b31m"
	got := shown(t, false, &api.Change{
		Path: "/p/" + evil, Kind: altered, Type: link, OldType: link, Target: evil, OldTarget: evil + "2", Warning: evil, Conflict: evil, Task: evil,
		Diff: "@@ -1 +1 @@\n-" + strings.ReplaceAll(evil, "\n", "") + "\n+\x1b[2J" + "\xff\u2066kept\ttab\n",
	})
	for _, r := range got {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || dangerous(r) || r == unicode.ReplacementChar) {
			t.Errorf("%U is shown as it is:\n%q", r, got)
		}
	}
	if lines := strings.Count(got, "\n"); lines != 8 {
		t.Errorf("%d lines:\n%s", lines, got)
	}
	if !strings.Contains(got, "kept\ttab") || !strings.Contains(got, `e\x1b]0;x`) {
		t.Errorf("control: the text is not there:\n%s", got)
	}
	for _, r := range "\u00ad\u200b\u200d\u2060\u3164\ufe00\ufe0f\U000e0100\U000e01ef" {
		got := shown(t, false, &api.Change{Path: "/p/a" + string(r) + "b", Kind: added, Type: file, Diff: "@@ -0,0 +1,1 @@\n+x" + string(r) + "y\n"})
		if strings.ContainsRune(got, r) || !strings.Contains(got, "+x\\") || !strings.Contains(got, "a\\") {
			t.Errorf("%U is not seen:\n%s", r, got)
		}
	}
	if line := changesLine("g", &api.ReviewSummary{Added: 1, Incomplete: "a\x1bb"}); !strings.Contains(message(line, 0), `a\x1bb`) {
		t.Errorf("%q", message(line, 0))
	}
}

func TestChangesLine(t *testing.T) {
	for _, c := range []struct {
		s    *api.ReviewSummary
		want string
	}{
		{&api.ReviewSummary{}, ""},
		{&api.ReviewSummary{Ignored: 7, Git: 2}, ""},
		{&api.ReviewSummary{Changed: 1}, "1 file changed: carrel diff g, carrel apply g"},
		{&api.ReviewSummary{Added: 2, Changed: 1, Removed: 3, Warnings: 2, Conflicts: 1}, "6 files changed (2 need a look, 1 is in conflict): carrel diff g, carrel apply g"},
		{&api.ReviewSummary{Undoable: 1}, "what it changed can be undone: carrel undo g"},
		{&api.ReviewSummary{Added: 1, Incomplete: "more than 5"}, "1 file changed: carrel diff g, carrel apply g; this is not all: more than 5"},
	} {
		if got := changesLine("g", c.s); got != c.want {
			t.Errorf("%v: %q, want %q", c.s, got, c.want)
		}
	}
}

func TestPaint(t *testing.T) {
	if got := painter(true).in(red, "x"); got != "\x1b[31mx\x1b[0m" {
		t.Errorf("%q", got)
	}
	if got := painter(false).in(red, "x"); got != "x" {
		t.Errorf("%q", got)
	}
}

func TestReadSeen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seen")
	for text, want := range map[string]int{
		`{"path":"/a","seen":"AAEC"}` + "\n" + `{"path":"/b","diff":"x","seen":"AwQF"}` + "\n": 2,
		"": -1, "\n": -1, "{}\n": -1, `{"path":"/a"}`: -1, "first\n": -1, `{"seen":"AAEC"}{"seen":`: -1, `{"seen":"*"}`: -1,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		seen, err := readSeen(path)
		if err != nil {
			seen = make([][]byte, 0)
		}
		if (err != nil) != (want < 0) || err == nil && len(seen) != want {
			t.Errorf("%q: %d, %v", text, len(seen), err)
		}
	}
}

func TestMayChange(t *testing.T) {
	ro, rw := &api.Share{Mode: api.ShareMode_SHARE_MODE_RO}, &api.Share{Mode: api.ShareMode_SHARE_MODE_RW}
	for _, tc := range []struct {
		shares []*api.Share
		want   bool
	}{
		{nil, false}, {[]*api.Share{ro}, false}, {[]*api.Share{ro, rw}, true}, {[]*api.Share{{}}, true},
		{[]*api.Share{{Mode: api.ShareMode_SHARE_MODE_REVIEW}}, true}, {[]*api.Share{{Mode: api.ShareMode_SHARE_MODE_RW_NODELETE}}, true},
	} {
		if got := mayChange(tc.shares); got != tc.want {
			t.Errorf("%v: %t", tc.shares, got)
		}
	}
}

func guestIn(name, share string, added int32) *api.Guest {
	return &api.Guest{Name: name, Spec: &api.GuestSpec{Shares: []*api.Share{{Path: share}}}, Review: &api.ReviewSummary{Added: added}}
}

// Of several guests with changes those are meant that have the current folder, and
// another folder's only where none has it.
func TestMeant(t *testing.T) {
	root := t.TempDir()
	at := func(p ...string) string { return filepath.Join(append([]string{root}, p...)...) }
	gs := []*api.Guest{
		guestIn("one", at("a"), 1), guestIn("two", at("a", "b"), 1), guestIn("three", at("ab"), 1), guestIn("none", at("a"), 0), guestIn("idle", at("empty"), 0), guestIn("reader", at("ro"), 0),
	}
	gs[5].Spec.Shares[0].Mode = api.ShareMode_SHARE_MODE_RO
	const all = "3 guests have changes to review: name one of one, two, three"
	for cwd, want := range map[string]string{
		at("a"): "one", at("a", "c"): "one", at("a", "b", "c"): "2 guests have changes to review: name one of one, two", at("ab"): "three",
		at("empty"): "no guest that has this folder (idle) has changes to review", at("empty", "x"): "no guest that has this folder (idle) has changes to review",
		at(): all, at("abc"): all, at("ro"): all, "": all,
	} {
		got, err := meant(gs, cwd, "changes to review", hasChanges)
		if err != nil {
			got = err.Error()
		}
		if got != want && (err == nil || !strings.HasPrefix(got, want)) {
			t.Errorf("in %q: %s, want %s", cwd, got, want)
		}
	}
	// The only one with changes is not taken for a guest of this folder that has none.
	for cwd, want := range map[string]string{at("empty"): "", at("ab"): "three", at("abc"): "three"} {
		if got, err := meant(gs[2:], cwd, "changes to review", hasChanges); got != want || (err == nil) != (want != "") {
			t.Errorf("in %q: %q, %v, want %q", cwd, got, err, want)
		}
	}
	if _, err := meant(gs[4:], "", "something to undo", hasUndo); err == nil || !strings.Contains(err.Error(), "no guest has something to undo") {
		t.Error(err)
	}
}

// The guests of this folder are asked at once; one that does not answer is an
// error, and no other is asked or taken in its place.
func TestCount(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	table := func() []*api.Guest {
		fresh, fresh2, paused, other := guestIn("fresh", here, 0), guestIn("fresh2", here, 0), guestIn("paused", here, 3), guestIn("other", there, 1)
		fresh.Review, fresh2.Review, other.Review = nil, nil, nil
		paused.Spec.Ephemeral, paused.Paused = true, timestamppb.Now()
		return []*api.Guest{fresh, fresh2, paused, guestIn("counted", here, 4), other}
	}
	a := &app{err: os.Stderr, quiet: true}
	var together sync.WaitGroup // neither is answered before both have asked
	together.Add(2)
	gs, err := a.count(t.Context(), func(_ context.Context, name string) (*api.ReviewSummary, error) {
		if !strings.HasPrefix(name, "fresh") {
			t.Errorf("%s is asked", name)
			return nil, nil
		}
		together.Done()
		together.Wait()
		return &api.ReviewSummary{Added: 2}, nil
	}, table(), here)
	if err != nil || len(gs) != 5 || pending(gs[0].Review) != 2 || pending(gs[1].Review) != 2 || pending(gs[2].Review) != 3 || pending(gs[3].Review) != 4 {
		t.Errorf("%v, %v", gs, err)
	}
	for code, want := range map[string]int{"busy": 0, "share_refused": 0, "not_found": 4, "no_review": 5} {
		gs, err := a.count(t.Context(), func(_ context.Context, name string) (*api.ReviewSummary, error) {
			if name == "fresh" {
				return nil, &client.Error{Code: code, Message: "no"}
			}
			return &api.ReviewSummary{}, nil
		}, table(), here)
		if len(gs) != want || (err == nil) != (want > 0) || err != nil && !strings.HasPrefix(err.Error(), "guest fresh has this folder, ") {
			t.Errorf("%s: %v, %v", code, gs, err)
		}
	}
}
