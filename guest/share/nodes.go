package share

import (
	"slices"
	"sync"
)

// tree maps the node ids that the guest was told to places below the root. A node is a name in its parent, not a file
// descriptor: a million of them cost memory only, about 200 bytes each. Ids count up and are never given twice, so a
// forged or stale id finds nothing.
//
// parent and name of a node change only under both Server.topo held exclusively and mu; so whoever holds either may read them.
type tree struct {
	mu   sync.Mutex
	byID map[uint64]*node
	next uint64
	max  int
}

type node struct {
	id      uint64
	parent  *node // nil for the root, and for what was unlinked
	name    string
	kids    map[string]*node
	lookups uint64 // how often the guest was told of it, less what it has forgotten
	handles []*handle

	dev, ino uint64 // the object that was last told
	kind     uint32
	// What the guest was last told, for FOPEN_KEEP_CACHE; settled: the modification lay long enough back that a second
	// one would show in the times. (ctime too: programs that copy set a file's mtime back to what it was.)
	size         uint64
	mtime, ctime timespec
	settled      bool
}

func newTree(limit int) *tree {
	t := &tree{max: limit}
	t.resetLocked()
	return t
}

// resetLocked forgets everything. Ids go on counting.
func (t *tree) resetLocked() {
	t.byID = map[uint64]*node{rootID: {id: rootID, lookups: 1, kind: modeDir}}
	t.next = max(t.next, rootID)
}

// path gives the node's place below the root. A node that was unlinked has none: ESTALE.
func (t *tree) path(id uint64) (*node, string, errno) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil {
		return nil, "", eSTALE
	}
	p, e := n.pathLocked()
	return n, p, e
}

// pathOf gives the place of a node that the caller holds.
func (t *tree) pathOf(n *node) (string, errno) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.pathLocked()
}

func (n *node) pathLocked() (string, errno) {
	var buf [maxPath + 1]byte
	i := len(buf)
	for ; n.parent != nil; n = n.parent {
		if len(n.name)+1 > i {
			return "", eNAMETOOLONG
		}
		i -= len(n.name)
		copy(buf[i:], n.name)
		i--
		buf[i] = '/'
	}
	if n.id != rootID {
		return "", eSTALE
	}
	if i == len(buf) {
		return "", ok
	}
	return string(buf[i+1:]), ok
}

// join is path, '/', name; path may be the root.
func join(path, name string) (string, errno) {
	if path == "" {
		return name, ok
	}
	if len(path)+1+len(name) > maxPath {
		return "", eNAMETOOLONG
	}
	return path + "/" + name, ok
}

// enter counts one lookup of name in parent, and makes the node where the guest had none, or had another object under
// that name (the host has replaced it): the old node lives on for those who have it open, without a place.
func (t *tree) enter(parent *node, name string, st *stat, settled bool) (n *node, fresh bool, e errno) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[parent.id] != parent || parent.parent == nil && parent.id != rootID {
		return nil, false, eSTALE // forgotten or removed while the host was asked
	}
	n = parent.kids[name]
	if n != nil && (!st.same(n.dev, n.ino) || n.kind != st.kind()) {
		t.detachLocked(n)
		n = nil
	}
	if n == nil {
		if len(t.byID) >= t.max {
			return nil, false, eNFILE
		}
		fresh = true
		t.next++
		n = &node{id: t.next, parent: parent, name: name, dev: st.dev, ino: st.ino, kind: st.kind()}
		t.byID[n.id] = n
		if parent.kids == nil {
			parent.kids = map[string]*node{}
		}
		parent.kids[name] = n
	}
	n.lookups++
	n.toldLocked(st, settled)
	return n, fresh, ok
}

func (n *node) toldLocked(st *stat, settled bool) {
	n.size, n.mtime, n.ctime, n.settled = st.size, st.mtime, st.ctime, settled
}

// told remembers the attributes that the guest gets to see now.
func (t *tree) told(n *node, st *stat, settled bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.toldLocked(st, settled)
}

// unchanged says whether the file still is as the guest was last told, so that it may keep what it has cached of it.
func (t *tree) unchanged(n *node, st *stat) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.settled && n.size == st.size && n.mtime == st.mtime && n.ctime == st.ctime
}

// forget takes back lookups, never more than were given.
func (t *tree) forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || id == rootID {
		return
	}
	n.lookups -= min(n.lookups, count)
	t.sweepLocked(n)
}

// sweepLocked drops nodes from n upwards that nothing holds any more.
func (t *tree) sweepLocked(n *node) {
	for n != nil && n.id != rootID && n.lookups == 0 && len(n.kids) == 0 && len(n.handles) == 0 {
		delete(t.byID, n.id)
		parent := n.parent
		t.detachLocked(n)
		n = parent
	}
}

// detachLocked takes a node out of its place. What hung below it has no path from then on either.
func (t *tree) detachLocked(n *node) {
	if n.parent != nil && n.parent.kids[n.name] == n {
		delete(n.parent.kids, n.name)
	}
	n.parent = nil
}

// removed follows an unlink or rmdir.
func (t *tree) removed(parent *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := parent.kids[name]; n != nil {
		t.detachLocked(n)
		t.sweepLocked(n)
	}
}

// renamed follows a rename. The caller holds Server.topo exclusively.
func (t *tree) renamed(from *node, oldName string, to *node, newName string, exchange bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a, b := from.kids[oldName], to.kids[newName]
	if a == b {
		return // one name, or two names that the guest knows nothing of
	}
	for _, n := range []*node{a, b} {
		if n != nil {
			t.detachLocked(n)
		}
	}
	t.placeLocked(a, to, newName)
	if exchange {
		t.placeLocked(b, from, oldName)
	} else if b != nil {
		t.sweepLocked(b)
	}
}

func (t *tree) placeLocked(n, parent *node, name string) {
	if n == nil {
		return
	}
	n.parent, n.name = parent, name
	if parent.kids == nil {
		parent.kids = map[string]*node{}
	}
	parent.kids[name] = n
}

// opened and closed tie a handle to its node.
func (t *tree) opened(n *node, h *handle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.handles = append(n.handles, h)
}

func (t *tree) closed(n *node, h *handle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(n.handles, h); i >= 0 {
		n.handles = slices.Delete(n.handles, i, i+1)
	}
	t.sweepLocked(n)
}

// is says whether st is of the object that the guest was told of as n.
func (t *tree) is(n *node, st *stat) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return st.same(n.dev, n.ino) && n.kind == st.kind()
}
