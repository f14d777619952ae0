package review

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

type readerOf struct{ *bytes.Reader }

func (readerOf) Close() error { return nil }

func of(b string) func() (share.Reader, error) {
	return func() (share.Reader, error) { return readerOf{bytes.NewReader([]byte(b))}, nil }
}

func fileInfo(n int) *share.Info { return &share.Info{Ino: 7, Size: int64(n), Mode: 0o644} }

func undoStore(t *testing.T) (*Undo, string) {
	t.Helper()
	dir := t.TempDir()
	u, err := OpenUndo(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u, dir
}

func TestKeep(t *testing.T) {
	u, dir := undoStore(t)
	if err := u.Session("one"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 { // several requests for one entry keep one image
		all.Go(func() {
			if err := u.Keep("a/b", fileInfo(5), of("hello")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	bad := "n\xffl\n\"\\"
	if err := errors.Join(u.Keep("new", nil, nil), u.Keep(bad, &share.Info{Mode: os.ModeSymlink | 0o777}, of("../x\xfe")), u.Keep("a", &share.Info{Mode: os.ModeDir | 0o755}, nil),
		u.Keep("a/b", fileInfo(9), of("again, new"))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(u.Session("two"), u.Keep("a/b", fileInfo(3), of("two")), u.Close()); err != nil {
		t.Fatal(err)
	}
	if u, err := OpenUndo(dir); err != nil {
		t.Fatal(err)
	} else {
		defer u.Close()
		ids, err := u.sets()
		if err != nil || len(ids) != 2 {
			t.Fatalf("%q, %v", ids, err)
		}
		h, err := u.read(ids[0])
		if err != nil || h.begin.Task != "one" || len(h.pres) != 4 || h.ended.IsZero() {
			t.Fatalf("%+v, %v", h, err)
		}
		kept, err := os.ReadFile(filepath.Join(dir, undoName, ids[0], "0"))
		if err != nil || string(kept) != "hello" {
			t.Errorf("%q, %v", kept, err)
		}
		if p := h.pres[2]; string(p.Path) != bad || p.Kind != Link || p.Target != "../x\xfe" {
			t.Errorf("%+v", p)
		}
		if want := u.size(ids[0]) + u.size(ids[1]); u.used != want || want == 0 {
			t.Errorf("%d bytes are counted, and %d there", u.used, want)
		}
	}
}

// TestKeepBound: what finds no room is refused and not left out; older sets make
// room at the next task.
func TestKeepBound(t *testing.T) {
	u, dir := undoStore(t)
	u.Max = 10 << 10
	u.Session("one")
	if err := u.Keep("a", fileInfo(8<<10), of(string(make([]byte, 8<<10)))); err != nil {
		t.Fatal(err)
	}
	err := u.Keep("b", fileInfo(8<<10), of(string(make([]byte, 8<<10))))
	if !errors.Is(err, ErrUndoFull) {
		t.Fatal(err)
	}
	t.Log(err)
	if err := u.Keep("c", nil, nil); err != nil { // as long as there is room
		t.Error(err)
	}
	if err := u.Session("two"); err != nil {
		t.Fatal(err)
	}
	if err := u.Keep("b", fileInfo(8<<10), of(string(make([]byte, 8<<10)))); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, undoName, "*")); len(left) != 1 {
		t.Errorf("%q", left)
	}
	for _, p := range []string{"..", "a/../b", "/a", "a//b", "x\x00"} {
		if u.Keep(p, nil, nil) == nil {
			t.Errorf("%q was kept", p)
		}
	}
}

// TestJournalTorn: whatever a journal is cut to, the whole lines count.
func TestJournalTorn(t *testing.T) {
	u, dir := undoStore(t)
	u.Session("one")
	for i := range 20 {
		if err := u.Keep(fmt.Sprint("f", i), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	ids, _ := u.sets()
	path := filepath.Join(dir, undoName, ids[0], journalName)
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n <= len(all); n += 7 {
		h, err := readJournal(bytes.NewReader(append(all[:n:n], "\x00\x00"...)))
		if want := max(0, bytes.Count(all[:n], []byte("\n"))-1); err != nil || len(h.pres) != want {
			t.Fatalf("%d bytes: %d, %v", n, len(h.pres), err)
		}
	}
	if _, err := readJournal(bytes.NewReader([]byte(`{"pre":{"i":1,"path":"../x"}}` + "\n"))); !errors.Is(err, ErrDamaged) {
		t.Errorf("a name that leads out: %v", err)
	}
}

func BenchmarkKeepNothing(b *testing.B) {
	u, err := OpenUndo(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer u.Close()
	u.Session("one")
	start := time.Now()
	for i := range b.N {
		if err := u.Keep(fmt.Sprint("f", i), nil, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(time.Since(start).Nanoseconds())/float64(b.N), "ns/keep")
}
