package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// rotated returns the names of the full files, oldest first.
func (l *Log) rotated() ([]string, error) { return rotatedIn(l.root) }

func rotatedIn(root *os.Root) ([]string, error) {
	d, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(1024)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return number(n) == 0 })
	slices.SortFunc(names, func(a, b string) int { return number(a) - number(b) })
	return names, nil
}

// number is n of "audit.n.jsonl", or 0.
func number(name string) int {
	s, ok := strings.CutPrefix(name, "audit.")
	s, ok2 := strings.CutSuffix(s, ".jsonl")
	n, err := strconv.ParseUint(s, 10, 31)
	if !ok || !ok2 || err != nil || strconv.FormatUint(n, 10) != s {
		return 0
	}
	return int(n)
}

// rotateLocked sets the full file aside, begins a new one, and removes the
// oldest. A crash between any two steps leaves a chain that goes on: the new
// file's first line follows the last line of the highest number.
func (l *Log) rotateLocked(full *os.File) (*os.File, error) {
	old, err := l.rotated()
	if err != nil {
		return full, err
	}
	n := 1
	if len(old) > 0 {
		n = number(old[len(old)-1]) + 1
	}
	name := fmt.Sprintf("audit.%d.jsonl", n)
	if err := full.Sync(); err != nil {
		return full, err
	}
	if err := l.root.Rename(current, name); err != nil {
		return full, err
	}
	full.Close()
	f, err := l.root.OpenFile(current, os.O_CREATE|os.O_EXCL|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return full, err
	}
	l.at.file, l.at.size = nil, 0
	data, _ := encode(map[string]any{"file": name}, nil)
	if err := l.write(f, kindRotated, data); err != nil {
		return f, err
	}
	for old = append(old, name); len(old) > l.keep; old = old[1:] {
		last, err := l.lastOf(old[0])
		if err != nil {
			return f, err
		}
		r, err := parse(last)
		if err != nil {
			return f, fmt.Errorf("the last line of %s is damaged: %w (carrel audit verify shows where)", old[0], err)
		}
		data, _ := encode(removed{File: old[0], Last: r.Seq, Head: hashOf(last)}, nil)
		if err := l.write(f, kindRemoved, data); err != nil {
			return f, err
		}
		if err := l.root.Remove(old[0]); err != nil {
			return f, err
		}
	}
	return f, nil
}

// removed are the fields of kindRemoved.
type removed struct {
	File string `json:"file"`
	// Last is the sequence number of its last record, and Head that one's hash.
	Last uint64 `json:"last"`
	Head string `json:"head"`
}
