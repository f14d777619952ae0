package store

import (
	"context"
	"errors"
	"testing"

	"github.com/carrel-vm/carrel/guest/disktest"
)

// F10: a commit whose sync fails is no acknowledgement, and what was acknowledged
// before is there for whoever opens the index next.
func TestSyncFails(t *testing.T) {
	dir := t.TempDir()
	s := opened(t, dir)
	if _, _, err := s.Key(t.Context(), "before", "m", [32]byte{}); err != nil { // the control
		t.Fatal(err)
	}
	if err := s.Remember(t.Context(), "before", []byte("answer")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Key(t.Context(), "during", "m", [32]byte{}); err != nil {
		t.Fatal(err)
	}
	disktest.Sync(t, func() {
		// Its own goroutine writes for all; nobody else asks it for anything now.
		errs := s.write([]*op{{f: func(t *tx) error {
			return t.exec("UPDATE keys SET answer = ? WHERE key = ?", []byte("late"), "during")
		}}})
		if errs[0] == nil {
			t.Error("a commit that is not durable succeeded")
		}
	})
	_, _, err := s.Key(context.Background(), "after", "m", [32]byte{})
	if err != nil && !errors.Is(err, ErrBroken) {
		t.Errorf("afterwards: %v", err)
	}
	s.Close()
	next := opened(t, dir)
	answer, seen, kerr := next.Key(t.Context(), "before", "m", [32]byte{})
	if kerr != nil || !seen || string(answer) != "answer" {
		t.Errorf("what was acknowledged: %q %v %v", answer, seen, kerr)
	}
	if err == nil {
		if _, seen, kerr := next.Key(t.Context(), "after", "m", [32]byte{}); kerr != nil || !seen {
			t.Errorf("what was acknowledged after it: %v %v", seen, kerr)
		}
	}
}
