package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func readAll(t *testing.T, s *spool, at int64, wait bool) (out []byte, dropped, next int64) {
	t.Helper()
	r := s.reader(at)
	defer r.close()
	next = r.at
	for {
		p, err := r.next(t.Context(), wait)
		if errors.Is(err, io.EOF) {
			return out, dropped, next
		}
		if err != nil {
			t.Fatal(err)
		}
		out, dropped, next = append(out, p.data...), dropped+p.dropped, p.next
	}
}

func TestSpoolKeepsEveryByte(t *testing.T) {
	s, err := newSpool(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	var want []byte
	for i := range 200 {
		p := bytes.Repeat([]byte{byte(i)}, rand.IntN(3000)+1)
		if err := s.write(t.Context(), streamOut, p); err != nil {
			t.Fatal(err)
		}
		want = append(want, p...)
	}
	if err := s.seal(); err != nil {
		t.Fatal(err)
	}
	got, dropped, _ := readAll(t, s, 0, true)
	if !bytes.Equal(got, want) || dropped != 0 {
		t.Fatalf("read %d bytes and %d dropped, want %d", len(got), dropped, len(want))
	}
	// The same from the disk, as the daemon reads it.
	again, err := openSpool(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if got, _, _ := readAll(t, again, 0, false); !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes from the disk, want %d", len(got), len(want))
	}
}

// An offset that a caller makes up must not let it read a length from the data.
func TestSpoolAnyOffset(t *testing.T) {
	s, err := newSpool(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for i := range 50 {
		if err := s.write(t.Context(), streamErr, fmt.Appendf(nil, "line %d\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	s.seal()
	for at := int64(-5); at < s.end+5; at++ {
		got, _, _ := readAll(t, s, at, false)
		if len(got) > 0 && !bytes.HasPrefix(got, []byte("line ")) {
			t.Fatalf("offset %d begins in the midst of a piece: %q", at, got[:min(20, len(got))])
		}
	}
}

func TestSpoolDropsTheOldestWithoutReader(t *testing.T) {
	const limit = 64 << 10
	s, err := newSpool(t.TempDir(), limit)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	p := make([]byte, 1000)
	for range 1000 {
		if err := s.write(t.Context(), streamOut, p); err != nil {
			t.Fatal(err)
		}
	}
	s.seal()
	got, dropped, next := readAll(t, s, 0, true)
	if dropped == 0 || int64(len(got)) > limit || next != 1000*(1000+pieceHead) {
		t.Fatalf("kept %d bytes, dropped %d, ended at %d", len(got), dropped, next)
	}
	var disk int64
	files, _ := filepath.Glob(filepath.Join(s.dir, "*"))
	for _, f := range files {
		fi, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		disk += fi.Size()
	}
	if disk > limit {
		t.Fatalf("%d bytes on disk, the limit is %d", disk, limit)
	}
}

func TestSpoolWaitsForAReader(t *testing.T) {
	const limit = 64 << 10
	s, err := newSpool(t.TempDir(), limit)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	r := s.reader(0)
	defer r.close()
	const total = 1 << 20
	wrote := make(chan error, 1)
	go func() {
		for range total / 1024 {
			if err := s.write(context.Background(), streamOut, make([]byte, 1024)); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- s.seal()
	}()
	n := 0
	for {
		p, err := r.next(t.Context(), true)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || p.dropped != 0 {
			t.Fatalf("%v, %d bytes dropped under a reader", err, p.dropped)
		}
		n += len(p.data)
	}
	if err := <-wrote; err != nil || n != total {
		t.Fatalf("read %d of %d: %v", n, total, err)
	}
}

// A writer that waits for a reader who never reads can be called off.
func TestSpoolWriterHonoursContext(t *testing.T) {
	s, err := newSpool(t.TempDir(), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	r := s.reader(0)
	defer r.close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for err == nil {
		err = s.write(ctx, streamOut, make([]byte, 4096))
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

// A keeper killed in the midst of a piece leaves a spool that reads to there.
func TestSpoolTornEnd(t *testing.T) {
	s, err := newSpool(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.write(t.Context(), streamOut, []byte("whole")); err != nil {
		t.Fatal(err)
	}
	if err := s.write(t.Context(), streamOut, []byte("torn away")); err != nil {
		t.Fatal(err)
	}
	s.close()
	files, _ := filepath.Glob(filepath.Join(s.dir, "*"))
	if err := os.Truncate(files[0], s.end-3); err != nil {
		t.Fatal(err)
	}
	again, err := openSpool(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if got, _, _ := readAll(t, again, 0, true); string(got) != "whole" {
		t.Fatalf("%q", got)
	}
}

func TestNoPieceBeyondItsFile(t *testing.T) {
	dir := t.TempDir()
	// A length that no file of ours could have.
	if err := os.WriteFile(filepath.Join(dir, "out.0000000000000000"), []byte{1, 0xff, 0xff, 0xff, 0xff, 'x'}, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := openSpool(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if got, _, _ := readAll(t, s, 0, false); len(got) != 0 {
		t.Fatalf("%q", got)
	}
}

// What was dropped to keep a guest's output within bounds is said.
func TestSpoolEmptied(t *testing.T) {
	s, err := newSpool(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.write(t.Context(), streamOut, make([]byte, 300<<10)); err != nil {
		t.Fatal(err)
	}
	s.seal()
	s.retire()
	for range 2 { // the second finds nothing to do
		if err := emptySpool(s.dir); err != nil {
			t.Fatal(err)
		}
	}
	again, err := openSpool(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	got, dropped, _ := readAll(t, again, 0, false)
	if len(got) != 0 || dropped != 300<<10+pieceHead || again.size() != 0 {
		t.Fatalf("%d bytes read, %d dropped, %d on disk", len(got), dropped, again.size())
	}
}
