package review

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

// A journal is the file of one set of changes to the host: lines of JSON, each
// written with one call and never rewritten. A line that was not written to its
// end is none; nothing follows it.
//
//	begin    what the set is
//	plan     a name that will be changed (before anything is written for it)
//	pre      what stands there now, and what will take its place (on the disk
//	         before that happens)
//	done     what stands there afterwards
//	end      all changes are in place, and the review knows
//
// A second file has the numbers of the changes that were taken back by a later
// set (undone).

// text is a string of any bytes, as JSON can hold it.
type text string

// MarshalText implements encoding.TextMarshaler.
func (t text) MarshalText() ([]byte, error) {
	q := strconv.QuoteToASCII(string(t))
	return []byte(q[1 : len(q)-1]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *text) UnmarshalText(b []byte) error {
	s, err := strconv.Unquote(`"` + string(b) + `"`)
	*t = text(s)
	return err
}

// Kinds of sets.
const (
	setApply = "apply"
	setTask  = "task"
	setUndo  = "undo"
)

type record struct {
	Begin  *begin     `json:"begin,omitempty"`
	Plan   *plan      `json:"plan,omitempty"`
	Pre    *pre       `json:"pre,omitempty"`
	Done   *done      `json:"done,omitempty"`
	Undone *int       `json:"undone,omitempty"`
	End    *time.Time `json:"end,omitempty"`
}

type begin struct {
	Kind string `json:"kind"`
	Task string `json:"task,omitempty"`
	// Group joins the sets of one request.
	Group string    `json:"group,omitempty"`
	At    time.Time `json:"at"`
}

// plan is one step. Its number tells the name of its temporary entry.
type plan struct {
	I    int  `json:"i"`
	Path text `json:"path"`
	// Entry: the review has it, with this stamp.
	Entry bool `json:"entry,omitempty"`
	Stamp text `json:"stamp,omitempty"`
	// Of and At are the set and the number that an undo takes back.
	Of string `json:"of,omitempty"`
	At int    `json:"at,omitempty"`
	// Was is what the review had, so that an undo can bring it back.
	Was *was `json:"was,omitempty"`
}

// pre is the state before a change.
type pre struct {
	I    int  `json:"i"`
	Path text `json:"path"`
	// Kind is 0 if nothing was there; else File, Folder, Link or Other.
	Kind Kind `json:"kind,omitempty"`
	// Info is of what was there.
	Info   *share.Info `json:"info,omitempty"`
	Target text        `json:"target,omitempty"`
	// Kept: the content is in the file of the set that has this step's number.
	Kept bool `json:"kept,omitempty"`
	// Dev and Ino are of what takes its place, under a temporary name until
	// then; 0: nothing does, or no temporary name is used, or there are no numbers
	// here. Fresh: something does.
	Dev   uint64    `json:"dev,omitempty"`
	Ino   uint64    `json:"ino,omitempty"`
	Fresh bool      `json:"fresh,omitempty"`
	At    time.Time `json:"at,omitzero"`
}

type done struct {
	I int `json:"i"`
	// After is what stands there now; nil: nothing.
	After *share.Info `json:"after,omitempty"`
}

// maxRecord is the longest line: two names of which each byte may be escaped.
const maxRecord = 64 << 10

// journal is one that is being written.
type journal struct {
	file *share.Handle
	at   int64
}

func (j *journal) append(records ...record) error {
	var b []byte
	for i := range records {
		line, err := json.Marshal(&records[i])
		if err != nil {
			return err
		}
		if len(line) >= maxRecord {
			return fmt.Errorf("a line of %d bytes", len(line))
		}
		b = append(append(b, line...), '\n')
	}
	n, err := j.file.WriteAt(b, j.at)
	if err != nil { // what was written of it will be written over
		return fmt.Errorf("write the journal of changes: %w", err)
	}
	j.at += int64(n)
	return nil
}

func (j *journal) sync() error {
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("write the journal of changes: %w", err)
	}
	return nil
}

// history is a journal that was read.
type history struct {
	begin  begin
	plans  []plan
	pres   []pre // in the order of time
	done   map[int]*done
	undone map[int]bool
	ended  time.Time
	// last is when the last pre-image was kept.
	last             time.Time
	size, undoneSize int64
}

// maxSteps bounds what is read of one journal.
const maxSteps = 2_000_000

// readJournal reads as far as lines are whole. Lines of ours that say too much
// are an error.
func readJournal(r io.Reader) (*history, error) {
	h := &history{done: map[int]*done{}, undone: map[int]bool{}}
	in := bufio.NewReaderSize(r, maxRecord)
	for n := 0; ; n++ {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, bufio.ErrBufferFull):
			return h, nil // the rest was not written to its end
		case err != nil:
			return nil, err
		case n >= 3*maxSteps:
			return nil, fmt.Errorf("%w: a journal has more than %d lines", ErrDamaged, n)
		}
		var rec record
		if json.Unmarshal(line, &rec) != nil {
			return h, nil
		}
		h.size += int64(len(line))
		switch {
		case rec.Begin != nil:
			h.begin = *rec.Begin
		case rec.Plan != nil:
			h.plans = append(h.plans, *rec.Plan)
		case rec.Pre != nil:
			h.pres = append(h.pres, *rec.Pre)
			h.last = rec.Pre.At
		case rec.Done != nil:
			h.done[rec.Done.I] = rec.Done
		case rec.Undone != nil:
			h.undone[*rec.Undone] = true
		case rec.End != nil:
			h.ended = *rec.End
		}
		if p := rec.path(); p != nil && goodName(string(*p)) != nil {
			return nil, fmt.Errorf("%w: a journal names %.100q", ErrDamaged, *p)
		}
	}
}

func (r *record) path() *text {
	switch {
	case r.Plan != nil:
		return &r.Plan.Path
	case r.Pre != nil:
		return &r.Pre.Path
	}
	return nil
}
