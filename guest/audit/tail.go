package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// catchUp reads the end of the chain from the disk and takes a half-written line
// off it. The lock is held, so nobody is writing that line still.
func (l *Log) catchUp(f *os.File, fi os.FileInfo) error {
	from := max(0, fi.Size()-2*(maxLine+1))
	if l.at.file != nil && os.SameFile(l.at.file, fi) && l.at.size < fi.Size() {
		from = max(from, l.at.size) // the others' lines begin here
	}
	l.at = tail{file: fi, hash: nothing}
	last, whole, err := lastLine(f, from, fi.Size())
	if err == nil && last == nil && from > 0 {
		// All that the others wrote is half a line: the last whole one is ours.
		last, whole, err = lastLine(f, max(0, fi.Size()-2*(maxLine+1)), fi.Size())
	}
	if err != nil {
		return err
	}
	torn := fi.Size() - whole
	var rest []byte
	if torn > 0 {
		rest = make([]byte, torn) // at most maxLine, see lastLine
		if _, err := f.ReadAt(rest, whole); err != nil {
			return err
		}
		if err := f.Truncate(whole); err != nil {
			return err
		}
	}
	if l.at.size = whole; last == nil {
		// The file has just been begun, after a rotation or at all.
		old, err := l.rotated()
		if err != nil {
			return err
		}
		if len(old) > 0 {
			if last, err = l.lastOf(old[len(old)-1]); err != nil {
				return err
			}
		}
	}
	if last != nil {
		r, err := parse(last)
		if err != nil {
			return fmt.Errorf("its last line is damaged: %w (carrel audit verify shows where; move the folder away to begin anew)", err)
		}
		l.at.seq, l.at.hash = r.Seq, hashOf(last)
	}
	if torn > 0 {
		data, _ := encode(map[string]any{"dropped_bytes": torn, "dropped_sha256": hashOf(rest)}, nil)
		return l.write(f, kindRepaired, data)
	}
	return nil
}

// lastLine returns the last whole line between from and size, nil if there is
// none, and where the whole lines end. A line must begin at from, or it must be
// more than one line away from the end.
func lastLine(f io.ReaderAt, from, size int64) (line []byte, end int64, err error) {
	b := make([]byte, size-from)
	if _, err := f.ReadAt(b, from); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	i := bytes.LastIndexByte(b, '\n')
	if len(b)-i-1 > maxLine {
		return nil, 0, errors.New("it ends in a line without an end (carrel audit verify shows where; move the folder away to begin anew)")
	}
	if i < 0 {
		return nil, from, nil
	}
	return b[bytes.LastIndexByte(b[:i], '\n')+1 : i], from + int64(i) + 1, nil
}

func (l *Log) lastOf(name string) ([]byte, error) {
	f, err := l.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	line, _, err := lastLine(f, max(0, fi.Size()-2*(maxLine+1)), fi.Size())
	return line, err
}
