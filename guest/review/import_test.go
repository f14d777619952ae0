package review

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

func TestImport(t *testing.T) {
	if onWindows {
		t.Skip(othersThere)
	}
	w := newScene(t, map[string]string{
		"same.txt": "same", "edit.txt": "old", "mode.txt": "m", "gone.txt": "g", "keep/a": "1", "l": "->x", "l2": "->x",
		"old/a": "1", "old/b/c": "2", "file": "f", "was/x": "y",
	})
	w.file("same.txt", "same")
	w.file("edit.txt", "new")
	w.file("mode.txt", "m").Mode = 0o6755
	w.entry("gone.txt", isRemoved)
	w.entry("never.txt", isRemoved)
	w.entry("keep", isFolder)
	w.file("keep/n", "n")
	w.link("l", "x")
	w.link("l2", "y")
	w.entry("old", isRemoved)
	w.entry("file", isNew)
	w.file("file/in", "i")
	w.file("was", "now a file")
	w.entry("dev", isOther)
	w.file(".env", "SECRET=1")
	w.entry(".ssh", isNew)
	w.file(".ssh/id_rsa", "k")
	counts := w.imported()
	w.wantNames(".env", ".ssh", "dev", "edit.txt", "file", "file/in", "gone.txt", "keep/n", "l2", "mode.txt", "old", "old/a", "old/b", "old/b/c", "was", "was/x")
	if counts.Changes != 14 || counts.Hidden != 2 || counts.Incomplete != "" {
		t.Errorf("counts %+v", counts)
	}
	w.wantContent("edit.txt", "new")
	w.wantContent("mode.txt", "m")
	if e := w.get("mode.txt"); e.Mode != 0o755 {
		t.Errorf("mode %o", e.Mode)
	}
	if e := w.get(".env"); !e.Hidden || e.Blob != "" || slices.Contains(w.wanted, ".env") {
		t.Errorf("a hidden name has content: %+v", e)
	}
	for name, kind := range map[string]Kind{"file": NewFolder, "old": Removed, "old/b/c": Removed, "was": File, "was/x": Removed, "dev": Other, "l2": Link} {
		if e := w.get(name); e == nil || e.Kind != kind {
			t.Errorf("%q is %+v", name, e)
		}
	}
	if e := w.get("edit.txt"); e.Base == nil || e.Base.Size != 3 || e.Task != "T" {
		t.Errorf("edit.txt: %+v", e)
	}

	// A second import asks for nothing that it has, and keeps who did it.
	o := w.options()
	o.Task = "U"
	w.list[1].Stamp, w.contents["edit.txt"] = []byte("other"), "neu"
	if _, err := w.tryImport(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(w.wanted, []string{"same.txt", "edit.txt"}) {
		t.Errorf("asked for %q", w.wanted)
	}
	w.wantContent("edit.txt", "neu")
	w.wantContent("keep/n", "n")
	if e := w.get("keep/n"); e.Task != "T" {
		t.Errorf("keep/n is of task %q", e.Task)
	}

	// What the guest takes back is no change any more, nor is its content kept.
	w.list = nil
	if counts := w.imported(); counts != (Counts{}) {
		t.Errorf("counts %+v", counts)
	}
	left, _ := filepath.Glob(filepath.Join(w.store, blobsDir, "*", "*"))
	if len(left) != 0 {
		t.Errorf("contents are left: %q", left)
	}
}

// TestImportHostile breaks each rule of the list once. Nothing of such a list is
// taken, and what was there before stays.
func TestImportHostile(t *testing.T) {
	good := func(w *scene) {
		w.file("a", "a")
		w.entry("d", isNew)
		w.file("d/f", "f")
		w.link("l", "t")
		w.entry("r", isRemoved)
	}
	long := strings.Repeat("n", 256)
	deep := strings.Repeat("d/", MaxDepth)
	for _, c := range []struct {
		what string
		do   func(w *scene)
	}{
		{"control", nil},
		{"absolute", func(w *scene) { w.file("/a", "") }},
		{"dots", func(w *scene) { w.file("..", "") }},
		{"dots within", func(w *scene) { w.file("d/../x", "") }},
		{"one dot", func(w *scene) { w.file("d/./x", "") }},
		{"empty", func(w *scene) { w.file("", "") }},
		{"empty part", func(w *scene) { w.file("d//x", "") }},
		{"slash at the end", func(w *scene) { w.entry("e/", isNew) }},
		{"NUL", func(w *scene) { w.file("n\x00", "") }},
		{"long part", func(w *scene) { w.file(long, "") }},
		{"deep", func(w *scene) {
			for i := range MaxDepth {
				w.entry(deep[:2*i+1], isNew)
			}
			w.file(deep+"f", "")
		}},
		{"long name", func(w *scene) { w.file(strings.Repeat(long[:250]+"/", 17), "") }},
		{"twice", func(w *scene) { w.file("a", "b") }},
		{"twice as another kind", func(w *scene) { w.entry("a", isRemoved) }},
		{"without its folder", func(w *scene) { w.file("x/y", "") }},
		{"folder comes later", func(w *scene) { w.file("x/y", ""); w.entry("x", isNew) }},
		{"below a file", func(w *scene) { w.file("a/b", "") }},
		{"below a link", func(w *scene) { w.file("l/b", "") }},
		{"below a removed one", func(w *scene) { w.file("r/b", "") }},
		{"negative size", func(w *scene) { w.file("x", "").Size = -1 }},
		{"no type", func(w *scene) { w.file("x", "").Type = 0 }},
		{"unknown type", func(w *scene) { w.file("x", "").Type = 99 }},
		{"link to nothing", func(w *scene) { w.link("x", "") }},
		{"long target", func(w *scene) { w.link("x", strings.Repeat("t", 4096)) }},
		{"NUL in a target", func(w *scene) { w.link("x", "a\x00b") }},
		{"target of a file", func(w *scene) { w.file("x", "").Target = "t" }},
		{"no stamp", func(w *scene) { w.file("x", "").Stamp = nil }},
		{"long stamp", func(w *scene) { w.file("x", "").Stamp = make([]byte, 200) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newScene(t, map[string]string{"r": "r"})
			w.file("before", "b")
			w.imported()
			w.list = nil
			good(w)
			if c.do != nil {
				c.do(w)
			}
			_, err := w.tryImport(context.Background(), w.options())
			if c.do == nil {
				if err != nil {
					t.Error(err)
				}
				w.wantNames("a", "d", "d/f", "l", "r")
				return
			}
			if !errors.Is(err, ErrGuest) {
				t.Errorf("error %v", err)
			}
			w.wantNames("before")
			w.wantContent("before", "b")
		})
	}
}

// TestImportFrames sends what is no list at all.
func TestImportFrames(t *testing.T) {
	frame := func(m *wire.Reviewed) string {
		var b taken
		if err := wire.Write(&b, m); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for what, c := range map[string]struct {
		sent string
		bad  bool
	}{
		"control":       {frame(doneFrame("")), false},
		"nothing":       {"", true},
		"data":          {frame(dataFrame([]byte("x"))), true},
		"no kind":       {frame(&wire.Reviewed{}), true},
		"half a frame":  {frame(doneFrame("x"))[:2], true},
		"a large frame": {"\xff\xff\xff\xff\x0f", true},
		"rubbish":       {"\x03abc", true},
	} {
		t.Run(what, func(t *testing.T) {
			w := newScene(t, nil)
			host, guest := net.Pipe()
			go func() {
				io.WriteString(guest, c.sent)
				guest.Close()
			}()
			_, err := w.s.Import(context.Background(), host, w.options())
			if (err != nil) != c.bad {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestImportContents(t *testing.T) {
	send := func(parts ...*wire.Reviewed) func(io.Writer, string, int) error {
		return func(to io.Writer, _ string, _ int) error {
			for _, p := range parts {
				if err := wire.Write(to, p); err != nil {
					return err
				}
			}
			return nil
		}
	}
	data := func(s string) *wire.Reviewed { return dataFrame([]byte(s)) }
	for _, c := range []struct {
		what, want, note string
		asked            int
		bad, incomplete  bool
		answer           func(io.Writer, string, int) error
	}{
		{what: "control", want: "four", asked: 1, answer: send(data("fo"), data("ur"), doneFrame(""))},
		{what: "shorter", note: "written to", asked: 2, answer: send(data("fo"), doneFrame(""))},
		{what: "longer", note: "written to", asked: 2, answer: send(data("fo"), data("ur"), data("x"), doneFrame(""))},
		{what: "changes once", want: "four", asked: 2, answer: func(to io.Writer, _ string, try int) error {
			if try == 1 {
				return send(data("f"), doneFrame(""))(to, "", 1)
			}
			return send(data("four"), doneFrame(""))(to, "", 2)
		}},
		{what: "cannot be read", note: "input/output?error", asked: 1, answer: send(data("f"), doneFrame("input/output\x1berror"))},
		{what: "a change in a content", bad: true, asked: 1, answer: send(changeFrame(&wire.Changed{Name: "x"}))},
		{what: "empty pieces", bad: true, asked: 1, answer: send(data(""))},
		{what: "without end", bad: true, asked: 1, answer: func(to io.Writer, _ string, _ int) error {
			for {
				if err := wire.Write(to, data(strings.Repeat("x", 1000))); err != nil {
					return err
				}
			}
		}},
		{what: "the guest dies", note: "did not send", asked: 1, incomplete: true, answer: func(io.Writer, string, int) error { return errEnough }},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newScene(t, nil)
			w.file("f", "four")
			w.answer = c.answer
			o := w.options()
			o.MaxBytes, o.MaxFile = 20_000, 20_000
			counts, err := w.tryImport(context.Background(), o)
			if errors.Is(err, ErrGuest) != c.bad || err != nil && !c.bad {
				t.Fatalf("error %v", err)
			}
			if len(w.wanted) != c.asked {
				t.Errorf("asked %d times", len(w.wanted))
			}
			tmp, _ := os.ReadDir(filepath.Join(w.store, tmpDir))
			if len(tmp) != 0 {
				t.Errorf("%d files are left half written", len(tmp))
			}
			if c.bad {
				return
			}
			if (counts.Incomplete != "") != c.incomplete {
				t.Errorf("incomplete: %q", counts.Incomplete)
			}
			if c.want != "" {
				w.wantContent("f", c.want)
				return
			}
			if e := w.get("f"); e == nil || e.Blob != "" || !strings.Contains(e.Note, c.note) {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestImportBounds(t *testing.T) {
	w := newScene(t, nil)
	for _, n := range []string{"a", "b", "c", "d"} {
		w.file(n, strings.Repeat(n, 10))
	}
	o := w.options()
	o.MaxEntries = 3
	counts, err := w.tryImport(context.Background(), o)
	if err != nil || !strings.Contains(counts.Incomplete, "more than 3 changes") {
		t.Errorf("%+v, %v", counts, err)
	}
	w.wantNames("a", "b", "c")

	o = w.options()
	o.MaxBytes = 25
	counts, err = w.tryImport(context.Background(), o)
	if err != nil || !strings.Contains(counts.Incomplete, "more than 25 bytes") || counts.Bytes != 20 {
		t.Errorf("%+v, %v", counts, err)
	}
	o = w.options()
	o.MaxFile = 9
	counts, err = w.tryImport(context.Background(), o)
	if err != nil || counts.Bytes != 0 || w.get("a").Note == "" {
		t.Errorf("%+v, %v", counts, err)
	}
	if counts := w.imported(); counts.Incomplete != "" || counts.Bytes != 40 { // the control
		t.Errorf("%+v", counts)
	}

	// The guest itself says that there is more: what it did not come to stays.
	w.list = w.list[:1]
	w.end = &wire.Done{Error: "too much\n"}
	if counts := w.imported(); counts.Incomplete != "the guest says: too much " {
		t.Errorf("%+v", counts)
	}
	w.wantNames("a", "b", "c", "d")
}

// TestImportSlow: neither a guest that says nothing nor one that says it byte by
// byte holds an import up beyond its time.
func TestImportSlow(t *testing.T) {
	for what, drip := range map[string]bool{"silent": false, "slow": true} {
		t.Run(what, func(t *testing.T) {
			w := newScene(t, nil)
			host, guest := net.Pipe()
			defer guest.Close()
			if drip {
				go func() {
					for b := []byte("\x80"); ; time.Sleep(time.Millisecond) {
						if _, err := guest.Write(b); err != nil {
							return
						}
						b[0] = '\x01'
					}
				}()
			}
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			began := time.Now()
			if _, err := w.s.Import(ctx, host, w.options()); err == nil {
				t.Error("it came to an end")
			}
			if took := time.Since(began); took > patience {
				t.Errorf("it took %v", took)
			}
		})
	}
	// A content that never comes is said, and the rest is taken.
	w := newScene(t, nil)
	w.file("a", "1")
	w.file("b", "2")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w.answer = func(to io.Writer, name string, try int) error {
		if name == "a" {
			return w.content(to, name, try)
		}
		time.AfterFunc(2*time.Second, cancel) // the other has been taken from the pipe, and is to be stored
		_, err := to.(net.Conn).Read(make([]byte, 1))
		return err
	}
	counts, err := w.tryImport(ctx, w.options())
	if err != nil || counts.Incomplete == "" || w.get("b").Note == "" {
		t.Errorf("%+v, %v, %+v", counts, err, w.get("b"))
	}
	w.wantContent("a", "1")
}

func TestImportBusy(t *testing.T) {
	w := newScene(t, nil)
	unlock, got, err := openTestStore(t, w.store).lock("importing", false)
	if err != nil || !got {
		t.Fatal(got, err)
	}
	if _, err := w.s.Import(context.Background(), nil, w.options()); !errors.Is(err, ErrImporting) {
		t.Errorf("error %v", err)
	}
	unlock()
	w.imported()
}

// TestImportDropped: what was applied or discarded does not come back, and the
// guest is told to let go of it.
func TestImportDropped(t *testing.T) {
	w := newScene(t, map[string]string{"d/x": "x"})
	w.file("a", "1")
	w.file("b", "2")
	w.entry("d", isRemoved)
	w.imported()
	w.wantNames("a", "b", "d", "d/x")
	if err := w.s.Drop(map[string]string{"a": w.get("a").Stamp, "b": w.get("b").Stamp, "d": "s", "d/x": ""}); err != nil {
		t.Fatal(err)
	}
	w.list[1].Stamp = []byte("changed since") // b
	w.imported()
	w.wantNames("b")
	if !slices.Equal(w.dropped, []string{"a", "d"}) {
		t.Errorf("the guest was told to drop %q", w.dropped)
	}
	w.imported()
	w.wantNames("b")
	if len(w.dropped) != 0 || len(w.s.Dropped()) != 0 {
		t.Errorf("told again: %q, remembered: %q", w.dropped, w.s.Dropped())
	}
	// Once it is forgotten, the same removal is a new one.
	w.entry("d", isRemoved)
	w.imported()
	w.wantNames("b", "d", "d/x")
}

// TestImportDamaged: an import mends a damaged store.
func TestImportDamaged(t *testing.T) {
	w := newScene(t, nil)
	w.file("a", "1")
	w.imported()
	if err := os.WriteFile(filepath.Join(w.store, indexName), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(w.store); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	w.imported()
	w.wantContent("a", "1")

	// A content that is damaged is found out, and brought again.
	p := filepath.Join(w.store, blobPath(w.get("a").Blob))
	if err := os.WriteFile(p, []byte("2"), 0o600); err != nil {
		t.Fatal(err)
	}
	var b taken
	if _, err := w.s.CopyBlob(&b, w.get("a").Blob); !errors.Is(err, ErrDamaged) {
		t.Errorf("error %v", err)
	}
	w.imported()
	w.wantContent("a", "1")
}

// TestImportSame: an import that finds what is known writes nothing; one that
// finds anything else does, also in a store that is damaged in its middle.
func TestImportSame(t *testing.T) {
	w := newScene(t, map[string]string{"a": "old"})
	w.file("a", "1")
	w.file("b", "2")
	w.imported()
	at := filepath.Join(w.store, indexName)
	is := func() os.FileInfo {
		is, err := os.Stat(at)
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	was := is()
	w.imported()
	if !os.SameFile(was, is()) {
		t.Error("what is known was written again")
	}
	b, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(at, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(w.store); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	w.imported() // which opens it again
	if b, err = os.ReadFile(at); err != nil {
		t.Fatal(err)
	}
	w.list[0].Mode = 0o755
	w.imported()
	if now, err := os.ReadFile(at); err != nil || bytes.Equal(now, b) {
		t.Errorf("a change was not written: %v", err)
	}
}

// TestServeBeside: a diff ends with what it leaves out, if that is asked for.
func TestServeBeside(t *testing.T) {
	w := newScene(t, map[string]string{".gitignore": "*.o\n", ".git/HEAD": "x"})
	w.file("a", "1")
	w.file("x.o", "2")
	w.file("y.o", "3")
	w.entry(".git", isFolder)
	w.file(".git/config", "c")
	w.imported()
	dev, ino := w.root.ID()
	for _, beside := range []bool{true, false} {
		req := Request{Guest: "g", Shares: []ShareRef{{Path: w.root.Path(), Dev: dev, Ino: ino, Store: w.store}}, Diff: &api.DiffRequest{Guest: "g", Beside: beside}}
		var got []*api.Change
		if err := Serve(context.Background(), req, func(m proto.Message) error { got = append(got, m.(*api.Change)); return nil }); err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 || filepath.Base(got[0].Path) != "a" {
			t.Fatalf("the diff is %v", got)
		}
		last := got[len(got)-1].Beside
		if (last != nil) != beside || beside && (last.Ignored != 2 || last.Git != 1 || last.Incomplete != "") {
			t.Errorf("asked %v: the last message is %v", beside, got[len(got)-1])
		}
	}
}

func TestImportIgnored(t *testing.T) {
	w := newScene(t, map[string]string{".gitignore": "node_modules/\n*.log\n!keep.log\n", ".git/HEAD": "x", "src/.gitignore": "gen\n"})
	w.entry("node_modules", isNew)
	w.file("node_modules/x.js", "x")
	w.file("a.log", "l")
	w.file("keep.log", "k")
	w.entry("src", isFolder)
	w.file("src/gen", "g")
	w.file("src/main.c", "m")
	w.file(".gitignore", "*\n") // the guest's own rules do not count
	w.entry(".git", isFolder)
	w.file(".git/config", "c")
	counts := w.imported()
	if counts.Ignored != 4 || counts.Changes != 3 || counts.Git != 1 {
		t.Errorf("counts %+v", counts)
	}
	if !slices.Equal(w.wanted, []string{"keep.log", "src/main.c", ".gitignore", ".git/config"}) {
		t.Errorf("asked for %q", w.wanted)
	}
	o := w.options()
	o.Ignored = true
	if _, err := w.tryImport(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	w.wantContent("node_modules/x.js", "x")
	w.wanted = nil
	w.imported() // what was asked for once is kept
	w.wantContent("node_modules/x.js", "x")
	if len(w.wanted) > 0 {
		t.Errorf("asked again for %q", w.wanted)
	}
}

func FuzzImport(f *testing.F) {
	var b taken
	for _, m := range []*wire.Reviewed{
		changeFrame(&wire.Changed{Name: "a", Type: 1, Size: 1, Stamp: []byte("s")}),
		changeFrame(&wire.Changed{Name: "d", Type: isNew, Stamp: []byte("s")}),
		changeFrame(&wire.Changed{Name: "d/l", Type: isLink, Target: "t", Stamp: []byte("s")}),
		doneFrame(""), dataFrame([]byte("x")), doneFrame(""),
	} {
		wire.Write(&b, m)
	}
	f.Add([]byte(b))
	b = nil
	for i := range 3 { // contents that come back to back
		wire.Write(&b, changeFrame(&wire.Changed{Name: fmt.Sprint("f", i), Type: 1, Size: int64(i), Stamp: []byte("s")}))
	}
	wire.Write(&b, doneFrame(""))
	for i := range 3 {
		if i > 0 {
			wire.Write(&b, dataFrame([]byte("xyz")[:i]))
		}
		wire.Write(&b, doneFrame(""))
	}
	f.Add([]byte(b))
	w := newScene(f, map[string]string{"a": "b", "d/x": "y"})
	f.Fuzz(func(t *testing.T, sent []byte) {
		conn := struct {
			io.Reader
			io.Writer
		}{strings.NewReader(string(sent)), io.Discard}
		im := w.s.importer(conn, w.options())
		if im.list() != nil {
			return
		}
		im.imply()
		if _, err := im.contents(context.Background()); err != nil {
			return
		}
		var idx index
		im.merge(&idx)
		for _, e := range idx.entries {
			if err := e.check(); err != nil {
				t.Error(err)
			}
		}
		slices.SortFunc(idx.entries, func(a, b Entry) int { return less(a.Name, b.Name) })
		if _, err := parseIndex(idx.marshal(), &index{}); err != nil {
			t.Error(err)
		}
		im.letGo()
		if got, _ := os.ReadFile(filepath.Join(w.dir, "a")); string(got) != "b" {
			t.Error("the host's folder was changed")
		}
	})
}
