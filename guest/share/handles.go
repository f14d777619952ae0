package share

import (
	"sync"
	"sync/atomic"
)

// handles maps the file handles that the guest holds. Numbers count up and are never given twice.
type handles struct {
	mu   sync.Mutex
	byFH map[uint64]*handle
	next uint64
	max  int
}

// handle is one open file or directory. Requests that are under way hold a reference each, the table holds one; the last
// to let go closes, so that a RELEASE never takes the file from under a READ.
type handle struct {
	fh   uint64
	node *node
	refs int // guarded by handles.mu

	file  file          // regular files
	write bool          // opened for writing
	app   bool          // each write goes to the end
	kept  atomic.Uint64 // the session in which its pre-image was asked for
	// unlinked: the name went away while this was open; what it held is given back to the quota at the close.
	unlinked bool // guarded by handles.mu

	dirMu sync.Mutex // one reader of a directory at a time
	dir   dir
	pos   uint64
	// A READDIR stops where its room ends; the entry that did not fit waits here.
	held    dirEntry
	holding bool
}

func newHandles(limit int) *handles { return &handles{byFH: map[uint64]*handle{}, max: limit} }

// full says, before anything is opened, that there is no room for another handle.
func (t *handles) full() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byFH) >= t.max
}

// add gives h its number. With the table full it says no and the caller closes.
func (t *handles) add(h *handle) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.byFH) >= t.max {
		return false
	}
	t.next++
	h.fh, h.refs = t.next, 1
	t.byFH[h.fh] = h
	return true
}

// get takes a reference to the handle fh of node id. A handle of another node is as good as none.
func (t *handles) get(fh, id uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.byFH[fh]
	if h == nil || h.node.id != id {
		return nil
	}
	h.refs++
	return h
}

// hold takes a reference to any of a node's handles that is a file, or nil.
func (t *handles) hold(hs []*handle, writable bool) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range hs {
		if h.refs > 0 && h.file != nil && (!writable || h.write) {
			h.refs++
			return h
		}
	}
	return nil
}

// remove takes a handle out of the table, with the table's own reference.
func (t *handles) remove(fh, id uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.byFH[fh]
	if h == nil || h.node.id != id {
		return nil
	}
	delete(t.byFH, fh)
	return h
}

// drop gives one reference back and says whether it was the last.
func (t *handles) drop(h *handle) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	h.refs--
	return h.refs == 0
}

// all empties the table.
func (t *handles) all() []*handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	hs := make([]*handle, 0, len(t.byFH))
	for fh, h := range t.byFH {
		hs = append(hs, h)
		delete(t.byFH, fh)
	}
	return hs
}

// unlink marks a node's open files as without a name, and says whether there are any.
func (t *handles) unlink(hs []*handle) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	open := false
	for _, h := range hs {
		if h.file != nil && h.refs > 0 {
			h.unlinked, open = true, true
		}
	}
	return open
}
