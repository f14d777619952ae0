package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Position is how far somebody has read a log. The zero value is its beginning.
type Position struct {
	// Seq is the number of the last line that was read and is a record.
	Seq uint64 `json:"seq"`
	// File is the number of the file in which the last line that was read lies (that
	// of the one that is written to is what it will get), and Offset is where the
	// line begins; Line begins its hash. File 0: not known, Seq says it. Line empty:
	// nothing of the file was read.
	File   int    `json:"file,omitempty"`
	Offset int64  `json:"offset,omitempty"`
	Line   string `json:"line,omitempty"`
	// First begins the hash of the log's first line, as it was then.
	First string `json:"first,omitempty"`
}

// Entry is one record as it is kept.
type Entry struct {
	Seq  uint64
	Time time.Time
	Kind string
	// Line is the record's own line, printable ASCII. It is fn's only until it
	// returns. Nil: the line could not be read as a record.
	Line []byte
}

// ErrEnough, returned by After's fn, ends the reading before that record.
var ErrEnough = errors.New("enough")

// After calls fn with the records that come after a position, oldest first, and
// returns the position that was reached. missed is how many records between the
// two are gone: their file was removed. A log that begins otherwise than that of
// the position is another one, and is read from its beginning. A line that is half
// written is not there yet.
//
// Numbers do not say where to read on, since any writer may have made them up: a
// position moves forward from line to line. A line whose number is not above that
// of the line before, or absurdly far, is an entry that cannot be read; so is what
// stands, after a change by somebody else, where the last line was.
func After(dir string, from Position, fn func(Entry) error) (to Position, missed uint64, err error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, os.ErrNotExist) {
		return from, 0, nil
	}
	if err != nil {
		return from, 0, fmt.Errorf("read on in the audit log: %w", err)
	}
	defer root.Close()
	files, err := openAll(root)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err == nil && len(files) > 0 {
		to, missed, err = after(files, from, fn)
		return to, missed, reading(err)
	}
	return from, 0, reading(err)
}

func reading(err error) error {
	if err != nil && !errors.Is(err, ErrEnough) {
		return fmt.Errorf("read on in the audit log: %w", err)
	}
	return nil
}

// maxJump is how many records may be missing before one that is believed: the
// log of a guest never has that many.
const maxJump = 1 << 32

func after(files []opened, from Position, fn func(Entry) error) (to Position, missed uint64, err error) {
	first, begins, err := beginning(files[0])
	if err != nil {
		return from, 0, err
	}
	if from.First != "" && first != from.First && begins {
		from = Position{} // this log is another one
	}
	if from.First == "" {
		from.First = first
	}
	if from == (Position{First: first}) {
		return scan(files, fileOf(files, 0, from), true, fn)
	}
	if from.File > 0 && from.File < files[0].number { // the file was removed
		return scan(files, fileOf(files, 0, from), true, fn)
	}
	for i, f := range files {
		if from.File == f.number {
			return resume(files[i:], from, fn)
		}
	}
	// The file in which the position lies is the last that begins before it.
	i := len(files) - 1
	for i > 0 && firstOf(files[i]) > from.Seq {
		i--
	}
	return scan(files[i:], fileOf(files, i, from), false, fn)
}

// fileOf is the position moved to the beginning of a file.
func fileOf(files []opened, i int, at Position) Position {
	at.File, at.Offset, at.Line = files[i].number, 0, ""
	return at
}

// resume reads on in the first of these files, in which the position lies.
func resume(files []opened, from Position, fn func(Entry) error) (to Position, missed uint64, err error) {
	if from.Line == "" {
		return scan(files, fileOf(files, 0, from), true, fn)
	}
	f := files[0]
	l, err := rawAt(f, from.Offset)
	if err != nil {
		return from, 0, err
	}
	to = from
	if !l.whole { // its end was cut off
		last, end, err := lastLine(f, max(0, f.size-2*(maxLine+1)), f.size)
		if err != nil {
			return from, 0, err
		}
		to.Offset, to.Line = 0, ""
		if last != nil {
			to.Offset = end - int64(len(last)) - 1
			to.Line = hashOf(last)[:16]
		}
	} else {
		to.Line = l.hash()
	}
	if to != from {
		if err := fn(Entry{}); err != nil {
			return from, 0, err
		}
	}
	return scan(files, to, true, fn)
}

// beginning is the hash of a log's first line, and whether a log has its beginning
// there. Empty: there is none yet.
func beginning(f opened) (hash string, begins bool, err error) {
	l, err := rawAt(f, 0)
	if err != nil || !l.whole {
		return "", false, err
	}
	rec := l.record()
	return l.hash(), rec != nil && rec.Seq == 1 && rec.Prev == nothing, nil
}

// rawLine is a line as it is in a file.
type rawLine struct {
	text  []byte // without its newline; of one that is too long, the beginning
	size  int64  // with it
	whole bool   // it has one
}

func (l rawLine) hash() string { return hashOf(l.text)[:16] }

// record is nil if the line is none.
func (l rawLine) record() *record {
	if l.size > int64(len(l.text))+1 {
		return nil
	}
	rec, err := parse(l.text)
	if err != nil {
		return nil
	}
	return rec
}

func rawAt(f opened, at int64) (rawLine, error) {
	if at < 0 || at >= f.size {
		return rawLine{}, nil
	}
	return nextLine(bufio.NewReaderSize(io.NewSectionReader(f.File, at, f.size-at), maxLine+1))
}

// nextLine reads a line; its text is good until the next one is read.
func nextLine(b *bufio.Reader) (l rawLine, err error) {
	line, err := b.ReadSlice('\n')
	l.size = int64(len(line))
	if errors.Is(err, bufio.ErrBufferFull) {
		line = bytes.Clone(line)
	}
	for errors.Is(err, bufio.ErrBufferFull) {
		var rest []byte
		rest, err = b.ReadSlice('\n')
		l.size += int64(len(rest))
	}
	if errors.Is(err, io.EOF) {
		return rawLine{}, nil // nothing, or a line that is half written
	}
	if err != nil {
		return rawLine{}, err
	}
	l.text, l.whole = bytes.TrimSuffix(line, []byte("\n")), true
	return l, nil
}

// firstOf is the number of a file's first record; 0 if that cannot be read, so
// that the file is read.
func firstOf(f opened) uint64 {
	l, err := rawAt(f, 0)
	if err != nil || !l.whole {
		return 0
	}
	rec := l.record()
	if rec == nil {
		return 0
	}
	return rec.Seq
}

// scan reads on after a position in the first of the files. If it has not begun,
// it begins after the record of the position's number.
func scan(files []opened, from Position, begun bool, fn func(Entry) error) (to Position, missed uint64, err error) {
	to = from
	for i, f := range files {
		if i > 0 {
			to = fileOf(files, i, to)
		}
		at, skip := to.Offset, to.Line != ""
		b := bufio.NewReaderSize(io.NewSectionReader(f.File, at, f.size-at), maxLine+1)
		for {
			l, err := nextLine(b)
			if err != nil {
				return to, missed, err
			}
			if !l.whole {
				break
			}
			if skip { // the position's own line
				skip = false
				at += l.size
				continue
			}
			rec := l.record()
			read := begun // whether it is after the position
			if !begun && rec != nil && rec.Seq >= to.Seq {
				begun, read = true, rec.Seq > to.Seq
			}
			if read {
				var e Entry
				var gap uint64
				if rec != nil && rec.Seq > to.Seq && rec.Seq-to.Seq <= maxJump {
					e, gap = Entry{rec.Seq, rec.Time, rec.Kind, l.text}, rec.Seq-to.Seq-1
				}
				if err := fn(e); err != nil {
					return to, missed, err
				}
				missed += gap
				if rec != nil {
					to.Seq = rec.Seq
				}
			}
			to.Offset, to.Line = at, l.hash()
			at += l.size
		}
	}
	return to, missed, nil
}
