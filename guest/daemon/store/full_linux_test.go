package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// F09: on a full disk a key is refused, and nothing that was acknowledged is lost
// or becomes untrue; when there is room again it goes on, without a new start.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("carrel-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount a small disk: %v (this test runs as root)", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s := opened(t, dir)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 300<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	answer := func(n int) []byte { return fmt.Appendf(make([]byte, 2000), "answer %d", n) }
	acked, taken := map[int]bool{}, 0
	keep := func(n int) error {
		key := fmt.Sprint("key", n)
		if _, _, err := s.Key(t.Context(), key, "m", [32]byte{}); err != nil {
			return err
		}
		taken++
		if err := s.Remember(t.Context(), key, answer(n)); err != nil {
			return err
		}
		acked[n] = true
		return nil
	}
	n, refused := 0, 0
	for ; refused < 20; n++ {
		if n > 5000 {
			t.Fatal("the small disk was never full: the test shows nothing")
		}
		if err := keep(n); errors.Is(err, ErrNoRoom) {
			refused++
		} else if err != nil {
			t.Fatalf("key %d: %v", n, err)
		}
	}
	if len(acked) == 0 {
		t.Fatal("nothing was ever acknowledged: the test shows nothing")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := keep(n); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	s.Close()
	s = opened(t, dir)
	if s.Rebuilt != "" {
		t.Fatalf("it was taken for damaged: %s", s.Rebuilt)
	}
	for i := range n + 1 {
		got, seen, err := s.Look(t.Context(), fmt.Sprint("key", i), "m", [32]byte{})
		switch {
		case err != nil:
			t.Fatal(err)
		case acked[i] && (!seen || string(got) != string(answer(i))):
			t.Errorf("the answer to key %d is lost", i)
		case !acked[i] && got != nil:
			t.Errorf("key %d was refused, and has an answer", i)
		}
	}
	t.Logf("%d answers kept, %d requests refused for want of room", len(acked), refused)
}

// An index that is there is not opened on a full disk, which is told from damage:
// the daemon goes on without it. The control is the same with room.
func TestOpenOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("carrel-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount a small disk: %v (this test runs as root)", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	opened(t, dir).Close()
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the small disk is not full: %v", err)
	}
	if s, err := Open(dir); !errors.Is(err, ErrNoRoom) {
		if err == nil {
			s.Close()
		}
		t.Errorf("with a full disk: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s := opened(t, dir)
	if s.Rebuilt != "" {
		t.Errorf("it was taken for damaged: %s", s.Rebuilt)
	}
}
