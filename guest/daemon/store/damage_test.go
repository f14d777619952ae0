package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// filled makes an index with ten keys, events and tasks, and returns its bytes.
func filled(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	s := opened(t, dir)
	for i := range 10 {
		key := fmt.Sprint("key", i)
		if _, _, err := s.Key(t.Context(), key, "m", sha256.Sum256([]byte(key))); err != nil {
			t.Fatal(err)
		}
		if err := s.Remember(t.Context(), key, []byte("answer to "+key)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Append(t.Context(), "kind", "box", []byte(key)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Update(t.Context(), Known{Guest: "box", Tasks: []Task{{ID: fmt.Sprint("task", i), State: Exited, Record: []byte(key)}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, File))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// asks opens an index and asks it for all that was written. It may know nothing,
// or say that it is damaged; what it does answer must be true. It returns how
// much was answered.
func asks(t *testing.T, what string, b []byte) (known int) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, File), b, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second start is to find what the first has found
		s, err := Open(dir)
		if errors.Is(err, ErrNewer) { // refused, with what to do: the flipped bit is the version's
			return 0
		}
		if err != nil {
			t.Fatalf("%s: it does not open, and nothing was made in its place: %v", what, err)
		}
		known = 0
		broken := false
		for i := range 10 {
			key := fmt.Sprint("key", i)
			answer, seen, err := s.Key(t.Context(), key, "m", sha256.Sum256([]byte(key)))
			switch {
			case err != nil:
				broken = true
			case seen && answer != nil && string(answer) != "answer to "+key:
				t.Errorf("%s: %s was answered with %q", what, key, answer)
			case seen:
				known++
			}
		}
		tasks, err := s.Tasks(t.Context(), "", 100)
		broken = broken || err != nil
		for _, k := range tasks {
			if k.State != Exited || "task"+string(bytes.TrimPrefix(k.Record, []byte("key"))) != k.ID {
				t.Errorf("%s: a task reads %v", what, k)
			}
		}
		s.Close()
		if !broken {
			return known
		}
	}
	// Now it is new, and works.
	s := opened(t, dir)
	if s.Rebuilt == "" {
		t.Errorf("%s: it is damaged, and the next start does not know", what)
	}
	if _, err := s.Append(t.Context(), "kind", "", nil); err != nil {
		t.Errorf("%s: the new one: %v", what, err)
	}
	return 0
}

// F08: an index that is cut, or in which a bit has flipped, gives no false answer:
// it is set aside and made anew, at the latest at the second start.
func TestDamage(t *testing.T) {
	whole := filled(t)
	if n := asks(t, "control", whole); n != 10 {
		t.Fatalf("of a sound index %d of 10 keys are known", n)
	}
	for _, at := range []int{0, 1, 15, 16, 99, 100, 4095, 4096, 4097, len(whole) / 2, len(whole) - 1} {
		asks(t, fmt.Sprintf("cut to %d bytes", at), whole[:at])
	}
	asks(t, "text", bytes.Repeat([]byte("not a database\n"), 1000))
	const seed = 8
	r := rand.New(rand.NewPCG(seed, seed))
	const flips = 80
	lost := 0
	for range flips {
		b := bytes.Clone(whole)
		at := r.IntN(len(b))
		if r.IntN(2) == 0 { // half of them where rows and heads of pages are
			at = r.IntN(len(b)/4096)*4096 + r.IntN(64)
		}
		b[at] ^= 1 << r.IntN(8)
		if asks(t, fmt.Sprintf("bit of byte %d flipped", at), b) < 10 {
			lost++
		}
	}
	if lost == 0 {
		t.Error("no flipped bit did anything: the test shows nothing")
	}
	t.Logf("of %d flipped bits %d were found; an index of %d bytes", flips, lost, len(whole))
}

// What stands beside a damaged index is bounded.
func TestSetAside(t *testing.T) {
	dir := t.TempDir()
	for range keptAside + 3 {
		if err := os.WriteFile(filepath.Join(dir, File), []byte("no database, and too long to be an empty one"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := opened(t, dir)
		if s.Rebuilt == "" {
			t.Error("text was taken for an index")
		}
		s.Close()
	}
	if l, _ := filepath.Glob(filepath.Join(dir, File+suffixDamaged+"-*")); len(l) != keptAside {
		t.Errorf("%d are kept aside: %q", len(l), l)
	}
}
