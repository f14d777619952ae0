package review

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

// UndoOptions say what is taken back, and how.
type UndoOptions struct {
	// Sets are ids of what Undoable gives, the newest first.
	Sets []string
	// Paths are as in ApplyOptions.
	Paths []string
	// Overwrite what was changed since.
	Overwrite bool
	Group     string
}

// Undoing is one set that can be taken back.
type Undoing struct {
	ID, Task, Group string
	// Apply: it was an apply; otherwise a task changed a live share.
	Apply bool
	At    time.Time
	// Steps are those that were not taken back yet.
	Steps int
}

// Undoable returns the sets that can be taken back, the newest first. What an
// undo itself has replaced is among them only if it is asked for by its id.
func (u *Undo) Undoable(id string) (all []Undoing, err error) {
	ids, err := u.sets()
	if err != nil {
		return nil, err
	}
	for _, s := range slices.Backward(ids) {
		h, err := u.read(s)
		if err != nil || h.begin.Kind == "" || h.begin.Kind == setUndo && s != id {
			continue // a damaged one is not a reason to have none
		}
		x := Undoing{ID: s, Task: h.begin.Task, Group: h.begin.Group, Apply: h.begin.Kind == setApply, At: h.begin.At}
		for n := range h.pres {
			if h.counts(&h.pres[n]) {
				x.Steps++
			}
		}
		if x.Steps > 0 {
			all = append(all, x)
		}
	}
	return all, nil
}

// counts says whether a change was made and is not taken back.
func (h *history) counts(p *pre) bool {
	return !h.undone[p.I] && (h.begin.Kind == setTask || h.done[p.I] != nil)
}

// TakeBack gives back to the host what it had before the sets, the last change
// first, each entry in one step. What was changed since is refused. What is
// taken back is kept in a set of its own.
//
// An entry that was applied comes back into the review. A guest that has let go of
// it sees what the host has.
func (t *Target) TakeBack(ctx context.Context, o UndoOptions, tell func(Event) error) error {
	a, release, err := t.applier(ApplyOptions{Overwrite: o.Overwrite, Paths: o.Paths, Group: o.Group}, tell, false)
	if err != nil {
		return err
	}
	defer release()
	if err := a.recover(); err != nil {
		return err
	}
	if a.w.set, err = t.Undo.start(setUndo, o.Group); err != nil {
		return err
	}
	if err := a.loadGiven(); err != nil {
		return a.finish(err, nil)
	}
	hit := make([]bool, len(o.Paths))
	for _, id := range o.Sets {
		if err = a.takeBack(ctx, id, hit); err != nil {
			break
		}
	}
	for n, p := range o.Paths {
		if !hit[n] && err == nil && p != "" {
			a.refuse(p, 0, "nothing that was changed there is kept")
		}
	}
	return a.finish(err, nil)
}

func (a *applier) takeBack(ctx context.Context, id string, hit []bool) error {
	h, err := a.Undo.read(id)
	if err != nil {
		return err
	}
	var steps []*step
	var pres []*pre
	for n := len(h.pres) - 1; n >= 0; n-- {
		p := &h.pres[n]
		if !h.counts(p) || !selected(string(p.Path), a.opts.Paths, hit) {
			continue
		}
		steps, pres = append(steps, a.back(id, h, p)), append(pres, p)
	}
	if err := a.w.plan(steps...); err != nil {
		return err
	}
	if err := a.w.set.log.sync(); err != nil {
		return err
	}
	for n, s := range steps {
		if h.begin.Kind == setTask {
			if err := a.moveBack(ctx, pres[n], h); err != nil {
				return err
			}
		}
		if err := a.w.add(ctx, s); err != nil {
			return err
		}
	}
	if err := a.w.run(ctx); err != nil {
		return err
	}
	if h.begin.Kind != setApply {
		return nil
	}
	var names []string
	for _, s := range steps {
		names = append(names, s.path)
	}
	return a.Store.Forget(names)
}

// selected notes which of the paths matched.
func selected(name string, paths []string, hit []bool) bool {
	is := len(paths) == 0
	for i, p := range paths {
		if within(name, p) {
			is, hit[i] = true, true
		}
	}
	return is
}

// back makes the step that gives one pre-image back.
func (a *applier) back(id string, h *history, p *pre) *step {
	s := &step{path: string(p.Path), told: true, applied: h.begin.Kind == setApply, plan: plan{Of: id, At: p.I}}
	modeOnly := p.Kind == File && !p.Kept
	if p.Info != nil {
		s.want.perm = p.Info.Mode & fs.ModePerm
	}
	switch s.want.kind = p.Kind; p.Kind {
	case File:
		s.want.mtime = p.Info.Mtime
		s.want.fill = func(to *share.Handle) error { return a.refill(id, p, to) }
	case Link:
		s.want.target = string(p.Target)
	}
	s.judge = func(f *share.Folder, name string, is *share.Info) (verdict, error) {
		switch why := a.since(h, p, is); {
		case a.Rules.Judge(s.path).Hidden:
			return verdict{refused: "the share's rules hide this name now"}, nil
		case p.Kind == Other:
			return verdict{refused: "it was a device, a pipe or a socket: nothing is kept of it"}, nil
		case modeOnly && (is == nil || !is.Mode.IsRegular()):
			return verdict{refused: "only its mode was changed, and it is not there any more"}, nil
		case why != "" && !a.opts.Overwrite:
			return verdict{refused: why}, nil
		}
		// What was moved away and back as a part of a folder is as it was.
		return verdict{mode: modeOnly, same: p.Kind == File && same(is, p.Info)}, nil
	}
	return s
}

// given is an entry that an undo has put there, and what it was made after.
type given struct{ now, was *share.Info }

// loadGiven learns what earlier undos have given back: such an entry counts for
// the one that it was made after, so that one set after the other can be taken
// back.
func (a *applier) loadGiven() error {
	ids, err := a.Undo.sets()
	if err != nil {
		return err
	}
	sets, pres := map[string]*history{}, map[string]map[int]*pre{}
	for _, id := range ids {
		h, err := a.Undo.read(id)
		if err != nil {
			continue
		}
		sets[id], pres[id] = h, map[int]*pre{}
		for n := range h.pres {
			pres[id][h.pres[n].I] = &h.pres[n]
		}
	}
	a.given = map[string][]given{}
	for _, h := range sets {
		if h.begin.Kind != setUndo {
			continue
		}
		for n := range h.plans {
			p := &h.plans[n]
			was, d := pres[p.Of][p.At], h.done[p.I]
			if was != nil && was.Path == p.Path && d != nil && d.After != nil {
				a.given[string(p.Path)] = append(a.given[string(p.Path)], given{d.After, was.Info})
			}
		}
	}
	return nil
}

// origin is what an entry was made after by undos.
func (a *applier) origin(path string, is *share.Info) *share.Info {
	for again := true; again && is != nil; {
		again = false
		for _, g := range a.given[path] {
			if same(is, g.now) && !same(g.now, g.was) {
				is, again = g.was, true
				break
			}
		}
	}
	return is
}

// unsure is how long after its last pre-image a change counts for a task of which
// the end is not known: its guest was killed, or it runs still.
const unsure = 2 * time.Second

// since says what has become of an entry since the change that is taken back.
func (a *applier) since(h *history, p *pre, is *share.Info) string {
	const cure = " (carrel undo --overwrite takes it back all the same, and can be undone)"
	is = a.origin(string(p.Path), is)
	if h.begin.Kind != setTask {
		if after := h.done[p.I].After; !same(is, after) && !(is == nil && p.Kind == 0) {
			return "it was changed since" + cure
		}
		return ""
	}
	end, when := h.ended, "since the task has ended"
	if end.IsZero() { // the guest went on after its last image was kept, for as long as a write takes
		end, when = h.last.Add(unsure), "after the last time that the guest is known to have written"
	}
	if is != nil && !is.Mode.IsDir() && is.Ctime.After(end) {
		return "it was changed " + when + cure
	}
	return ""
}

// refill writes a kept content.
func (a *applier) refill(id string, p *pre, to *share.Handle) error {
	f, err := a.Undo.folder(id)
	if err != nil {
		return err
	}
	defer f.Close()
	h, info, err := f.Open(blobName(p.I))
	if err != nil {
		return err
	}
	defer h.Close()
	if info.Size != p.Info.Size {
		return fmt.Errorf("%w: of %d bytes %d were kept", ErrDamaged, p.Info.Size, info.Size)
	}
	if err := to.CopyAttributes(h); err != nil {
		return err
	}
	if clone(to, h) == nil {
		return nil
	}
	return copyAll(to, h, info.Size)
}

// moveBack gives a folder that a task has renamed its old name again: its
// content was never kept, since it is all there under the new one.
func (a *applier) moveBack(ctx context.Context, p *pre, h *history) error {
	from, to := "", ""
	switch path := string(p.Path); p.Kind {
	case Folder:
		if _, err := a.Root.Lstat(path); !errors.Is(err, fs.ErrNotExist) || p.Info.Ino == 0 {
			return nil
		}
		to = path
		for n := range h.pres {
			q := &h.pres[n]
			if is, err := a.Root.Lstat(string(q.Path)); q.Kind == 0 && err == nil && is.Mode.IsDir() && is.Ino == p.Info.Ino && is.Dev == p.Info.Dev {
				from = string(q.Path)
			}
		}
	case 0:
		is, err := a.Root.Lstat(path)
		if err != nil || !is.Mode.IsDir() || is.Ino == 0 {
			return nil
		}
		from = path
		for n := range h.pres {
			q := &h.pres[n]
			if q.Kind == Folder && q.Info.Ino == is.Ino && q.Info.Dev == is.Dev {
				to = string(q.Path)
			}
		}
	}
	if from == "" || to == "" || within(to, from) || a.Rules.Judge(from).Hidden || a.Rules.Judge(to).Hidden {
		return nil
	}
	if err := a.w.run(ctx); err != nil { // what comes before it in the undo
		return err
	}
	if err := a.Root.Move(from, to); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// undone notes in a set that one of its steps was taken back.
func (a *applier) undone(id string, i int) error {
	s := a.sources[id]
	if s == nil {
		h, err := a.Undo.read(id)
		if err != nil {
			return err
		}
		f, err := a.Undo.folder(id)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has made room
		}
		if err != nil {
			return err
		}
		log, _, err := f.OpenWritable(undoneName)
		if errors.Is(err, fs.ErrNotExist) {
			log, err = f.Create(undoneName, 0o600)
		}
		if err != nil {
			f.Close()
			return err
		}
		s = &set{id: id, folder: f, log: journal{file: log, at: h.undoneSize}}
		a.sources[id] = s
	}
	return s.log.append(record{Undone: &i})
}
