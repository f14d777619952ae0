package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/carrel-vm/carrel/guest/wire"
)

// A spool keeps a task's output on disk: files named by the offset at which
// they begin, each a row of pieces (one byte of stream, a length as uint32
// little endian, the bytes). Offsets count everything, so that they never go
// back. When it is full, a writer waits for the readers that are attached;
// without one the oldest file is dropped.

const (
	// SpoolMax is how much of a task's output is kept, in bytes.
	SpoolMax = 256 << 20
	// SpoolsMax is how much output of ended tasks a guest keeps, in bytes; the
	// oldest goes first.
	SpoolsMax  = 1 << 30
	spoolParts = 64
	pieceHead  = 5
	maxPiece   = 1 << 20
)

// Streams of a spool.
const (
	streamOut  = 1
	streamErr  = 2
	streamNote = 3 // lines of ours
)

type spoolFile struct {
	start, size int64
	f           *os.File
}

type spool struct {
	dir  string
	part int64 // bytes after which a new file begins
	max  int64

	mu      sync.Mutex
	cond    *sync.Cond
	files   []spoolFile
	end     int64
	writing bool // a piece is on its way to the last file, without mu
	sealed  bool // nothing more will be written
	retired bool // closed when its last reader goes
	closed  bool
	broken  error // what is behind the end may be no piece of ours: nothing goes there
	readers map[*spoolReader]struct{}
}

func newSpool(dir string, max int64) (*spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &spool{dir: dir, max: max, part: max / spoolParts, readers: map[*spoolReader]struct{}{}}
	s.cond = sync.NewCond(&s.mu)
	return s, s.grow()
}

// openSpool opens a spool that nobody writes any more.
func openSpool(dir string) (*spool, error) {
	s := &spool{dir: dir, sealed: true, readers: map[*spoolReader]struct{}{}}
	s.cond = sync.NewCond(&s.mu)
	es, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		start, err := strconv.ParseInt(strings.TrimPrefix(e.Name(), "out."), 16, 64)
		if err != nil || start < 0 || !e.Type().IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			s.close()
			return nil, err
		}
		fi, err := f.Stat()
		if err != nil {
			f.Close()
			s.close()
			return nil, err
		}
		s.files = append(s.files, spoolFile{start: start, size: fi.Size(), f: f})
	}
	sort.Slice(s.files, func(i, j int) bool { return s.files[i].start < s.files[j].start })
	for i, f := range s.files {
		if i > 0 && s.files[i-1].start+s.files[i-1].size != f.start {
			s.close()
			return nil, fmt.Errorf("%w: the spool %s has a gap", ErrDamaged, dir)
		}
		s.end = f.start + f.size
	}
	return s, nil
}

func (s *spool) grow() error {
	f, err := os.OpenFile(filepath.Join(s.dir, fmt.Sprintf("out.%016x", s.end)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	s.files = append(s.files, spoolFile{start: s.end, f: f})
	return nil
}

// write adds a piece, and keeps nothing of p. It waits while the spool is full and
// somebody reads it.
func (s *spool) write(ctx context.Context, stream byte, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(p) > 0 {
		n := min(len(p), maxPiece)
		if err := s.room(ctx, int64(n+pieceHead)); err != nil {
			return err
		}
		last := &s.files[len(s.files)-1] // nobody else changes the files meanwhile
		s.writing = true
		s.mu.Unlock() // readers go on, with what was there
		err := writePiece(last.f, last.size, stream, p[:n])
		var left error
		if err != nil { // as on a full disk: what came of it is a guest's bytes, which a shorter piece would lay bare
			left = last.f.Truncate(last.size)
		}
		s.mu.Lock()
		s.writing = false
		if left != nil {
			s.broken = errors.Join(err, left)
		}
		s.cond.Broadcast()
		if err != nil {
			return fmt.Errorf("spool: %w", err)
		}
		last.size += int64(n + pieceHead)
		s.end += int64(n + pieceHead)
		p = p[n:]
	}
	return nil
}

// pieceBuffers are for pieces of the size that agents send.
var pieceBuffers = sync.Pool{New: func() any { b := make([]byte, 0, pieceHead+wire.DataChunk); return &b }}

// writePiece writes a piece in one call, so that a kill tears at most the last.
func writePiece(f *os.File, at int64, stream byte, p []byte) error {
	var b []byte
	if len(p) <= wire.DataChunk {
		pooled := pieceBuffers.Get().(*[]byte)
		defer pieceBuffers.Put(pooled)
		b = *pooled
	} else {
		b = make([]byte, 0, pieceHead+len(p))
	}
	b = binary.LittleEndian.AppendUint32(append(b, stream), uint32(len(p)))
	_, err := f.WriteAt(append(b, p...), at)
	return err
}

// note adds a line of ours, if there is room for it: it waits for no reader.
func (s *spool) note(line []byte) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	// What a cancelled context calls off is only the wait.
	s.write(ctx, streamNote, line[:min(len(line), maxPiece)])
}

// room makes place for n bytes, and returns when nobody else writes. s.mu is held.
func (s *spool) room(ctx context.Context, n int64) error {
	for {
		if s.sealed || s.closed {
			return os.ErrClosed
		}
		if s.broken != nil {
			return s.broken
		}
		if s.writing { // which waits for no reader
			s.cond.Wait()
			continue
		}
		if s.end+n-s.files[0].start <= s.max {
			break
		}
		if s.slowest() < s.files[0].start+s.files[0].size {
			if ctx.Err() != nil { // only a wait is called off: what has room is kept
				return ctx.Err()
			}
			s.wait(ctx) // somebody still reads the oldest file
			continue
		}
		if len(s.files) == 1 {
			if err := s.grow(); err != nil {
				return err
			}
		}
		old := s.files[0]
		s.files = s.files[1:]
		old.f.Close()
		if err := os.Remove(old.f.Name()); err != nil {
			return err
		}
	}
	if s.files[len(s.files)-1].size >= s.part {
		return s.grow()
	}
	return nil
}

// slowest is the least offset of the attached readers. s.mu is held.
func (s *spool) slowest() int64 {
	least := s.end
	for r := range s.readers {
		least = min(least, r.at)
	}
	return least
}

// wait is s.cond.Wait, which the end of ctx ends, too. s.mu is held.
func (s *spool) wait(ctx context.Context) {
	defer context.AfterFunc(ctx, s.wake)() // which waits for s.mu, and that until cond.Wait
	s.cond.Wait()
}

func (s *spool) wake() {
	s.mu.Lock()
	s.cond.Broadcast()
	s.mu.Unlock()
}

// seal says that nothing more comes, and makes what came durable.
func (s *spool) seal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sealed {
		return nil
	}
	s.sealed = true
	s.cond.Broadcast()
	s.written()
	if s.end == 0 {
		return nil
	}
	return s.files[len(s.files)-1].f.Sync()
}

func (s *spool) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeLocked()
}

// retire closes the spool when nobody reads it any more; later readers open it
// again from the disk.
func (s *spool) retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
	if len(s.readers) == 0 {
		s.closeLocked()
	}
}

// size is what the spool has on the disk, in bytes.
func (s *spool) size() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		n += f.size
	}
	return n
}

// keptBytes is what a closed spool has on the disk.
func keptBytes(dir string) (n int64) {
	es, _ := os.ReadDir(dir)
	for _, e := range es {
		if fi, err := e.Info(); err == nil {
			n += fi.Size()
		}
	}
	return n
}

// emptySpool drops a closed spool's bytes from the disk and leaves behind how
// many there were, so that a later reader is told.
func emptySpool(dir string) error {
	s, err := openSpool(dir)
	if err != nil {
		return err
	}
	s.close()
	f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("out.%016x", s.end)), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	for _, old := range s.files {
		if old.start != s.end {
			os.Remove(old.f.Name())
		}
	}
	return nil
}

// written waits for a piece that is being written. s.mu is held.
func (s *spool) written() {
	for s.writing {
		s.cond.Wait()
	}
}

func (s *spool) closeLocked() {
	s.sealed = true
	s.written() // until then it is not all on the disk, where others look for it
	s.closed = true
	for _, f := range s.files {
		f.f.Close()
	}
	s.cond.Broadcast()
}
