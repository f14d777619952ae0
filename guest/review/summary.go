package review

import (
	"context"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

// Summary counts a store's changes against what the host has now, without
// reading contents: a file that the host has made equal meanwhile still counts.
// Undoable is left to whoever knows.
func (s *Store) Summary(ctx context.Context, root *share.Root, rs *rules.Set) (*api.ReviewSummary, error) {
	entries, counts := s.Entries(), s.Counts()
	sum := &api.ReviewSummary{Ignored: int32(counts.Ignored), Git: int32(counts.Git), Incomplete: valid(counts.Incomplete)}
	c := Compare(root, rs, entries)
	for i := range entries {
		e := &entries[i]
		if e.Ignored || !e.Hidden && inGit(e.Name) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f := c.Look(e)
		switch f.Does {
		case api.ChangeKind_CHANGE_KIND_ADDED:
			sum.Added++
		case api.ChangeKind_CHANGE_KIND_CHANGED:
			sum.Changed++
		case api.ChangeKind_CHANGE_KIND_REMOVED:
			sum.Removed++
		default:
			continue
		}
		if f.Warning != "" {
			sum.Warnings++
		}
		if f.Conflict != "" {
			sum.Conflicts++
		}
	}
	return sum, nil
}
