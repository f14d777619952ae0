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

// What the guest says of a folder that it has removed is one entry; what the
// host has below it may be more than the guest has ever seen. So each entry on
// the host must be one that was served, and unchanged since; one that is not
// keeps the whole folder.

// found is an entry of the host that is to go.
type found struct {
	path string
	is   share.Info
}

// clear removes what the host has below the entry's name, if it has a folder
// there. ok is false if that may not be; it was said then.
func (a *applier) clear(ctx context.Context, e *Entry) (ok bool, err error) {
	for _, p := range a.w.batch {
		if within(p.path, e.Name) { // entries of their own below it
			if err := a.w.run(ctx); err != nil {
				return false, err
			}
			break
		}
	}
	is, err := a.Root.Lstat(e.Name)
	forget(&is)
	if err != nil || !is.Mode.IsDir() {
		return true, nil // the step itself finds out
	}
	why, list, err := a.mayClear(e, &is)
	switch {
	case err != nil:
		return false, err
	case why != "":
		a.refuse(e.Name, kindOf(e), why)
		return false, nil
	}
	return true, a.remove(ctx, list, false)
}

func (a *applier) mayClear(e *Entry, is *share.Info) (why string, list []found, err error) {
	if !Unchanged(e.Base, is) && !a.opts.Overwrite {
		return conflict(e.Base, is), nil, nil
	}
	why, err = a.tree(e.Name, &list)
	return why, list, err
}

// remove removes entries, each if it is still what was found.
func (a *applier) remove(ctx context.Context, list []found, told bool) error {
	steps := make([]*step, len(list))
	for n := range list {
		found := &list[n].is
		steps[n] = &step{path: list[n].path, told: told, judge: func(_ *share.Folder, _ string, is *share.Info) (verdict, error) {
			if is != nil && !same(is, found) {
				return verdict{refused: changing}, nil
			}
			return verdict{}, nil
		}}
		if told { // an undo brings it back as a change of its own
			steps[n].plan.Was = &was{Kind: Removed}
		}
	}
	if err := a.w.plan(steps...); err != nil {
		return err
	}
	for _, s := range steps {
		if err := a.w.add(ctx, s); err != nil {
			return err
		}
	}
	return a.w.run(ctx)
}

// tree lists all below a folder of the host, the deepest first, or says what
// keeps it from being removed.
func (a *applier) tree(dir string, list *[]found) (why string, err error) {
	names, f, err := a.names(dir)
	if err != nil || f == nil {
		return "", err
	}
	defer f.Close()
	for _, name := range names {
		path := dir + "/" + name
		is, err := look(f, name)
		if err != nil || is == nil {
			return "", err
		}
		if why := a.mayRemove(path, is); why != "" {
			return why, nil
		}
		if is.Mode.IsDir() {
			if why, err := a.tree(path, list); err != nil || why != "" {
				return why, err
			}
		}
		if *list = append(*list, found{path, *is}); len(*list) > maxSteps {
			return fmt.Sprintf("it holds more than %d entries on the host", maxSteps), nil
		}
	}
	return "", nil
}

// names lists a folder of the host. f is nil if there is none.
func (a *applier) names(dir string) (names []string, f *share.Folder, err error) {
	f, err = a.Root.Folder(dir)
	if errors.Is(err, fs.ErrNotExist) || share.IsAstray(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	err = f.Names(func(name string) bool {
		names = append(names, name)
		return len(names) <= maxSteps
	})
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	slices.Sort(names)
	return names, f, nil
}

// mayRemove says why an entry of the host stays.
func (a *applier) mayRemove(path string, is *share.Info) string {
	if err := goodName(path); err != nil {
		return fmt.Sprintf("on the host it holds %.100q, of which the name %v", path, err)
	}
	v := a.Rules.Judge(path)
	base, served := a.Base.Look(path)
	switch kind := is.Mode.Type(); {
	case v.Hidden:
		return fmt.Sprintf("on the host it holds %q, which is hidden from the guest", path)
	case kind != 0 && kind != fs.ModeDir && kind != fs.ModeSymlink:
		return fmt.Sprintf("on the host it holds %q, which is a device, a pipe or a socket", path)
	case a.all[path] != nil && a.all[path].Kind == Removed && !a.take[path] && !inGit(path):
		return fmt.Sprintf("on the host it holds %q, of which the removal is not applied", path)
	case a.all[path] == nil && a.dropped(path):
		return fmt.Sprintf("on the host it holds %q, of which the removal was discarded", path)
	case (v.Protected || rules.Warn(path) != "" || !a.Rules.Plain() && inGit(path)) && !a.opts.Accept:
		return fmt.Sprintf("on the host it holds %q, of which the removal needs its own yes (carrel apply --yes)", path)
	case a.opts.Overwrite:
	case !served:
		return fmt.Sprintf("on the host it holds %q, which the guest has not seen", path)
	case !Unchanged(&base, is):
		return fmt.Sprintf("on the host it holds %q, which the host has changed since the guest first saw it", path)
	}
	return ""
}

func (a *applier) dropped(path string) bool {
	_, is := a.let[path]
	return is
}

// clearOld removes what the host has below a folder that the guest has made
// anew: all that is not in the guest's folder of that name.
func (a *applier) clearOld(ctx context.Context, e *Entry) error {
	list, err := a.old(e.Name)
	if err != nil || len(list) == 0 {
		return err
	}
	return a.remove(ctx, list, true)
}

func (a *applier) old(dir string) (list []found, err error) {
	names, f, err := a.names(dir)
	if err != nil || f == nil {
		return nil, err
	}
	defer f.Close()
	for _, name := range names {
		path := dir + "/" + name
		is, err := look(f, name)
		if err != nil {
			return nil, err
		}
		e := a.all[path]
		switch {
		case e == nil && a.let[path] != "":
			continue // the guest's own was applied already, or discarded for the host's
		case is == nil, e != nil && (e.Kind != Folder || !is.Mode.IsDir()):
			continue // replaced by an entry of its own
		case e != nil:
			below, err := a.old(path)
			if err != nil {
				return nil, err
			}
			list = append(list, below...)
			continue
		}
		var below []found
		why := a.mayRemove(path, is)
		if why == "" && is.Mode.IsDir() {
			if why, err = a.tree(path, &below); err != nil {
				return nil, err
			}
		}
		if why != "" {
			a.refuse(path, Gone, why)
			continue
		}
		list = append(append(list, below...), found{path, *is})
	}
	return list, nil
}

// dryRun says what an apply would do.
func (a *applier) dryRun(chosen []*Entry) error {
	for _, e := range chosen {
		ev, err := a.wouldBe(e)
		if err != nil {
			return err
		}
		if ev != nil {
			if err := a.emit(*ev); err != nil {
				return err
			}
		}
		if e.Kind != NewFolder || ev != nil && ev.Refused != "" {
			continue
		}
		list, err := a.old(e.Name)
		if err != nil {
			return err
		}
		for _, f := range list {
			if err := a.emit(Event{Path: f.path, Kind: Gone}); err != nil {
				return err
			}
		}
	}
	return a.sayAll()
}

// wouldBe is nil for what is only on the way.
func (a *applier) wouldBe(e *Entry) (*Event, error) {
	ev := &Event{Path: e.Name}
	var is *share.Info
	dir := parent(e.Name)
	if a.made[dir] {
		dir = ""
	} else {
		f, err := a.Root.Folder(dir)
		switch {
		case e.Kind == Removed && (share.IsAstray(err) || errors.Is(err, fs.ErrNotExist)):
			ev.Kind = Gone
			return ev, nil
		case share.IsAstray(err), errors.Is(err, fs.ErrNotExist):
			ev.Kind, ev.Refused = kindOf(e), fmt.Sprintf("its folder %q is not there on the host, or is none", dir)
			return ev, nil
		case err != nil:
			return nil, err
		}
		defer f.Close()
		if is, err = look(f, base(e.Name)); err != nil {
			return nil, err
		}
		v, err := a.judge(e, f, base(e.Name), is)
		if err != nil {
			return nil, err
		}
		ev.Refused = v.refused
		if is != nil && is.Mode.IsDir() {
			switch e.Kind {
			case Folder, NewFolder:
				if v.same || is.Mode.Perm() == fs.FileMode(e.Mode) {
					return nil, nil
				}
			case File, Link, Removed:
				why, _, err := a.mayClear(e, is)
				if err != nil {
					return nil, err
				}
				ev.Refused = why
			}
		}
	}
	s := a.stepOf(e)
	o := outcome{step: s, before: is}
	ev.Kind = o.change()
	if s.want.kind == Folder && ev.Refused == "" {
		a.made[e.Name] = true
	}
	return ev, nil
}
