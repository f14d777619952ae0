package review

import "context"

// Discard takes changes out of the review, and returns how many. The guest
// learns of it at the next import; until then it keeps them for itself.
func (t *Target) Discard(_ context.Context, paths []string) (int, error) {
	unlock, got, err := t.Store.lock("applying", false)
	switch {
	case err != nil:
		return 0, err
	case !got:
		return 0, ErrBusy
	}
	defer unlock()
	if err := t.Store.Reload(); err != nil {
		return 0, err
	}
	n := 0
	names := map[string]string{}
	left := t.Store.Entries()
	hit := make([]bool, len(paths))
	for i := range left {
		e := &left[i]
		if !selected(e.Name, paths, hit) {
			continue
		}
		names[e.Name] = e.Stamp
		if e.Kind != Folder || e.Note != "" {
			n++
		}
	}
	return n, t.Store.Drop(names)
}
