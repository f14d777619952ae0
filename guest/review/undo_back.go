package review

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"slices"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

// An undo of an apply brings the changes back into the review: the guest has let
// go of them by then, so no import would. What they were is in the plan of the
// apply. Their contents left the store when nothing named them; what the undo
// takes from the folder is kept in its set, and is the same, unless the host has
// changed it since. What cannot be had in either way does not come back.

// was is what the review had of an entry that was applied.
type was struct {
	Kind    Kind      `json:"kind"`
	Mode    uint32    `json:"mode,omitempty"`
	Size    int64     `json:"size,omitempty"`
	Target  text      `json:"target,omitempty"`
	Mtime   time.Time `json:"mtime,omitzero"`
	Blob    string    `json:"blob,omitempty"`
	Task    string    `json:"task,omitempty"`
	Ignored bool      `json:"ignored,omitempty"`
}

func wasOf(e *Entry) *was {
	return &was{Kind: e.Kind, Mode: e.Mode, Size: e.Size, Target: text(e.Target), Mtime: e.Mtime, Blob: e.Blob, Task: e.Task, Ignored: e.Ignored}
}

// returned is an entry on its way back.
type returned struct {
	Entry
	applied *share.Info // what stood on the host until the undo
	set     *share.Folder
	kept    string // the file of the undo's set that has the content
}

// bringBack notes an entry that was applied, and of which the undo is on the
// disk. The last change of a name is taken back first, and is the one that stays.
func (a *applier) bringBack(o *outcome) error {
	p, after, err := a.plannedIn(o.step.plan.Of, o.step.plan.At)
	if err != nil || p == nil || p.Was == nil {
		return err
	}
	if r := a.returned[o.step.path]; r != nil {
		r.Base = o.after
		return nil
	}
	w := p.Was
	e := Entry{
		Name: o.step.path, Kind: w.Kind, Mode: w.Mode, Size: w.Size, Target: string(w.Target), Mtime: w.Mtime, Stamp: string(p.Stamp),
		Blob: w.Blob, Base: o.after, Task: w.Task, Ignored: w.Ignored, Back: true,
	}
	if e.check() != nil {
		return nil // the journal has been on a disk since
	}
	a.returned[e.Name] = &returned{Entry: e, applied: after, set: a.w.set.folder, kept: blobName(o.step.i)}
	return nil
}

// plannedIn finds a step of an earlier apply, and what stood there after it.
func (a *applier) plannedIn(id string, i int) (*plan, *share.Info, error) {
	h := a.earlier[id]
	if h == nil {
		var err error
		if h, err = a.Undo.read(id); errors.Is(err, fs.ErrNotExist) {
			h = &history{} // it has made room
		} else if err != nil {
			return nil, nil, err
		}
		a.earlier[id] = h
	}
	if h.begin.Kind != setApply || h.done[i] == nil {
		return nil, nil, nil
	}
	n, found := slices.BinarySearchFunc(h.plans, i, func(p plan, i int) int { return p.I - i })
	if !found {
		return nil, nil, nil
	}
	return &h.plans[n], h.done[i].After, nil
}

// settleBack puts what comes back into the index. What the review has under a
// name by now is newer, and only learns what the host has.
func (a *applier) settleBack() error {
	if len(a.returned) == 0 {
		return nil
	}
	var failed error
	err := a.Store.change(func(idx *index) {
		for n := range idx.entries {
			e := &idx.entries[n]
			r := a.returned[e.Name]
			if r == nil {
				continue
			}
			if e.Base == r.applied || e.Base != nil && r.applied != nil && Unchanged(r.applied, e.Base) {
				e.Base = r.Base
			}
			delete(a.returned, e.Name)
		}
		for name, r := range a.returned {
			if r.Kind == File && r.Blob != "" {
				switch err := a.restore(r); {
				case errors.Is(err, ErrDamaged):
					continue // another content: the change is not to be had any more
				case err != nil:
					failed = errors.Join(failed, err)
					continue
				}
			}
			if len(idx.entries) < MaxEntries+maxIgnored {
				idx.entries = append(idx.entries, r.Entry)
				delete(idx.dropped, name)
			}
		}
	})
	if err == nil {
		clear(a.returned)
	}
	return errors.Join(failed, err)
}

// restore brings the content of an entry into the store again: from the undo's
// set, or from the folder, where only the mode was changed. The store's lock is
// held, so nobody sweeps it away before it is named.
func (a *applier) restore(r *returned) error {
	if f, err := a.Store.Blob(r.Blob); err == nil {
		defer f.Close()
		if sum := sha256.New(); copied(sum, f, r.Size) && hex.EncodeToString(sum.Sum(nil)) == r.Blob {
			return nil
		}
	}
	from, err := a.contentOf(r)
	if err != nil {
		return err
	}
	defer from.Close()
	b, err := a.Store.newBlob()
	if err != nil {
		return err
	}
	_, err = io.Copy(b, io.NewSectionReader(from, 0, r.Size+1))
	if err == nil && hex.EncodeToString(b.sum.Sum(nil)) != r.Blob {
		err = ErrDamaged
	}
	if err == nil {
		err = b.file.Sync() // no import brings it a second time
	}
	if err != nil {
		b.abandon()
		return err
	}
	_, err = b.keep()
	return err
}

func copied(to io.Writer, from io.Reader, size int64) bool {
	n, err := io.Copy(to, io.LimitReader(from, size+1))
	return err == nil && n == size
}

func (a *applier) contentOf(r *returned) (*share.Handle, error) {
	if h, _, err := r.set.Open(r.kept); !errors.Is(err, fs.ErrNotExist) {
		return h, err
	}
	f, err := a.Root.Folder(parent(r.Name))
	if err != nil {
		return nil, ErrDamaged
	}
	defer f.Close()
	h, _, err := f.Open(base(r.Name))
	if err != nil {
		return nil, ErrDamaged
	}
	return h, nil
}
