package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sort"
)

// spoolReader reads a spool from an offset.
type spoolReader struct {
	s  *spool
	at int64
	// bite makes one of pieces of one stream that follow each other, up to so many
	// bytes of the file; their data is then the reader's own, until the next call.
	bite int64
	buf  []byte
}

// piece is one bit of output, or a number of bytes that are gone.
type piece struct {
	stream  byte
	data    []byte
	dropped int64
	next    int64 // the offset after it
}

// reader attaches a reader at an offset. An offset within a piece goes on to
// the next one, so that no caller can make it read a length from the data.
func (s *spool) reader(at int64) *spoolReader {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.readerLocked(at)
}

// tryReader is reader, but nil once the spool is closed.
func (s *spool) tryReader(at int64) *spoolReader {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	return s.readerLocked(at)
}

func (s *spool) readerLocked(at int64) *spoolReader {
	r := &spoolReader{s: s, at: max(at, 0)}
	for _, f := range s.files {
		if r.at <= f.start || r.at >= f.start+f.size {
			continue
		}
		pos := f.start
		for pos < r.at && pos < f.start+f.size {
			n, err := f.length(pos - f.start)
			if err != nil {
				break
			}
			pos += pieceHead + n
		}
		r.at = pos
	}
	s.readers[r] = struct{}{}
	return r
}

func (r *spoolReader) close() {
	r.s.mu.Lock()
	delete(r.s.readers, r)
	if r.s.retired && len(r.s.readers) == 0 {
		r.s.closeLocked()
	}
	r.s.cond.Broadcast()
	r.s.mu.Unlock()
}

func (f *spoolFile) length(at int64) (int64, error) {
	var h [pieceHead]byte
	if _, err := f.f.ReadAt(h[:], at); err != nil {
		return 0, err
	}
	n := int64(binary.LittleEndian.Uint32(h[1:]))
	if n > maxPiece || at+pieceHead+n > f.size {
		return 0, io.ErrUnexpectedEOF
	}
	return n, nil
}

// next returns the next piece; it waits for one if wait is set, and else, or
// when no more will come, returns io.EOF.
func (r *spoolReader) next(ctx context.Context, wait bool) (piece, error) {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := ctx.Err(); err != nil {
			return piece{}, err
		}
		if len(s.files) > 0 && r.at < s.files[0].start {
			p := piece{dropped: s.files[0].start - r.at, next: s.files[0].start}
			r.at = p.next
			return p, nil
		}
		if r.at < s.end {
			break
		}
		if s.sealed && !s.writing || !wait { // a piece that is on its way still comes
			return piece{}, io.EOF
		}
		s.wait(ctx)
	}
	if s.closed {
		return piece{}, os.ErrClosed
	}
	i := sort.Search(len(s.files), func(i int) bool { return s.files[i].start > r.at }) - 1
	f := s.files[i]
	// What is behind an end does not change, and no file goes in which a reader is.
	s.mu.Unlock()
	p, n, err := r.read(&f, r.at-f.start)
	s.mu.Lock()
	if errors.Is(err, errTorn) { // the writer was killed in the midst of a piece
		r.at = s.end
		return piece{}, io.EOF
	}
	if err != nil {
		return piece{}, err
	}
	r.at += n
	p.next = r.at
	s.cond.Broadcast()
	return p, nil
}

var errTorn = errors.New("a piece goes beyond its file")

// read reads the piece at an offset of a file, and those that may be one with it, and
// returns of how many bytes of the file that is.
func (r *spoolReader) read(f *spoolFile, at int64) (p piece, n int64, err error) {
	b := r.room(min(max(r.bite, pieceHead), f.size-at))
	if _, err := f.f.ReadAt(b, at); errors.Is(err, io.EOF) {
		return piece{}, 0, errTorn
	} else if err != nil {
		return piece{}, 0, err
	}
	first, ok := whole(b, f.size-at)
	if !ok {
		return piece{}, 0, errTorn
	}
	if first > int64(len(b)) { // as always without a bite
		b = r.room(first)
		if _, err := f.f.ReadAt(b, at); err != nil {
			return piece{}, 0, err
		}
	}
	p = piece{stream: b[0], data: b[pieceHead:first]}
	for n = first; p.stream != streamNote; { // each of those is a line
		more, ok := whole(b[n:], int64(len(b))-n)
		if !ok || b[n] != p.stream {
			break
		}
		p.data = append(p.data, b[n+pieceHead:n+more]...) // back over the head between
		n += more
	}
	return p, n, nil
}

// whole is how many bytes the piece has with which b begins, and whether it has no
// more than it may and there are.
func whole(b []byte, there int64) (n int64, ok bool) {
	if len(b) < pieceHead {
		return 0, false
	}
	n = int64(binary.LittleEndian.Uint32(b[1:]))
	return pieceHead + n, n <= maxPiece && pieceHead+n <= there
}

// room is n bytes to read into.
func (r *spoolReader) room(n int64) []byte {
	if r.bite == 0 {
		return make([]byte, n)
	}
	if int64(cap(r.buf)) < n {
		r.buf = make([]byte, max(n, min(2*int64(cap(r.buf)), r.bite)))
	}
	return r.buf[:n]
}
