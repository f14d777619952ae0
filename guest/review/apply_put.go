package review

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

// The one way in which anything of a change set gets onto the host:
//
//  1. plan: the names that will be changed are on the disk
//  2. prepare: in the folder itself, opened without following a link, what is
//     there is compared with what may be replaced; the new entry is made under
//     a temporary name, and what is there is kept; for a whole batch of steps
//     both are then brought to the disk, which takes them together
//  3. the journal says what will take whose place, on the disk
//  4. commit: both are exchanged in one call, and what came out is compared with
//     what was kept; if it is something else, they are exchanged back
//  5. flush: folders, then the journal's "done", are on the disk; then the base
//     and the review know, and only then somebody is told
//
// A process that dies leaves at most temporary names, which the journal tells;
// recoverSets finishes or takes back what it had begun.

// step is one name to be changed.
type step struct {
	i    int
	path string
	want state
	// judge says whether the step may go on, given what stands there now: nil,
	// nothing. f is the folder.
	judge func(f *share.Folder, name string, is *share.Info) (verdict, error)
	// plan is the step's line in the journal.
	plan plan
	// told says that somebody asked for this step; others are parts of one.
	told bool
	// applied: it takes back what was applied.
	applied bool
}

// outcome is what became of a step.
type outcome struct {
	step    *step
	refused string
	before  *share.Info
	after   *share.Info
	changed bool // or it was there already
}

// state is what is to stand at a name. The zero value is nothing.
type state struct {
	kind   Kind // 0, File, Folder or Link
	perm   os.FileMode
	target string
	fill   func(*share.Handle) error
	mtime  time.Time // zero: now
}

// verdict is a judge's.
type verdict struct {
	refused string
	// same: nothing is left to do; mode: the content is the same.
	same, mode bool
}

// putter carries out steps, in batches.
type putter struct {
	root   *share.Root
	undo   *Undo
	set    *set
	tell   func([]outcome) error // the base, the review, and who listens
	settle func() error          // what tell was told is in the review's index
	batch  []*prepared
	ready  []outcome
	dirty  map[[2]uint64]*share.Folder
}

// batchSize is how many steps wait for one sync of the journal. Each has up to
// three descriptors open.
const batchSize = 256

// start begins a set, after making room.
func (u *Undo) start(kind, group string) (*set, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.trimLocked(); err != nil {
		return nil, err
	}
	return u.begin(begin{Kind: kind, Group: group})
}

// plan numbers steps and notes their names before anything is written for them.
func (w *putter) plan(steps ...*step) error {
	records := make([]record, len(steps))
	for n, s := range steps {
		s.i = w.set.n
		s.plan.I, s.plan.Path = s.i, text(s.path)
		w.set.n++
		records[n].Plan = &s.plan
	}
	for len(records) > 0 {
		n := min(len(records), 256)
		if err := w.set.log.append(records[:n]...); err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

// tmpPrefix begins every temporary name. A set's id makes it one that nothing
// else has.
const tmpPrefix = ".carrel-"

func tmpEntry(set string, i int) string { return tmpPrefix + set + "-" + strconv.Itoa(i) }

// op is how a step is carried out.
type op uint8

const (
	opSwap   op = iota // the temporary entry takes the place of what is there
	opRemove           // what is there is moved away and removed
	opRmdir
	opChmod
)

type prepared struct {
	*step
	f         *share.Folder
	name, tmp string
	op        op
	is, mine  *share.Info
	pre       pre
	size      int64 // reserved for it
	verdict   verdict
	open      []*share.Handle // what is not on the disk yet
	dirty     bool            // the putter closes the folder
	err       error           // ends everything
}

// add takes the next step. A folder that is made or removed is done before the
// steps that need it.
func (w *putter) add(ctx context.Context, s *step) error {
	for _, p := range w.batch {
		if within(s.path, p.path) || within(p.path, s.path) {
			if err := w.run(ctx); err != nil {
				return err
			}
			break
		}
	}
	w.batch = append(w.batch, &prepared{step: s})
	if len(w.batch) >= batchSize {
		return w.run(ctx)
	}
	return nil
}

// workers is how many steps are prepared at once: the disk takes their syncs
// together.
const workers = 16

// run carries out the batch. When the disk is full, the steps behind the one that
// found no room may have taken it: the rest goes on one by one.
func (w *putter) run(ctx context.Context) error {
	batch := w.batch
	w.batch = nil
	alone := false
	for len(batch) > 0 {
		some := batch
		if alone {
			some = batch[:1]
		}
		n, err := w.together(ctx, some)
		var crowded *crowdedError
		switch {
		case errors.As(err, &crowded) && len(some) > 1:
			alone = true
		case err != nil:
			return err
		}
		for _, p := range batch[n:] { // anew
			*p = prepared{step: p.step}
		}
		batch = batch[n:]
	}
	return nil
}

// crowdedError: there was no room to prepare a step beside others.
type crowdedError struct{ error }

func (e *crowdedError) Unwrap() error { return e.error }

// together carries out steps whose new entries are on the disk at the same
// time, up to the first that fails, and says how many those are.
func (w *putter) together(ctx context.Context, batch []*prepared) (n int, err error) {
	var all sync.WaitGroup
	slots := make(chan struct{}, workers)
	for _, p := range batch {
		if p.err = ctx.Err(); p.err != nil {
			break
		}
		slots <- struct{}{}
		all.Go(func() {
			p.err = w.prepare(p)
			<-slots
		})
	}
	all.Wait()
	w.land(batch)
	// What comes before a failure is done, the rest is not touched, and leaves
	// its room to the journal.
	good, failed := batch, error(nil)
	for n, p := range batch {
		if p.err != nil {
			good, failed = batch[:n], p.err
			if stops(failed) {
				failed = &crowdedError{failed}
			}
			break
		}
	}
	for _, p := range batch[len(good):] {
		w.unkeep(p)
		p.release()
	}
	defer func() {
		for _, p := range good {
			p.release()
		}
	}()
	if err := w.journal(good); err != nil {
		return 0, errors.Join(err, w.flush())
	}
	for _, p := range good {
		o := outcome{step: p.step, refused: p.verdict.refused, before: p.is, after: p.is}
		if p.going() {
			if o.refused, err = w.commit(p); err != nil {
				return n, errors.Join(w.flush(), err)
			}
			if o.refused == "" {
				o.changed, o.after = true, p.after()
			}
		}
		n++
		w.ready = append(w.ready, o)
	}
	if err := w.flush(); err != nil {
		return n, err
	}
	return n, failed
}

// syncers is how many files are waited for at once.
const syncers = 32

// land brings new entries and pre-images to the disk, all that were prepared: each
// is first handed to it, so that it takes them in one go, and then waited for.
func (w *putter) land(batch []*prepared) {
	for _, p := range batch {
		for _, h := range p.open {
			h.StartSync()
		}
	}
	var all sync.WaitGroup
	slots := make(chan struct{}, syncers)
	for _, p := range batch {
		if len(p.open) == 0 {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			var err error
			for _, h := range p.open {
				err = errors.Join(err, h.Sync(), h.Close())
			}
			p.open = nil
			if err != nil && p.err == nil {
				w.unkeep(p)
				p.err = p.refuse(err)
			}
		})
	}
	all.Wait()
}

// unkeep takes back the pre-image of a step that goes no further.
func (w *putter) unkeep(p *prepared) {
	if p.size > 0 {
		w.undo.refund(p.size)
	}
	if p.pre.Kept {
		w.set.folder.Unlink(blobName(p.i))
	}
	p.size, p.pre.Kept = 0, false
}

// journal says what will take whose place.
func (w *putter) journal(batch []*prepared) error {
	var pres []record
	for _, p := range batch {
		if p.going() {
			pres = append(pres, record{Pre: &p.pre})
		}
	}
	if len(pres) == 0 {
		return nil
	}
	if err := w.set.log.append(pres...); err != nil {
		return err
	}
	err := w.set.log.sync()
	crash("journaled")
	return err
}

func (p *prepared) going() bool {
	return p.f != nil && p.err == nil && p.verdict.refused == "" && !p.verdict.same
}

// release lets go of the folder, and of a temporary entry that was not used.
func (p *prepared) release() {
	if p.f == nil {
		return
	}
	if p.mine != nil {
		if t, err := infoAt(p.f, p.tmp); err == nil && t.Dev == p.mine.Dev && t.Ino == p.mine.Ino {
			drop(p.f, p.tmp, &t)
		}
	}
	if !p.dirty {
		p.f.Close()
	}
}

// base is the last part of a name.
func base(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// drop removes an entry of any kind; a folder only if it is empty.
func drop(f *share.Folder, name string, is *share.Info) error {
	if is.Mode.IsDir() {
		return f.Rmdir(name)
	}
	return f.Unlink(name)
}

// look is Lstat with nil for nothing.
func look(f *share.Folder, name string) (*share.Info, error) {
	info, err := infoAt(f, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &info, nil
}

// stops says whether an error is no matter of one entry: the disk is full, or
// the store is.
func stops(err error) bool { return share.IsFull(err) }

// refuse makes an error of the host the reason of one entry, unless it is of a
// kind that ends everything.
func (p *prepared) refuse(err error) error {
	if err == nil || stops(err) {
		return err
	}
	p.verdict = verdict{refused: clip(err.Error())}
	return nil
}

// clip bounds a text for people.
func clip(s string) string { return s[:min(len(s), 1024)] }
