package review

import (
	"context"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
)

// diff emits the changes of all shares, and what there is beside them if that
// was asked for.
func (s *server) diff(ctx context.Context, r *api.DiffRequest) error {
	beside := &api.Beside{}
	var why []string
	err := s.each(r.GetPaths(), func(o *opened) error {
		c := o.Store.Counts()
		beside.Ignored += int32(c.Ignored)
		beside.Git += int32(c.Git)
		if c.Incomplete != "" {
			why = append(why, valid(c.Incomplete))
		}
		return s.diffOf(ctx, o, r)
	})
	if err != nil || !r.GetBeside() {
		return err
	}
	beside.Incomplete = strings.Join(why, "; ")
	return s.emit(&api.Change{Beside: beside})
}

func (s *server) diffOf(ctx context.Context, o *opened, r *api.DiffRequest) error {
	opts := DiffOptions{Paths: o.paths, NoText: r.GetNoText(), Context: int(min(r.GetContext(), maxDiffContext)), Ignored: r.GetIgnored()}
	return o.Store.Diff(ctx, o.Root, o.Rules, opts, func(c *api.Change) error { return s.emit(c) })
}

// summary adds up what the shares have.
func (s *server) summary(ctx context.Context) error {
	all := &api.ReviewSummary{}
	var why []string
	groups := map[string]bool{}
	err := s.each(nil, func(o *opened) error {
		sum, err := o.Store.Summary(ctx, o.Root, o.Rules)
		if err != nil {
			return err
		}
		all.Added += sum.GetAdded()
		all.Changed += sum.GetChanged()
		all.Removed += sum.GetRemoved()
		all.Warnings += sum.GetWarnings()
		all.Conflicts += sum.GetConflicts()
		all.Ignored += sum.GetIgnored()
		all.Git += sum.GetGit()
		if w := sum.GetIncomplete(); w != "" {
			why = append(why, w)
		}
		sets, err := o.Undo.Undoable("")
		for _, u := range sets {
			switch { // what one request did, or one task, is undone at once
			case u.Group != "":
				groups[u.Group] = true
			case u.Task != "":
				groups["task "+u.Task] = true
			default:
				groups["set "+u.ID] = true
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	all.Undoable, all.Incomplete = int32(len(groups)), strings.Join(why, "; ")
	return s.emit(all)
}
