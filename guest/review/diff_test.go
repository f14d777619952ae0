package review

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

const (
	added   = api.ChangeKind_CHANGE_KIND_ADDED
	changed = api.ChangeKind_CHANGE_KIND_CHANGED
	removed = api.ChangeKind_CHANGE_KIND_REMOVED
)

func (w *scene) diff(o DiffOptions) map[string]*api.Change {
	w.t.Helper()
	got := map[string]*api.Change{}
	last := ""
	err := w.s.Diff(context.Background(), w.root, w.rules, o, func(c *api.Change) error {
		if _, err := proto.Marshal(c); err != nil {
			w.t.Errorf("%q cannot be sent: %v", c.Path, err)
		}
		name, err := filepath.Rel(w.dir, c.Path)
		if err != nil || strings.HasPrefix(name, "..") {
			w.t.Errorf("the path %q is not in %q", c.Path, w.dir)
		}
		name = filepath.ToSlash(name)
		if last != "" && less(last, name) >= 0 {
			w.t.Errorf("%q comes after %q", name, last)
		}
		last = name
		got[name] = c
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func TestDiff(t *testing.T) {
	many := strings.Repeat("line\n", 20)
	files := map[string]string{
		"edit": many + "old\n" + many, "bin": "a\x00b", "gone": "g\n", "mode": "m", "dir/a": "1\n", "turned": "file", "latin": "old\n",
		"stale": "1", "stale-gone": "1", "equal-since": "1", "seen/a": "1", "big": "x", ".git/HEAD": "h", "way/x": "1", ".gitignore": "*.o\n", "nl": "no",
	}
	if !onWindows {
		files["l"] = "->x"
	}
	w := newScene(t, files)
	w.file("edit", many+"new\nnewer\n"+many)
	w.file("bin", "a\x00c")
	w.entry("gone", isRemoved)
	w.file("mode", "m").Mode = 0o755
	w.link("l", "../../out")
	w.entry("dir", isRemoved)
	w.entry("turned", isNew)
	w.file("latin", "\xe9\n")
	w.file("stale", "2")
	w.file("stale-gone", "2")
	w.file("equal-since", "2")
	w.file("unseen", "mine")
	w.entry("seen", isRemoved)
	w.file("big", strings.Repeat("y", maxDiffFile+1))
	w.entry("new", isNew)
	w.file("new/f", "one\ntwo\n")
	w.file("Makefile", "all:\n")
	w.entry(".vscode", isNew)
	w.file(".vscode/tasks.json", "{}")
	w.link(".envrc", "x")
	w.entry("dev", isOther)
	w.file("k.pem", "key")
	w.entry(".git", isFolder)
	w.file(".git/config", "[core]")
	w.file("x.o", "obj")
	w.entry("way", isFolder)
	w.file("way/f", "1")
	w.file("nl", "yes")
	w.file("esc\x1b[31m\nname", "x")
	w.imported()
	// Meanwhile, on the host:
	w.write("stale", "host's")
	os.Remove(filepath.Join(w.dir, "stale-gone"))
	w.write("equal-since", "2")
	w.write("unseen", "host's")
	w.write("seen/new-since", "x")
	os.RemoveAll(filepath.Join(w.dir, "way"))
	w.write("way", "a file now")

	got := w.diff(DiffOptions{})
	type told struct {
		kind              api.ChangeKind
		warning, conflict string
	}
	wants := map[string]told{
		"edit": {kind: changed}, "bin": {kind: changed}, "gone": {kind: removed}, "mode": {kind: changed},
		"l":          {kind: changed, warning: "leads out"},
		"dir":        {kind: removed},
		"dir/a":      {kind: removed},
		"turned":     {kind: changed},
		"latin":      {kind: changed},
		"stale":      {kind: changed, conflict: "changed on the host meanwhile"},
		"stale-gone": {kind: added, conflict: "removed on the host meanwhile"},
		"unseen":     {kind: changed, conflict: "did not know"},
		"seen":       {kind: removed, conflict: `"new-since" in it`},
		"seen/a":     {kind: removed},
		"big":        {kind: changed}, "new": {kind: added}, "new/f": {kind: added}, "nl": {kind: changed},
		"Makefile":           {kind: added, warning: "make"},
		".vscode":            {kind: added, warning: "editor"},
		".vscode/tasks.json": {kind: added, warning: "editor"},
		".envrc":             {kind: added, warning: "direnv"},
		"dev":                {kind: added, conflict: "device"},
		"k.pem":              {kind: added, conflict: "hides"},
		"way/f":              {kind: added, conflict: "no folder"},
		"esc\x1b[31m\nname":  {kind: added},
	}
	sums := &api.ReviewSummary{Added: 11, Changed: 11, Removed: 5, Warnings: 5, Conflicts: 8, Ignored: 1, Git: 1}
	if onWindows { // the mode says nothing, the name is none, and there is no link to be another one
		delete(wants, "mode")
		wants["l"] = told{kind: added, warning: "leads out"}
		wants["esc\x1b[31m\nname"] = told{kind: added, conflict: "a name that"}
		sums.Added, sums.Changed, sums.Conflicts = sums.Added+1, sums.Changed-2, sums.Conflicts+1
	}
	for name, want := range wants {
		c := got[name]
		if c == nil {
			t.Errorf("%q is not told", name)
			continue
		}
		delete(got, name)
		if c.Kind != want.kind || (want.warning == "") != (c.Warning == "") || !strings.Contains(c.Warning, want.warning) ||
			(want.conflict == "") != (c.Conflict == "") || !strings.Contains(c.Conflict, want.conflict) {
			t.Errorf("%q: %v, warning %q, conflict %q", name, c.Kind, c.Warning, c.Conflict)
		}
	}
	for name := range got {
		t.Errorf("%q is told", name)
	}

	got = w.diff(DiffOptions{})
	if c := got["edit"]; c.Diff != "@@ -18,7 +18,8 @@\n line\n line\n line\n-old\n+new\n+newer\n line\n line\n line\n" || c.Added != 2 || c.Removed != 1 {
		t.Errorf("edit: %q, %d, %d", c.Diff, c.Added, c.Removed)
	}
	if c := got["nl"]; c.Diff != "@@ -1,1 +1,1 @@\n-no\n\\ No newline at end of file\n+yes\n\\ No newline at end of file\n" {
		t.Errorf("nl: %q", c.Diff)
	}
	if c := got["bin"]; !c.Binary || c.Diff != "" || c.Size != 3 || c.OldSize != 3 {
		t.Errorf("bin: %v", c)
	}
	if c := got["mode"]; !onWindows && (c.Mode != 0o755 || c.OldMode != 0o644 || c.Diff != "") {
		t.Errorf("mode: %v", c)
	}
	if c := got["l"]; c.Target != "../../out" || !onWindows && c.OldTarget != "x" || c.Type != api.EntryType_ENTRY_TYPE_LINK {
		t.Errorf("l: %v", c)
	}
	if c := got["gone"]; c.Diff != "@@ -1,1 +0,0 @@\n-g\n" || c.OldType != api.EntryType_ENTRY_TYPE_FILE || c.Type != 0 {
		t.Errorf("gone: %v", c)
	}
	if c := got["latin"]; !strings.Contains(c.Diff, "+\uFFFD\n") {
		t.Errorf("latin: %q", c.Diff)
	}
	if c := got["big"]; c.Diff != "" || c.Binary || c.Size != maxDiffFile+1 {
		t.Errorf("big: %d bytes of text", len(c.Diff))
	}
	if c := got["turned"]; c.OldType != api.EntryType_ENTRY_TYPE_FILE || c.Type != api.EntryType_ENTRY_TYPE_FOLDER {
		t.Errorf("turned: %v", c)
	}
	if c := got["k.pem"]; c.Diff != "" {
		t.Errorf("a hidden name's content is shown: %q", c.Diff)
	}

	if got := w.diff(DiffOptions{NoText: true})["edit"]; got.Diff != "" || got.Kind != changed {
		t.Errorf("without text: %v", got)
	}
	if got := w.diff(DiffOptions{Context: 1})["edit"]; !strings.HasPrefix(got.Diff, "@@ -20,3 +20,4 @@\n") {
		t.Errorf("with one line of context: %q", got.Diff)
	}
	if got := w.diff(DiffOptions{Paths: []string{"new", "gone"}}); len(got) != 3 {
		t.Errorf("of two paths: %v", got)
	}
	if got := w.diff(DiffOptions{Paths: []string{".git"}}); len(got) != 1 || got[".git/config"].GetWarning() == "" {
		t.Errorf("of .git: %v", got)
	}
	if got := w.diff(DiffOptions{Ignored: true, Paths: []string{"x.o"}}); got["x.o"].GetConflict() == "" {
		t.Errorf("of what is ignored: %v", got)
	}

	sum, err := w.s.Summary(context.Background(), w.root, w.rules)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(sum, sums) {
		t.Errorf("summary %v, want %v", sum, sums)
	}
}

// TestDiffBounds: a diff of what is made to be slow or large is bounded.
func TestDiffBounds(t *testing.T) {
	var odd, even bytes.Buffer
	for i := range 19_000 {
		fmt.Fprintf(&odd, "%d\n", i*7%1000)
		fmt.Fprintf(&even, "%d\n", i*13%997)
	}
	began := time.Now()
	text, _, _ := unified(odd.Bytes(), even.Bytes(), 1<<30)
	if took := time.Since(began); took > 2*time.Minute {
		t.Errorf("it took %v", took)
	}
	if text == "" || len(text) > maxDiffText {
		t.Errorf("%d bytes of text", len(text))
	}
	if text, _, _ := unified(nil, bytes.Repeat([]byte("\n"), maxDiffLines+1), 0); text != "" {
		t.Error("a file of too many lines has a diff")
	}
	if text, _, _ := unified(nil, bytes.Repeat([]byte{0xff}, maxDiffFile), 0); len(text) > maxDiffText {
		t.Errorf("%d bytes of text", len(text))
	}
}

// BenchmarkDiff is 1,000 changes among 50,000 files, and a plain walk of them.
func BenchmarkDiff(b *testing.B) {
	dir := b.TempDir()
	for i := range 50_000 {
		p := filepath.Join(dir, fmt.Sprintf("d%d/e%d/f%d.go", i/1000, i/100%10, i))
		os.MkdirAll(filepath.Dir(p), 0o755)
		os.WriteFile(p, []byte(strings.Repeat(fmt.Sprintf("line %d\n", i), 50)), 0o644)
	}
	b.Run("walk", func(b *testing.B) {
		for b.Loop() {
			filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error { d.Info(); return err })
		}
	})
	store := b.TempDir()
	s, err := Open(store)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	root, err := share.OpenRoot(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	rs, err := rules.Compile(rules.Options{Mode: rules.Review})
	if err != nil {
		b.Fatal(err)
	}
	var entries []Entry
	for i := 0; i < 50_000; i += 50 {
		name := fmt.Sprintf("d%d/e%d/f%d.go", i/1000, i/100%10, i)
		is, err := root.Lstat(name)
		if err != nil {
			b.Fatal(err)
		}
		blob, err := s.newBlob()
		if err != nil {
			b.Fatal(err)
		}
		content := strings.Repeat(fmt.Sprintf("line %d\n", i), 49) + "another\n"
		blob.Write([]byte(content))
		sum, err := blob.keep()
		if err != nil {
			b.Fatal(err)
		}
		entries = append(entries, Entry{Name: name, Kind: File, Mode: 0o644, Size: int64(len(content)), Blob: sum, Base: &is, Stamp: "s"})
	}
	if err := s.change(func(i *index) { i.entries = entries }); err != nil {
		b.Fatal(err)
	}
	b.Run("diff", func(b *testing.B) {
		for b.Loop() {
			n := 0
			s, err := Open(store)
			if err != nil {
				b.Fatal(err)
			}
			err = s.Diff(context.Background(), root, rs, DiffOptions{}, func(c *api.Change) error {
				if c.Diff != "" && c.Conflict == "" {
					n++
				}
				return nil
			})
			if err != nil || n != 1000 {
				b.Fatalf("%d changes: %v", n, err)
			}
			s.Close()
		}
	})
}
