package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// What a guest wrote when the disk became full is never taken for pieces of ours: not
// when a shorter piece goes where it was, and not before the next file. The disk is
// this process's own, of which no file goes beyond a size.
func TestSpoolFullDisk(t *testing.T) {
	const own = "CARREL_TEST_FULL_DISK"
	if os.Getenv(own) == "" {
		c := exec.Command("/proc/self/exe", "-test.run=^TestSpoolFullDisk$")
		c.Env = append(os.Environ(), own+"=1")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	var old unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_FSIZE, nil, &old); err != nil {
		t.Fatal(err)
	}
	limit := func(n uint64) {
		t.Helper()
		if err := unix.Prlimit(0, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: n, Max: old.Max}, nil); err != nil {
			t.Fatal(err)
		}
	}
	s, err := newSpool(t.TempDir(), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.write(t.Context(), streamOut, []byte("whole")); err != nil {
		t.Fatal(err)
	}
	const line = "ours"
	forged := append([]byte{streamNote, 6, 0, 0, 0}, "forged"...)
	piece := append(append([]byte(line), forged...), make([]byte, 2000)...) // what is behind the line's piece is a piece
	limit(1200)
	err = s.write(t.Context(), streamOut, piece)
	limit(old.Cur)
	if !errors.Is(err, unix.EFBIG) {
		t.Fatalf("control: the disk has room: %v", err)
	}
	s.note([]byte(line))
	look := func(want string) {
		t.Helper()
		again, err := openSpool(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer again.close()
		if got, _, _ := readAll(t, again, 0, false); string(got) != want {
			t.Errorf("the disk has %.60q, want %q", got, want)
		}
	}
	look("whole" + line)
	// The next file begins where the last one ends.
	long := string(bytes.Repeat([]byte("x"), 1100)) // not as far as the disk had room
	for _, p := range []string{long, "next"} {
		if err := s.write(t.Context(), streamOut, []byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.files) != 2 {
		t.Fatalf("control: %d files", len(s.files))
	}
	look("whole" + line + long + "next")
}

// Where that cannot be taken away either, nothing goes any more.
func TestSpoolRefusesBehindWhatIsLeft(t *testing.T) {
	s, err := newSpool(t.TempDir(), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	good := s.files[0].f
	bad, err := os.Open(good.Name()) // only to read
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	s.files[0].f = bad
	if s.write(t.Context(), streamOut, []byte("a")) == nil {
		t.Fatal("control: it can be written")
	}
	s.files[0].f = good
	if err := s.write(context.Background(), streamOut, []byte("b")); err == nil || errors.Is(err, io.EOF) {
		t.Fatal("it was written to a file that may have anything at its end")
	}
}
