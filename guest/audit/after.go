package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Position is how far somebody has read a log. The zero value is its beginning.
type Position struct {
	// Seq is the number of the last record that was read.
	Seq uint64 `json:"seq"`
	// Offset is where the line after it begins in the file that is written to;
	// only a hint, from which nothing is believed.
	Offset int64 `json:"offset,omitempty"`
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
// two are gone: their file was removed. A log that ends before the position is
// another one, and is read from its beginning. A line that is half written is not
// there yet.
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

func after(files []opened, from Position, fn func(Entry) error) (to Position, missed uint64, err error) {
	last := len(files) - 1
	if files[last].name == current && from.Offset > 0 && from.Offset <= files[last].size && begins(files[last], from) {
		return scan(files[last:], from, from.Offset, fn)
	}
	// The file in which the position lies is the last that begins before it.
	first := last
	for first > 0 && firstOf(files[first]) > from.Seq {
		first--
	}
	if end := lastOf(files); end < from.Seq {
		return scan(files, Position{}, 0, fn) // this log is another one
	}
	return scan(files[first:], Position{Seq: from.Seq}, 0, fn)
}

// begins says whether the record after the position is at its offset, or nothing
// is there yet though the record before is.
func begins(f opened, at Position) bool {
	if at.Offset < f.size {
		rec, _ := lineAt(f, at.Offset)
		return rec != nil && rec.Seq == at.Seq+1
	}
	line, end, err := lastLine(f, max(0, f.size-2*(maxLine+1)), f.size)
	if err != nil || line == nil || end != f.size {
		return false
	}
	rec, err := parse(line)
	return err == nil && rec.Seq == at.Seq
}

func lineAt(f opened, at int64) (*record, error) {
	b := bufio.NewReaderSize(io.NewSectionReader(f.File, at, f.size-at), maxLine+1)
	line, err := b.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	return parse(line[:len(line)-1])
}

// firstOf is the number of a file's first record; 0 if that cannot be read, so
// that the file is read.
func firstOf(f opened) uint64 {
	rec, err := lineAt(f, 0)
	if err != nil {
		return 0
	}
	return rec.Seq
}

// lastOf is the number of the log's last record that can be read at its end.
func lastOf(files []opened) uint64 {
	for i := len(files) - 1; i >= 0; i-- {
		line, _, err := lastLine(files[i], max(0, files[i].size-2*(maxLine+1)), files[i].size)
		if err != nil {
			return ^uint64(0) // not known: it is not taken for another log
		}
		if line == nil {
			continue
		}
		rec, err := parse(line)
		if err != nil {
			return ^uint64(0)
		}
		return rec.Seq
	}
	return 0
}

func scan(files []opened, from Position, offset int64, fn func(Entry) error) (to Position, missed uint64, err error) {
	to = from
	begun := offset > 0
	for _, f := range files {
		at := offset
		offset = 0
		b := bufio.NewReaderSize(io.NewSectionReader(f.File, at, f.size-at), maxLine+1)
		for {
			line, err := b.ReadSlice('\n')
			n, long := int64(len(line)), false
			for errors.Is(err, bufio.ErrBufferFull) {
				long = true
				line, err = b.ReadSlice('\n')
				n += int64(len(line))
			}
			if errors.Is(err, io.EOF) {
				break // also of a line that is half written
			}
			if err != nil {
				return to, missed, err
			}
			var e Entry
			if rec, perr := parse(line[:len(line)-1]); perr == nil && !long {
				e = Entry{rec.Seq, rec.Time, rec.Kind, line[:len(line)-1]}
			}
			old := e.Line != nil && e.Seq <= to.Seq || e.Line == nil && !begun
			if !old {
				if err := fn(e); err != nil {
					return to, missed, err
				}
				if e.Line != nil {
					missed += e.Seq - to.Seq - 1
					to.Seq = e.Seq
				}
			}
			begun = begun || e.Line != nil && e.Seq >= to.Seq
			if at += n; f.name == current {
				to.Offset = at
			}
		}
	}
	return to, missed, nil
}
