package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Report is what Verify found.
type Report struct {
	// Records that are there and in order, up to the first break if there is one.
	Records int64
	// Intact says that no line was changed, taken out or put in, except, maybe,
	// after Head.
	Intact bool
	// Broken says where the chain is broken first, and how.
	Broken string
	// Head is the hash of the last record in order: noted elsewhere, it shows a
	// log that was cut off or written anew.
	Head string
	// First is the first record's number: 1 until old files are removed.
	First uint64
	// Repaired counts lines that a crash left half written.
	Repaired int64
}

// Verify reads the log in dir from its beginning to its end. A folder that is
// not there, or has no log, is an intact one without records: only who knows
// that there was one can miss it.
func Verify(dir string) (Report, error) {
	var r Report
	var prev *record
	var wanted string // what the first record says of the one before it
	var heads []removed
	r.Head = nothing
	err := read(dir, func(file string, number int, line []byte, torn bool) error {
		broken := func(format string, v ...any) error {
			r.Broken = fmt.Sprintf("%s, line %d: ", file, number) + fmt.Sprintf(format, v...)
			return errBroken
		}
		if torn {
			if file != current {
				return broken("the file ends within a line")
			}
			return broken("the last line is half written; the next record repairs that, and says so")
		}
		rec, err := parse(line)
		if err != nil {
			return broken("the line is damaged or was changed: %v", err)
		}
		switch {
		case prev == nil:
			r.First, wanted = rec.Seq, rec.Prev
			if rec.Seq == 1 && rec.Prev != nothing || rec.Seq == 0 {
				return broken("the first record does not begin a log")
			}
		case rec.Seq != prev.Seq+1:
			return broken("record %d stands after record %d: lines were taken out, put in or moved", rec.Seq, prev.Seq)
		case rec.Prev != r.Head:
			return broken("record %d does not follow from the line before: that was changed, or this was put in", rec.Seq)
		}
		switch rec.Kind {
		case kindRepaired:
			r.Repaired++
		case kindRemoved:
			var h removed
			if json.Unmarshal(rec.Data, &h) == nil {
				heads = append(heads, h)
			}
		}
		prev, r.Head = rec, hashOf(line)
		r.Records++
		return nil
	})
	if err != nil && !errors.Is(err, errBroken) {
		return Report{}, fmt.Errorf("verify the audit log: %w", err)
	}
	if r.Broken == "" && r.First > 1 {
		known := false
		for _, h := range heads {
			known = known || h.Last == r.First-1 && h.Head == wanted
		}
		if !known {
			r.Broken = fmt.Sprintf("the log begins with record %d, and no record says that those before it were removed", r.First)
		}
	}
	r.Intact = r.Broken == ""
	return r, nil
}

var errBroken = errors.New("broken")

// Show calls fn with the last records, oldest first, as they are kept; 0: with
// all. A line that is none is shown as a record that says so. line is fn's only
// until it returns.
func Show(dir string, last int, fn func(line []byte) error) error {
	var skip int64
	if last > 0 {
		if err := read(dir, func(string, int, []byte, bool) error { skip++; return nil }); err != nil {
			return fmt.Errorf("show the audit log: %w", err)
		}
		skip = max(0, skip-int64(last))
	}
	err := read(dir, func(file string, number int, line []byte, torn bool) error {
		if skip > 0 {
			skip--
			return nil
		}
		if _, err := parse(line); err != nil || torn {
			line, _ = json.Marshal(map[string]any{"kind": "audit.unreadable", "data": map[string]any{"file": file, "line": number, "bytes": len(line)}})
		}
		return fn(line)
	})
	if err != nil {
		return fmt.Errorf("show the audit log: %w", err)
	}
	return nil
}

// read calls fn with every line there is now. The files are opened together
// under the lock, so that a rotation meanwhile moves none away.
func read(dir string, fn func(file string, number int, line []byte, torn bool) error) error {
	l, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.Close()
	files, err := openAll(l)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return err
	}
	for _, f := range files {
		b := bufio.NewReaderSize(io.LimitReader(f, f.size), maxLine+1)
		for number := 1; ; number++ {
			line, err := b.ReadSlice('\n')
			long := errors.Is(err, bufio.ErrBufferFull)
			for errors.Is(err, bufio.ErrBufferFull) { // its rest is of no interest
				_, err = b.ReadSlice('\n')
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			end := errors.Is(err, io.EOF)
			if end && len(line) == 0 {
				break
			}
			if !end && !long {
				line = line[:len(line)-1]
			}
			if err := fn(f.Name(), number, line, end); err != nil {
				return err
			}
			if end {
				break
			}
		}
	}
	return nil
}

// opened is a file, as long as it was when it was opened.
type opened struct {
	*os.File
	name   string
	number int // of the file that is written to, what it will get
	size   int64
}

func (o opened) Name() string { return o.name }

func openAll(root *os.Root) (files []opened, err error) {
	lock, err := root.OpenFile(lockName, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := lockFile(lock, lockTime); err != nil {
		return nil, err
	}
	defer unlockFile(lock)
	names, err := rotatedIn(root)
	if err != nil {
		return nil, err
	}
	last := 0
	for _, n := range append(names, current) {
		if last++; n != current {
			last = number(n)
		}
		f, err := root.Open(n)
		if errors.Is(err, fs.ErrNotExist) && n == current {
			continue
		}
		if err != nil {
			return files, err
		}
		fi, err := f.Stat()
		if err == nil && !fi.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a file", n)
		}
		if err != nil {
			f.Close()
			return files, err
		}
		files = append(files, opened{f, n, last, fi.Size()})
	}
	return files, nil
}
