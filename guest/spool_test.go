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
	"sync"
	"testing"
	"testing/synctest"
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

// An attach takes what lies behind each other in one bite: never two streams, nor two
// lines of ours, nor beyond its size; what it takes, and where it goes on, is the same.
func TestSpoolBites(t *testing.T) {
	s, err := newSpool(t.TempDir(), 64<<10) // files of 1 KiB and a little
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	type said struct {
		stream byte
		text   string
	}
	var wrote []said
	for i := range 300 {
		p := said{streamOut, fmt.Sprintf("piece %d\n", i)}
		switch i % 10 {
		case 6, 7:
			p.stream = streamErr
		case 8, 9:
			p.stream = streamNote
		case 5:
			p.text = string(bytes.Repeat([]byte("long "), 100)) // more than a bite
		}
		wrote = append(wrote, p)
		if err := s.write(t.Context(), p.stream, []byte(p.text)); err != nil {
			t.Fatal(err)
		}
	}
	s.seal()
	single := s.reader(0)
	defer single.close()
	ends := map[int64]int{} // offset to how many pieces are before it
	for n := 1; ; n++ {
		p, err := single.next(t.Context(), true)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || string(p.data) != wrote[n-1].text {
			t.Fatalf("piece %d: %q, %v", n, p.data, err)
		}
		ends[p.next] = n
	}
	const bite = 200
	r := s.reader(0)
	defer r.close()
	r.bite = bite
	done, merged := 0, 0
	for {
		p, err := r.next(t.Context(), true)
		if errors.Is(err, io.EOF) {
			break
		}
		to, whole := ends[p.next]
		if err != nil || !whole || to <= done {
			t.Fatalf("after %d pieces: %q, on to %d, %v", done, p.data, p.next, err)
		}
		var want string
		for _, w := range wrote[done:to] {
			if want += w.text; w.stream != p.stream {
				t.Fatalf("one of stream %d came in one of %d", w.stream, p.stream)
			}
		}
		if string(p.data) != want {
			t.Fatalf("%q, want %q", p.data, want)
		}
		if n := to - done; n > 1 {
			if merged++; p.stream == streamNote || len(want)+n*pieceHead > bite {
				t.Fatalf("%d pieces of stream %d with %d bytes in one", n, p.stream, len(want))
			}
		}
		done = to
	}
	if done != len(wrote) || merged == 0 {
		t.Fatalf("%d pieces of %d came, %d times more than one at once", done, len(wrote), merged)
	}
}

// Two write while one reads in bites and the oldest files go: all of it comes, and
// the pieces of each writer in its order.
func TestSpoolBitesWhileWritten(t *testing.T) {
	s, err := newSpool(t.TempDir(), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	r := s.reader(0)
	defer r.close()
	r.bite = 4 << 10
	const each = 5000
	var both sync.WaitGroup
	for _, stream := range []byte{streamOut, streamErr} {
		both.Go(func() {
			for i := range each {
				if err := s.write(context.Background(), stream, fmt.Appendf(nil, "%d\n", i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	sealed := make(chan error, 1)
	go func() { both.Wait(); sealed <- s.seal() }()
	got, want := map[byte][]byte{}, []byte(nil)
	for {
		p, err := r.next(t.Context(), true)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || p.dropped != 0 {
			t.Fatalf("%v, %d bytes dropped under a reader", err, p.dropped)
		}
		got[p.stream] = append(got[p.stream], p.data...)
	}
	for i := range each {
		want = fmt.Appendf(want, "%d\n", i)
	}
	if err := <-sealed; err != nil || !bytes.Equal(got[streamOut], want) || !bytes.Equal(got[streamErr], want) {
		t.Fatalf("%d and %d bytes, want %d of each: %v", len(got[streamOut]), len(got[streamErr]), len(want), err)
	}
}

// A reader at the end of a spool that is sealed, or closed, while a piece is on its way
// to the disk still gets that piece, and until it is there nobody is sent to the disk.
func TestSpoolEndsAfterItsLastPiece(t *testing.T) {
	for what, end := range map[string]func(*spool){"sealed": func(s *spool) { s.seal() }, "closed": (*spool).close} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				s, err := newSpool(dir, 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				s.mu.Lock()
				s.writing = true // as write does, and then lets go of mu
				s.mu.Unlock()
				go end(s)
				synctest.Wait()
				r := s.tryReader(0)
				if r == nil {
					t.Fatal("a reader is sent to the disk, which has not all of it")
				}
				var got piece
				read := make(chan error, 1)
				go func() {
					var err error
					got, err = r.next(t.Context(), true)
					read <- err
				}()
				synctest.Wait()
				if len(read) > 0 {
					t.Fatalf("the reader is told the end before the last piece: %v", <-read)
				}
				s.mu.Lock()
				if err := writePiece(s.files[0].f, 0, streamOut, []byte("last")); err != nil {
					t.Fatal(err)
				}
				s.files[0].size, s.end = pieceHead+4, pieceHead+4
				s.writing = false
				s.cond.Broadcast()
				s.mu.Unlock()
				// Closed, it is read from the disk, to which this one is sent, too.
				if err := <-read; err == nil && string(got.data) != "last" || err != nil && (what != "closed" || !errors.Is(err, os.ErrClosed)) {
					t.Errorf("%q, %v", got.data, err)
				}
				r.close()
				s.close()
			})
		})
	}
}
