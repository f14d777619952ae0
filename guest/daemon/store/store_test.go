package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func opened(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestKeys(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s := opened(t, dir)
	a, b := sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b"))
	if answer, seen, err := s.Key(ctx, "k", "m", a); answer != nil || seen || err != nil {
		t.Fatalf("a new key: %q %v %v", answer, seen, err)
	}
	// The daemon dies here: the next one is told that it was seen.
	s.Close()
	s = opened(t, dir)
	if answer, seen, err := s.Key(ctx, "k", "m", a); answer != nil || !seen || err != nil {
		t.Fatalf("a key without an answer: %q %v %v", answer, seen, err)
	}
	if err := s.Remember(ctx, "k", []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := s.Remember(ctx, "k", []byte("second")); err != nil {
		t.Fatal(err)
	}
	if err := s.Forget(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = opened(t, dir)
	if answer, seen, err := s.Key(ctx, "k", "m", a); string(answer) != "first" || !seen || err != nil {
		t.Fatalf("an answered key: %q %v %v", answer, seen, err)
	}
	if _, _, err := s.Key(ctx, "k", "m", b); !errors.Is(err, ErrReused) {
		t.Errorf("another request: %v", err)
	}
	if _, _, err := s.Key(ctx, "k", "n", a); !errors.Is(err, ErrReused) {
		t.Errorf("another method: %v", err)
	}
	// What came to nothing may be tried again, as another request too.
	s.Key(ctx, "failed", "m", a)
	if err := s.Forget(ctx, "failed"); err != nil {
		t.Fatal(err)
	}
	if _, seen, err := s.Key(ctx, "failed", "m", b); seen || err != nil {
		t.Errorf("after a failure: %v %v", seen, err)
	}
	// An answer of no bytes is an answer.
	s.Key(ctx, "empty", "m", a)
	s.Remember(ctx, "empty", nil)
	if answer, seen, err := s.Key(ctx, "empty", "m", a); answer == nil || !seen || err != nil {
		t.Errorf("an empty answer: %v %v %v", answer, seen, err)
	}
	for _, bad := range []string{"", strings.Repeat("x", MaxKey+1)} {
		if _, _, err := s.Key(ctx, bad, "m", a); err == nil {
			t.Errorf("a key of %d bytes was taken", len(bad))
		}
	}
	// One that only a journal knew counts for any request.
	if _, err := s.Update(ctx, Known{Keys: []Answered{{Key: "old", Method: "m", At: time.Now(), Answer: []byte("then")}, {Key: "k", Method: "m", At: time.Now(), Answer: []byte("false")}}}); err != nil {
		t.Fatal(err)
	}
	if answer, seen, err := s.Key(ctx, "old", "m", b); string(answer) != "then" || !seen || err != nil {
		t.Errorf("a key that was relearned: %q %v %v", answer, seen, err)
	}
	if answer, _, err := s.Look(ctx, "k", "m", a); string(answer) != "first" || err != nil {
		t.Errorf("a key that the index knew better: %q %v", answer, err)
	}
	if _, seen, err := s.Look(ctx, "never taken", "m", a); seen || err != nil {
		t.Errorf("a look at a key: %v %v", seen, err)
	}
	if err := s.Remember(ctx, "never taken", nil); err == nil {
		t.Error("an answer was kept for a key that nobody took")
	}
}

// Of many at once with one key exactly one is the first.
func TestKeyOnce(t *testing.T) {
	s := opened(t, t.TempDir())
	var all sync.WaitGroup
	var mu sync.Mutex
	first := 0
	for range 64 {
		all.Go(func() {
			_, seen, err := s.Key(t.Context(), "k", "m", [32]byte{})
			if err != nil {
				t.Error(err)
			}
			if !seen {
				mu.Lock()
				first++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if first != 1 {
		t.Errorf("%d were the first", first)
	}
}

func TestEvents(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s := opened(t, dir)
	if list, first, err := s.Events(ctx, 0, 10); len(list) != 0 || first == 0 || err != nil {
		t.Fatalf("before the first: %v %d %v", list, first, err)
	}
	var seqs []uint64
	for i := range 5 {
		seq, err := s.Append(ctx, "kind", "box", fmt.Append(nil, i))
		if err != nil {
			t.Fatal(err)
		}
		seqs = append(seqs, seq)
	}
	s.Close()
	s = opened(t, dir)
	list, first, err := s.Events(ctx, seqs[1], 2)
	if err != nil || len(list) != 2 || first != seqs[0] {
		t.Fatalf("%v %d %v", list, first, err)
	}
	if e := list[0]; e.Seq != seqs[1]+1 || string(e.Payload) != "2" || e.Kind != "kind" || e.Guest != "box" || time.Since(e.Time) > time.Hour {
		t.Errorf("%+v", e)
	}
	// The oldest goes, and the first that is left is said.
	s.share.max = 4
	last, err := s.Append(ctx, "kind", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, first, _ = s.Events(ctx, last, 1); first != seqs[0]+2 {
		t.Errorf("the first is %d, not %d", first, seqs[0]+2)
	}
	if first, end, err := s.Ends(ctx); err != nil || first != seqs[0]+2 || end != last {
		t.Errorf("%d to %d, %v", first, end, err)
	}
	if _, err := s.Append(ctx, "kind", "", make([]byte, maxPayload+1)); err == nil {
		t.Error("an event without bounds was taken")
	}
}

// A failing request in a batch takes nobody else down, and leaves nothing.
func TestBatch(t *testing.T) {
	s := opened(t, t.TempDir())
	wrong := errors.New("wrong")
	var all sync.WaitGroup
	for i := range 500 {
		all.Go(func() {
			err := s.do(t.Context(), func(x *tx) error {
				if err := x.exec("INSERT INTO guests (name, created) VALUES (?, 1)", fmt.Sprint(i)); err != nil {
					return err
				}
				if i%3 == 0 {
					return wrong
				}
				return nil
			})
			if (i%3 == 0) != errors.Is(err, wrong) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	all.Wait()
	names, err := s.Guests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		if _, there := names[fmt.Sprint(i)]; there != (i%3 != 0) {
			t.Errorf("%d is there: %v", i, there)
		}
	}
}

func TestClosed(t *testing.T) {
	s := opened(t, t.TempDir())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(t.Context(), "", "", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	s.Later(t.Context(), Known{Guest: "box", Tasks: []Task{{ID: "1", State: Queued}}})
	var none *Store
	if _, err := none.Append(t.Context(), "", "", nil); !errors.Is(err, ErrNone) {
		t.Errorf("without an index: %v", err)
	}
	none.Later(context.Background(), Known{Guest: "box"})
	if err := none.Close(); err != nil {
		t.Error(err)
	}
}

// F08, F16: an older schema is brought up, with a copy from before; a newer one
// is refused with what to do; a migration that fails leaves all as it was.
func TestMigrations(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	path := filepath.Join(dir, File)
	s := opened(t, dir)
	seq, err := s.Append(ctx, "old", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()

	if _, err := open(dir, append(migrations[:len(migrations):len(migrations)], "ALTER TABLE events ADD COLUMN more TEXT", "this is no SQL")); err == nil {
		t.Fatal("a migration that cannot be carried out")
	}
	s = opened(t, dir) // as it was
	s.Close()

	next := append(migrations[:len(migrations):len(migrations)], "ALTER TABLE events ADD COLUMN more TEXT")
	s, err = open(dir, next)
	if err != nil {
		t.Fatal(err)
	}
	if list, _, err := s.Events(ctx, seq-1, 1); err != nil || len(list) != 1 || list[0].Kind != "old" {
		t.Errorf("after it: %v %v", list, err)
	}
	s.Close()
	before := backupPath(path, len(migrations))
	if fi, err := os.Stat(before); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("the copy from before: %v %v", fi, err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(dir)
	if !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), filepath.Base(before)) || !strings.Contains(err.Error(), "move the file away") {
		t.Fatalf("a newer schema: %v", err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(whole, now) {
		t.Error("a newer index was written to")
	}
	// What the error says to do works: the copy in its place.
	if err := os.Rename(before, path); err != nil {
		t.Fatal(err)
	}
	s = opened(t, dir)
	if list, _, err := s.Events(ctx, seq-1, 1); err != nil || len(list) != 1 {
		t.Errorf("from the copy: %v %v", list, err)
	}
	if s.Rebuilt != "" {
		t.Errorf("from the copy: %s", s.Rebuilt)
	}
}

// A guest that makes more events than all others pushes out its own, and not
// theirs; over the daemon's end, too. The control: without a share of their own the
// quiet guest's are gone.
func TestEventsFairShare(t *testing.T) {
	for _, own := range []int{10, 1 << 30} {
		dir, ctx := t.TempDir(), t.Context()
		s := opened(t, dir)
		add := func(guest string, n int) {
			for range n {
				if _, err := s.Append(ctx, "kind", guest, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		by := func() (quiet, loud, other int) {
			list, _, err := s.Events(ctx, 0, MaxEvents)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				switch e.Guest {
				case "quiet":
					quiet++
				case "loud":
					loud++
				default:
					other++
				}
			}
			return quiet, loud, other
		}
		s.share.max, s.share.own = 60, own
		add("quiet", 8)
		add("loud", 100)
		s.Close()
		s = opened(t, dir)
		s.share.max, s.share.own = 60, own
		add("other", 5)
		add("loud", 100)
		quiet, loud, other := by()
		if own == 10 && (quiet != 8 || other != 5 || loud != 47) || own > 60 && (quiet != 0 || other != 0 || loud != 60) {
			t.Errorf("own %d: quiet has %d, other %d, loud %d", own, quiet, other, loud)
		}
		if own > 60 {
			continue
		}
		first, last, err := s.Ends(ctx)
		if list, from, _ := s.Events(ctx, 0, 9); err != nil || from != first || list[7].Seq != first+7 || list[8].Seq == first+8 || last-first != 212 {
			t.Errorf("%d to %d: %v", first, last, list)
		}
		// When nobody has more than is everybody's, the oldest go.
		for i := range 10 {
			add(fmt.Sprint("more", i), 6)
		}
		if quiet, loud, _ = by(); quiet != 0 || loud != 0 {
			t.Errorf("after many: quiet has %d, loud %d", quiet, loud)
		}
		// A transaction that was taken back is not counted.
		_ = s.do(ctx, func(t *tx) error { t.share.add("nobody", 1000); return errors.New("no") })
		add("last", 3)
		if list, _, _ := s.Events(ctx, 0, MaxEvents); len(list) != 60 {
			t.Errorf("%d events are left", len(list))
		}
	}
}
