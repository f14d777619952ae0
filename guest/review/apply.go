package review

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

// Target is one share's folder on the host, and what belongs to it.
type Target struct {
	Root  *share.Root
	Rules *rules.Set
	Store *Store
	Base  *Base
	Undo  *Undo
}

// ApplyOptions say what of a review is applied, and how.
type ApplyOptions struct {
	// Paths are names below the root, of files and of folders with all below
	// them; empty: all.
	Paths []string
	// Accept what needs its own yes. Overwrite what the host has changed.
	Accept, Overwrite bool
	// Ignored takes what the host's ignore rules leave out, too.
	Ignored bool
	// Seen are what Entry.seen gave for all that somebody has looked at; nil: it
	// is not asked. What is none of them is refused.
	Seen map[string]bool
	// DryRun tells everything and does nothing.
	DryRun bool
	// Group joins what one request does in several shares: it is undone at once.
	Group string
}

// Event tells of one entry that was applied, undone, or refused.
type Event struct {
	// Path is relative to the root.
	Path string
	// Refused says why nothing was done; empty: it was.
	Refused string
	Kind    Change
	// Applied, of an undo: the change had been applied from the review.
	Applied bool
}

// Change is how an entry of the host has changed.
type Change uint8

// Changes.
const (
	Added Change = iota + 1
	Changed
	Gone
)

// Apply brings changes into the host's folder, each entry in one step, and
// tells of each once it is on the disk. What is refused stays in the review. An
// error ends it between two entries: the next Apply goes on.
//
// It first finishes what an earlier process had begun. Of two at a time, the
// second is refused with ErrBusy.
func (t *Target) Apply(ctx context.Context, o ApplyOptions, tell func(Event) error) error {
	a, release, err := t.applier(o, tell, false)
	if err != nil {
		return err
	}
	defer release()
	chosen := a.choose()
	if a.opts.DryRun {
		return a.dryRun(chosen)
	}
	if err := a.recover(); err != nil {
		return err
	}
	if len(chosen) == 0 {
		return a.sayAll()
	}
	if a.w.set, err = t.Undo.start(setApply, o.Group); err != nil {
		return err
	}
	return a.finish(a.apply(ctx, chosen), chosen)
}

// ErrBusy means that another process is changing the same folder.
var ErrBusy = errors.New("another apply, discard or undo of this share is running (wait for it)")

// applier is one apply under way.
type applier struct {
	*Target
	opts    ApplyOptions
	w       *putter
	emit    func(Event) error
	all     map[string]*Entry
	entries []Entry
	refused []Event           // said at the end
	made    map[string]bool   // folders that a dry run would have made
	take    map[string]bool   // names that were chosen
	let     map[string]string // stamps of what the guest is to let go of
	quiet   bool              // while recovering
	pending map[string]appliedAs
	sources map[string]*set // of which steps are undone
	given   map[string][]given
	// earlier are the histories of what an undo takes back, returned the entries
	// that come back into the review by it.
	earlier  map[string]*history
	returned map[string]*returned
}

// applier takes the turn to change the folder; wait: after who has it.
func (t *Target) applier(o ApplyOptions, tell func(Event) error, wait bool) (*applier, func(), error) {
	unlock, got, err := t.Store.lock("applying", wait)
	switch {
	case err != nil:
		return nil, nil, err
	case !got:
		return nil, nil, ErrBusy
	}
	a := &applier{Target: t, opts: o, emit: tell, made: map[string]bool{}, pending: map[string]appliedAs{}, sources: map[string]*set{}, earlier: map[string]*history{}, returned: map[string]*returned{}}
	a.w = &putter{root: t.Root, undo: t.Undo, tell: a.settled, settle: a.settle}
	if err := a.load(); err != nil {
		unlock()
		return nil, nil, err
	}
	return a, unlock, nil
}

func (a *applier) load() error {
	if err := a.Store.Reload(); err != nil {
		return err
	}
	a.entries = a.Store.Entries()
	a.all = make(map[string]*Entry, len(a.entries))
	for n := range a.entries {
		a.all[a.entries[n].Name] = &a.entries[n]
	}
	a.let = a.Store.dropped()
	return nil
}

func (a *applier) recover() error {
	a.quiet = true
	defer func() { a.quiet = false }()
	if err := a.w.recoverSets(); err != nil {
		return fmt.Errorf("finish what an earlier apply had begun: %w", err)
	}
	return a.load() // what was done has left the review
}

func (a *applier) refuse(path string, kind Change, why string) {
	a.refused = append(a.refused, Event{Path: path, Refused: clip(why), Kind: kind})
}

func (a *applier) sayAll() error {
	for _, e := range a.refused {
		if err := a.emit(e); err != nil {
			return err
		}
	}
	return nil
}

// choose takes the entries that are to be applied and refuses those that can
// not be, whatever the host has.
func (a *applier) choose() (chosen []*Entry) {
	hit := make([]bool, len(a.opts.Paths))
	take := map[string]bool{}
	a.take = take
	var looks *Comparison
	if a.opts.Seen != nil {
		looks = Compare(a.Root, a.Rules, a.entries)
	}
	for n := range a.entries {
		e := &a.entries[n]
		git := inGit(e.Name)
		selected := len(a.opts.Paths) == 0
		for i, p := range a.opts.Paths {
			if within(e.Name, p) {
				selected, hit[i] = true, true
				git = git && !inGit(p)
			}
		}
		if !selected || git || e.Ignored && !a.opts.Ignored {
			continue
		}
		if !a.wasSeen(e) {
			if !a.nothing(looks, e) {
				a.refuse(e.Name, kindOf(e), unseen)
			}
			continue
		}
		if why := a.never(e); why != "" {
			a.refuse(e.Name, kindOf(e), why)
			continue
		}
		take[e.Name] = true
	}
	for i, p := range a.opts.Paths {
		if !hit[i] && p != "" {
			a.refuse(p, 0, "the review has no change there (carrel diff shows what there is)")
		}
	}
	// New folders on the way to what was chosen are made along with it.
	for name := range take {
		for dir := parent(name); dir != "" && !take[dir]; dir = parent(dir) {
			if e := a.all[dir]; e != nil && (e.Kind == Folder || e.Kind == NewFolder) && a.never(e) == "" {
				if _, err := a.Root.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
					take[dir] = true
				}
			}
		}
	}
	for n := range a.entries {
		if e := &a.entries[n]; take[e.Name] {
			chosen = append(chosen, e)
		}
	}
	slices.SortFunc(chosen, func(x, y *Entry) int { return less(x.Name, y.Name) })
	return chosen
}

func kindOf(e *Entry) Change {
	switch {
	case e.Kind == Removed:
		return Gone
	case e.Base == nil:
		return Added
	}
	return Changed
}

// never says why an entry cannot be applied, whatever the host has. All of it
// was checked when the entry came in; the index has been on a disk since.
func (a *applier) never(e *Entry) string {
	if err := goodName(e.Name); err != nil {
		return "its name " + err.Error()
	}
	if err := share.GoodPath(e.Name); err != nil {
		return err.Error()
	}
	v := a.Rules.Judge(e.Name)
	switch {
	case v.Hidden:
		return v.Reason
	case e.Hidden:
		return "the share's rules hide this name"
	case e.Kind == Other:
		return "it is a device, a pipe or a socket, or has a name that is not UTF-8"
	case e.Kind == File && e.Blob == "" && e.Note != "":
		return e.Note
	case e.Kind == File && e.Blob == "" && e.Ignored:
		return "its content was not brought over from the guest, since the ignore rules here leave it out (carrel start, then the same again: a guest that runs sends it)"
	case e.Kind == File && e.Blob == "":
		return "its content was not brought over from the guest (carrel diff, with the guest running, brings it)"
	}
	if why := warning(e, v); why != "" && !a.opts.Accept {
		return "it needs its own yes: " + why + " (carrel apply --yes)"
	}
	return ""
}

// apply writes what is there in the guest, folders before what is in them, and
// then removes what is not, the deepest first.
func (a *applier) apply(ctx context.Context, chosen []*Entry) error {
	var steps []*step
	for _, e := range chosen {
		steps = append(steps, a.stepOf(e))
	}
	if err := a.w.plan(steps...); err != nil {
		return err
	}
	if err := a.w.set.log.sync(); err != nil {
		return err
	}
	crash("planned")
	for n, e := range chosen {
		if e.Kind == Removed {
			continue
		}
		if e.Kind == File || e.Kind == Link {
			if ok, err := a.clear(ctx, e); err != nil || !ok {
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := a.w.add(ctx, steps[n]); err != nil {
			return err
		}
	}
	if err := a.w.run(ctx); err != nil {
		return err
	}
	for n := len(chosen) - 1; n >= 0; n-- {
		switch e := chosen[n]; e.Kind {
		case Removed:
			ok, err := a.clear(ctx, e)
			if err == nil && ok {
				err = a.w.add(ctx, steps[n])
			}
			if err != nil {
				return err
			}
		case NewFolder:
			if err := a.clearOld(ctx, e); err != nil {
				return err
			}
		}
	}
	return a.w.run(ctx)
}
