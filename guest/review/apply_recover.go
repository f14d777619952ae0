package review

import (
	"errors"
	"io/fs"

	"github.com/carrel-vm/carrel/guest/share"
)

// Recover finishes or takes back what a process had begun that is no more, so
// that no name of ours is left in the folder. It waits for one that is about to
// stop. Where nothing was begun it does nothing.
func (t *Target) Recover() error {
	a, release, err := t.applier(ApplyOptions{}, nil, true)
	if err != nil {
		return err
	}
	defer release()
	err = a.recover()
	for _, s := range a.sources {
		s.close()
	}
	if err == nil {
		err = a.Store.sweep()
	}
	return err
}

// recoverSets looks after sets that a process began and did not end: what was
// put in place counts as done, what was not is taken back, and no temporary
// name is left. It may be interrupted itself, and begins anew then.
func (w *putter) recoverSets() error {
	ids, err := w.undo.sets()
	if err != nil {
		return err
	}
	var all []error
	for _, id := range ids {
		if _, ended := w.undo.glance(id); ended {
			continue
		}
		h, err := w.undo.read(id)
		switch {
		case err != nil:
			all = append(all, err)
		case h.begin.Kind == "": // it was being begun, or removed
			all = append(all, w.undo.remove(id))
		case h.ended.IsZero() && h.begin.Kind != setTask:
			all = append(all, w.recoverSet(id, h))
		}
	}
	return errors.Join(all...)
}

func (w *putter) recoverSet(id string, h *history) error {
	f, err := w.undo.folder(id)
	if err != nil {
		return err
	}
	log, _, err := f.OpenWritable(journalName)
	if err != nil {
		f.Close()
		return err
	}
	w.set = &set{id: id, folder: f, log: journal{file: log, at: h.size}}
	pres := make(map[int]*pre, len(h.pres))
	for n := range h.pres {
		pres[h.pres[n].I] = &h.pres[n]
	}
	for n := range h.plans {
		p := &h.plans[n]
		s := &step{i: p.I, path: string(p.Path), plan: *p}
		if d := h.done[p.I]; d != nil {
			w.ready = append(w.ready, outcome{step: s, after: d.After, changed: true})
			continue
		}
		o, err := w.recoverStep(s, pres[p.I])
		if err != nil {
			return errors.Join(err, w.set.close())
		}
		if o.changed {
			w.ready = append(w.ready, o)
		}
		if len(w.dirty) < batchSize {
			continue
		}
		if err := w.flush(); err != nil {
			return errors.Join(err, w.set.close())
		}
	}
	if err := errors.Join(w.flush(), w.settle()); err != nil { // before the end is said: nobody looks after it then
		return errors.Join(err, w.set.close())
	}
	return w.end()
}

// recoverStep finds out how far a step came, and leaves it done or not begun.
func (w *putter) recoverStep(s *step, was *pre) (outcome, error) {
	o := outcome{step: s}
	f, err := w.root.Folder(parent(s.path))
	if errors.Is(err, fs.ErrNotExist) || share.IsAstray(err) {
		return o, nil // the host has no such folder any more, and so nothing in it
	}
	if err != nil {
		return o, err
	}
	p := &prepared{step: s, f: f, name: base(s.path), tmp: tmpEntry(w.set.id, s.i)}
	defer p.release()
	now, err := look(f, p.name)
	if err != nil {
		return o, err
	}
	left, err := look(f, p.tmp)
	if err != nil {
		return o, err
	}
	if was == nil { // nothing was touched but the temporary name
		if left != nil {
			err = drop(f, p.tmp, left)
			w.dirt(p)
		}
		return o, err
	}
	aside, err := look(f, p.aside())
	if err != nil {
		return o, err
	}
	o.before = was.Info
	if aside != nil {
		o.changed, err = p.settleAside(was, now, left, aside)
	} else {
		o.changed, err = p.settle(was, now, left)
	}
	w.dirt(p)
	if o.changed && err == nil {
		o.after, err = look(f, p.name)
	}
	return o, err
}

func (was *pre) is(i *share.Info) bool { return i != nil && was.Info != nil && moved(i, was.Info) }

// settle decides by what stands at the two names.
func (p *prepared) settle(was *pre, now, left *share.Info) (changed bool, err error) {
	mine := func(i *share.Info) bool { return i != nil && was.Ino != 0 && i.Ino == was.Ino && i.Dev == was.Dev }
	switch {
	case mine(now) && left == nil:
		return true, nil
	case mine(now) && was.is(left):
		if err := drop(p.f, p.tmp, left); err == nil {
			return true, nil
		}
		fallthrough // a folder with something in it: back
	case mine(now):
		// What came out is not what was kept.
		if err := swapNames(p.f, p.tmp, p.name); err != nil {
			return false, err
		}
		back, err := infoAt(p.f, p.tmp)
		if err == nil && mine(&back) {
			err = drop(p.f, p.tmp, &back)
		}
		return false, err
	case mine(left), left != nil && was.Fresh && was.Ino == 0:
		return false, drop(p.f, p.tmp, left)
	case was.Fresh && was.Ino == 0: // a folder in a file's place, or a file in a folder's, is ours
		return now != nil && was.Info != nil && now.Mode.IsDir() != was.Info.Mode.IsDir(), nil
	case left == nil && was.Ino != 0:
		return false, nil // not begun, or somebody else has been here since
	case left == nil && now != nil: // another mode, if it is one
		return (was.Kind == Folder || was.Kind == File && !was.Kept) && now.Mode != was.Info.Mode, nil
	case left == nil:
		return was.Kind != 0, nil
	case now == nil && was.Ino == 0 && was.is(left):
		return true, drop(p.f, p.tmp, left)
	case now == nil:
		return false, p.f.Rename(p.tmp, p.name)
	case was.is(left):
		return false, drop(p.f, p.tmp, left) // kept, and something newer stands there
	}
	return false, nil
}
