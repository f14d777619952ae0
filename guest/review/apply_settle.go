package review

import (
	"errors"

	"github.com/carrel-vm/carrel/guest/share"
)

// appliedAs is the stamp of the entry that was applied, and what stands on the
// host since.
type appliedAs struct {
	stamp string
	after *share.Info
}

// maxPending is how many entries wait to be taken out of the index, which is
// written as a whole. Until then the journal knows.
const maxPending = 4096

// settled is called once changes are on the disk: the base, then the review,
// then who listens.
func (a *applier) settled(ready []outcome) error {
	for n := range ready {
		o := &ready[n]
		if o.refused != "" {
			continue
		}
		if err := a.Base.Rebase(o.step.path, o.after); err != nil {
			return err
		}
		if o.step.plan.Of != "" {
			if err := a.undone(o.step.plan.Of, o.step.plan.At); err != nil {
				return err
			}
			if err := a.bringBack(o); err != nil {
				return err
			}
		}
		if o.step.plan.Entry {
			a.pending[o.step.path] = appliedAs{string(o.step.plan.Stamp), o.after}
		}
	}
	crash("rebased")
	if len(a.pending)+len(a.returned) >= maxPending {
		if err := a.settle(); err != nil {
			return err
		}
	}
	if a.quiet {
		return nil
	}
	for n := range ready {
		o := &ready[n]
		switch {
		case !o.step.told, o.refused == "" && !o.changed && o.step.want.kind == Folder:
			// A part of another one, or a folder that is only on the way.
		case o.refused != "":
			a.refuse(o.step.path, o.change(), o.refused)
		default:
			if err := a.emit(Event{Path: o.step.path, Kind: o.change(), Applied: o.step.applied}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *outcome) change() Change {
	switch {
	case o.step.want.kind == 0:
		return Gone
	case o.before == nil:
		return Added
	}
	return Changed
}

// settle takes what was applied out of the review.
func (a *applier) settle() error {
	err := a.Base.Sync()
	for _, s := range a.sources {
		err = errors.Join(err, s.log.sync())
	}
	if err == nil && len(a.pending) > 0 {
		err = a.Store.applied(a.pending)
	}
	if err == nil {
		err = a.settleBack()
	}
	if err == nil {
		clear(a.pending)
		crash("settled")
	}
	return err
}

// applied takes entries out that were applied, if they are still the ones that
// were. Of those that have come again meanwhile, the host's side is now what
// was applied.
func (s *Store) applied(done map[string]appliedAs) error {
	return s.change(func(idx *index) {
		kept := idx.entries[:0]
		for _, e := range idx.entries {
			d, ok := done[e.Name]
			switch {
			case !ok:
			case e.Stamp != d.stamp:
				e.Base = d.after
			default:
				idx.drop(e.Name, e.Stamp)
				continue
			}
			kept = append(kept, e)
		}
		idx.entries = kept
	})
}

// finish ends a set. After an error its journal stays without an end: the next
// process looks after it, and finds out what the disk still took.
func (a *applier) finish(failed error, chosen []*Entry) error {
	failed = errors.Join(failed, a.w.flush(), a.settle())
	if failed == nil {
		failed = a.w.end()
	} else {
		a.w.set.close()
	}
	for _, s := range a.sources {
		s.close()
	}
	if failed == nil {
		failed = errors.Join(a.tidy(chosen), a.Store.sweep())
	}
	return errors.Join(failed, a.sayAll())
}

// tidy takes folders out of the review that were only on the way to what was
// applied, and below which nothing is left.
func (a *applier) tidy(chosen []*Entry) error {
	way := map[string]bool{}
	for _, e := range chosen {
		for dir := parent(e.Name); dir != "" && !way[dir]; dir = parent(dir) {
			way[dir] = true
		}
	}
	left := a.Store.Entries()
	needed := map[string]bool{}
	gone := map[string]string{}
	for n := len(left) - 1; n >= 0; n-- {
		e := &left[n]
		if e.Kind == Folder && way[e.Name] && !needed[e.Name] {
			if is, err := a.Root.Lstat(e.Name); err == nil && is.Mode.IsDir() {
				gone[e.Name] = e.Stamp
				continue
			}
		}
		needed[parent(e.Name)] = true
	}
	if len(gone) == 0 {
		return nil
	}
	return a.Store.Drop(gone)
}
