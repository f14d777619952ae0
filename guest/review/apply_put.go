package review

import (
	"context"
	"errors"
	"fmt"
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
//     a temporary name, and what is there is kept, both on the disk
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
	root  *share.Root
	undo  *Undo
	set   *set
	tell  func([]outcome) error // the base, the review, and who listens
	batch []*prepared
	ready []outcome
	dirty map[[2]uint64]*share.Folder
}

// batchSize is how many steps wait for one sync of the journal.
const batchSize = 64

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
	verdict   verdict
	dirty     bool  // the putter closes the folder
	err       error // ends everything
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

// run carries out the batch.
func (w *putter) run(ctx context.Context) error {
	batch := w.batch
	w.batch = nil
	if len(batch) == 0 {
		return nil
	}
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
	// What comes before a failure is done, the rest is not touched.
	good, failed := batch, error(nil)
	for n, p := range batch {
		if p.err != nil {
			good, failed = batch[:n], p.err
			break
		}
	}
	if err := w.journal(good); err != nil {
		good, failed = nil, err
	}
	for _, p := range good {
		o := outcome{step: p.step, refused: p.verdict.refused, before: p.is, after: p.is}
		if p.going() {
			var err error
			if o.refused, err = w.commit(p); err != nil {
				failed = err
				break
			}
			if o.refused == "" {
				o.changed, o.after = true, p.after()
			}
		}
		w.ready = append(w.ready, o)
	}
	for _, p := range batch {
		p.release()
	}
	return errors.Join(w.flush(), failed)
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
		if t, err := p.f.Lstat(p.tmp); err == nil && t.Dev == p.mine.Dev && t.Ino == p.mine.Ino {
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
	info, err := f.Lstat(name)
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

func (w *putter) prepare(p *prepared) (err error) {
	dir := parent(p.path)
	p.name = base(p.path)
	if err := share.GoodPath(p.path); err != nil {
		return p.refuse(err)
	}
	p.f, err = w.root.Folder(dir)
	switch {
	case share.IsAstray(err) && p.want.kind == 0:
		p.verdict.same = true // what was to go has gone with its folder
		return nil
	case share.IsAstray(err):
		p.verdict.refused = fmt.Sprintf("its folder %q is none on the host, or is reached through a link", dir)
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if p.want.kind == 0 {
			p.verdict.same = true
			return nil
		}
		p.verdict.refused = fmt.Sprintf("its folder %q is not there on the host", dir)
		return nil
	case err != nil:
		return p.refuse(err)
	}
	if p.is, err = look(p.f, p.name); err != nil {
		return p.refuse(err)
	}
	if p.verdict, err = p.judge(p.f, p.name, p.is); err != nil {
		return p.refuse(err)
	}
	if !p.going() {
		return nil
	}
	p.tmp = tmpEntry(w.set.id, p.i)
	switch {
	case p.want.kind == 0 && p.is == nil:
		p.verdict.same = true
		return nil
	case p.want.kind == 0 && p.is.Mode.IsDir():
		p.op = opRmdir
	case p.want.kind == 0:
		p.op = opRemove
	case p.is != nil && (p.verdict.mode || p.want.kind == Folder && p.is.Mode.IsDir()):
		if p.is.Mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid) == p.want.perm {
			p.verdict.same = true
			return nil
		}
		p.op = opChmod
	default:
		if err := p.make(); err != nil {
			return p.refuse(err)
		}
	}
	crash("made")
	if err := w.keep(p); err != nil {
		if errors.Is(err, errMoved) {
			p.verdict.refused = changing
			return nil
		}
		return p.refuse(err)
	}
	if now, err := look(p.f, p.name); err != nil || !same(now, p.is) {
		p.verdict.refused = changing
		return p.refuse(err)
	}
	crash("kept")
	return nil
}

// make makes the new entry under its temporary name.
func (p *prepared) make() error {
	if p.mine = (*share.Info)(nil); p.want.kind == File {
		h, err := p.f.Create(p.tmp, 0o600)
		if err != nil {
			return err
		}
		info, err := h.Lstat()
		p.mine = &info
		crash("created")
		if err == nil {
			err = p.want.fill(h)
		}
		if err == nil {
			err = h.Chmod(p.want.perm)
		}
		if err == nil && !p.want.mtime.IsZero() {
			err = h.SetModified(p.want.mtime)
		}
		if err == nil {
			err = h.Sync()
		}
		return errors.Join(err, h.Close())
	}
	var err error
	if p.want.kind == Link {
		err = p.f.Symlink(p.want.target, p.tmp)
	} else if err = p.f.Mkdir(p.tmp, 0o700); err == nil {
		err = p.f.Chmod(p.tmp, p.want.perm)
	}
	if err != nil {
		return err
	}
	info, err := p.f.Lstat(p.tmp)
	p.mine = &info
	return err
}

var errMoved = errors.New("it is another one now")

// keep takes the pre-image.
func (w *putter) keep(p *prepared) error {
	open := func() (share.Reader, error) {
		if p.is.Mode.Type() == fs.ModeSymlink {
			target, err := p.f.Readlink(p.name)
			return bytesReader(target), err
		}
		h, info, err := p.f.Open(p.name)
		if err != nil {
			return nil, err
		}
		if !info.Same(*p.is) {
			h.Close()
			return nil, errMoved
		}
		return h, nil
	}
	var err error
	if p.op == opChmod { // the content stays where it is
		kind := File
		if p.is.Mode.IsDir() {
			kind = Folder
		}
		p.pre = pre{I: p.i, Path: text(p.path), Kind: kind, Info: p.is, At: time.Now()}
	} else if p.pre, _, err = w.undo.image(w.set, p.i, p.path, p.is, open); err != nil {
		return err
	}
	if p.mine != nil {
		p.pre.Dev, p.pre.Ino = p.mine.Dev, p.mine.Ino
	}
	return nil
}

// stringReader is a target of a link as a share.Reader.
type stringReader struct{ *strings.Reader }

func (stringReader) Close() error { return nil }

func bytesReader(s string) share.Reader { return stringReader{strings.NewReader(s)} }

// same says whether the entry is untouched; either may be nil.
func same(a, b *share.Info) bool {
	if a == nil || b == nil {
		return a == b
	}
	return moved(a, b) && (a.Mode.IsDir() || a.Ctime.Equal(b.Ctime))
}

// moved is same for an entry that was given another name, which changes its
// ctime on many file systems.
func moved(a, b *share.Info) bool {
	if a.Dev != b.Dev || a.Ino != b.Ino || a.Mode.Type() != b.Mode.Type() {
		return false
	}
	return a.Mode.IsDir() || a.Size == b.Size && a.Mode == b.Mode && a.Mtime.Equal(b.Mtime)
}

const (
	changing = "the host was changing it at this moment (try again)"
	appeared = "something has appeared under its name on the host at this moment (try again)"
)

// commit carries out what is prepared. refused says that somebody else was
// quicker, and that what they made is there as it was.
func (w *putter) commit(p *prepared) (refused string, err error) {
	switch p.op {
	case opChmod:
		err = p.f.Chmod(p.name, p.want.perm)
	case opRmdir:
		if err = p.f.Rmdir(p.name); err != nil && !stops(err) {
			return "the folder is not empty on the host, or cannot be removed: " + clip(err.Error()), nil
		}
	case opRemove:
		refused, err = p.takeAway()
	default:
		refused, err = p.swap()
	}
	if err != nil && !stops(err) {
		return clip(err.Error()), nil
	}
	if err == nil && refused == "" {
		w.dirt(p)
	}
	crash("committed")
	return refused, err
}

// dirt notes that the folder is to be synced.
func (w *putter) dirt(p *prepared) {
	info, err := p.f.Lstat("")
	key := [2]uint64{info.Dev, info.Ino}
	if err != nil || info.Ino == 0 { // no numbers here: each for itself
		key = [2]uint64{^uint64(0), uint64(p.i)}
	}
	if w.dirty == nil {
		w.dirty = map[[2]uint64]*share.Folder{}
	}
	if w.dirty[key] == nil {
		w.dirty[key], p.dirty = p.f, true
	}
}

func (p *prepared) takeAway() (refused string, err error) {
	if err := p.f.Rename(p.name, p.tmp); err != nil {
		return "", err
	}
	crash("taken")
	out, err := p.f.Lstat(p.tmp)
	if err == nil && moved(&out, p.is) {
		return "", p.f.Unlink(p.tmp)
	}
	return changing, errors.Join(err, p.f.Rename(p.tmp, p.name))
}

func (p *prepared) swap() (refused string, err error) {
	if p.is == nil {
		err := p.f.Rename(p.tmp, p.name)
		if errors.Is(err, fs.ErrExist) {
			return appeared, nil
		}
		return "", err
	}
	err = p.f.Exchange(p.tmp, p.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "the host has removed it at this moment (try again)", nil
	case errors.Is(err, errors.ErrUnsupported):
		return p.replace()
	case err != nil:
		return "", err
	}
	crash("exchanged")
	out, err := p.f.Lstat(p.tmp)
	if err == nil && moved(&out, p.is) {
		if err = drop(p.f, p.tmp, &out); err == nil {
			return "", nil
		}
	}
	// Something else came out, or a folder with something in it.
	return changing, errors.Join(err, p.f.Exchange(p.tmp, p.name))
}

// replace is swap for hosts that cannot exchange: what is changed there between
// the last look and the call is lost but for its pre-image.
func (p *prepared) replace() (refused string, err error) {
	now, err := look(p.f, p.name)
	switch {
	case err != nil:
		return "", err
	case !same(now, p.is):
		return changing, nil
	case now.Mode.IsDir():
		if err := p.f.Rmdir(p.name); err != nil {
			return "", err
		}
		return "", p.f.Rename(p.tmp, p.name)
	}
	return "", p.f.Replace(p.tmp, p.name)
}

// after looks at what stands there now: ours, or what somebody has made of it
// since, which must not count for ours.
func (p *prepared) after() *share.Info {
	now, err := look(p.f, p.name)
	switch {
	case p.mine != nil && (err != nil || now == nil || now.Ino != p.mine.Ino || now.Dev != p.mine.Dev):
		return p.mine
	case p.want.kind == 0, err != nil:
		return nil
	}
	return now
}

// flush makes what is ready last, and tells.
func (w *putter) flush() error {
	var err error
	for key, f := range w.dirty {
		err = errors.Join(err, f.Sync(), f.Close())
		delete(w.dirty, key)
	}
	if err != nil {
		return err
	}
	ready := w.ready
	w.ready = nil
	var records []record
	for _, o := range ready {
		if o.changed {
			records = append(records, record{Done: &done{I: o.step.i, After: o.after}})
		}
	}
	if len(records) > 0 {
		crash("synced")
		if err := errors.Join(w.set.log.append(records...), w.set.log.sync()); err != nil {
			return err
		}
		crash("done")
	}
	if len(ready) == 0 {
		return nil
	}
	if err := w.tell(ready); err != nil {
		return err
	}
	crash("told")
	return nil
}

// end closes the set.
func (w *putter) end() error {
	now := time.Now()
	err := w.set.log.append(record{End: &now})
	return errors.Join(err, w.set.log.sync(), w.set.close())
}
