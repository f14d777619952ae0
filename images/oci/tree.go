package oci

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"io/fs"
	"runtime"
	"slices"
)

// tree is the root of an image while its layers are applied: names and attributes. Contents, link
// targets and xattrs lie in the spool. It is made so that a million entries take some 150 MB and
// next to no garbage: indexes for pointers, tables that grow by pieces, names in one arena.
type tree struct {
	spool   *spool
	buf     []byte // for contents on their way
	inodes  table[inode]
	dirents table[dirent]
	names   [][]byte // arena; a name never spans two pieces
	named   int64    // bytes of names
	index   []uint32 // open addressing by (directory, name); 1 + index of a dirent
	seed    maphash.Seed
	room    int // entries that may still be added
	work    int // entries that were touched; see breathe
	layer   uint16
	most    int64 // where the spool may end with this layer, by its Ratio
}

// inode is one file. Number 0 is the root.
type inode struct {
	off, size  int64 // of its contents or link target, in the spool
	mtime      int64 // seconds since 1970
	xoff       int64 // of its xattrs in the spool, as EROFS wants them
	xlen       uint32
	nsec       uint32
	uid, gid   uint32
	rdev       uint32 // as EROFS encodes it
	nlink      uint32 // names that it has; of a directory: 1
	child      uint32 // of a directory: 1 + index of its first dirent
	up         uint32 // of a directory: the directory above
	nid, block uint32 // set by plan; see erofs.go
	mode       uint16 // with the type's bits, as in stat(2)
	depth      uint16 // of a directory: how many are above
	hid        uint16 // of a directory: 1 + the layer that last hid what was in it
}

// dirent is one name. ino 0 means that the name is gone; it may come again.
type dirent struct {
	dir, ino, next uint32 // next is 1 + index
	name           uint32 // into the arena
	layer          uint16 // that wrote it last
	nlen           uint8
}

// The types of files: stat(2).
const (
	sFIFO, sCHR, sDIR, sBLK, sREG, sLNK = 0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o120000
	sTYPE                               = 0o170000
)

func (i *inode) isDir() bool { return i.mode&sTYPE == sDIR }

const (
	arenaPiece = 64 << 10
	maxNames   = 48 << 20 // bytes of all names of a root
)

func newTree(sp *spool, entries int) *tree {
	t := &tree{spool: sp, buf: make([]byte, 64<<10), seed: maphash.MakeSeed(), index: make([]uint32, 1024), room: entries}
	t.inodes.add(inode{mode: sDIR | 0o755, nlink: 1})
	return t
}

// table is a slice that grows without being copied.
type table[T any] struct {
	pieces [][]T
	n      uint32
}

const tablePiece = 1 << 12

func (t *table[T]) add(v T) uint32 {
	if t.n%tablePiece == 0 {
		t.pieces = append(t.pieces, make([]T, tablePiece))
	}
	t.n++
	*t.at(t.n - 1) = v
	return t.n - 1
}

func (t *table[T]) at(i uint32) *T { return &t.pieces[i/tablePiece][i%tablePiece] }

func (t *tree) name(d *dirent) []byte {
	return t.names[d.name/arenaPiece][d.name%arenaPiece:][:d.nlen]
}

// slot is where the name stands in the index, or would.
func (t *tree) slot(dir uint32, name []byte) int {
	var h maphash.Hash
	h.SetSeed(t.seed) // a hostile image cannot choose names that collide
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], dir)
	h.Write(b[:])
	h.Write(name)
	mask := len(t.index) - 1
	for i := int(h.Sum64()) & mask; ; i = (i + 1) & mask {
		if t.index[i] == 0 {
			return i
		}
		if d := t.dirents.at(t.index[i] - 1); d.dir == dir && string(t.name(d)) == string(name) {
			return i
		}
	}
}

// lookup returns the dirent of a living name, or nil.
func (t *tree) lookup(dir uint32, name string) *dirent {
	i := t.index[t.slot(dir, []byte(name))]
	if i == 0 {
		return nil
	}
	if d := t.dirents.at(i - 1); d.ino != 0 {
		return d
	}
	return nil
}

// enter gives ino the name in dir, where the name must be gone or new.
func (t *tree) enter(dir uint32, name string, ino uint32) error {
	s := t.slot(dir, []byte(name))
	if i := t.index[s]; i != 0 {
		d := t.dirents.at(i - 1)
		d.ino, d.layer = ino, t.layer
		return nil
	}
	if t.named += int64(len(name)); t.named > maxNames {
		return fmt.Errorf("%w: more than %d bytes of names", ErrTooBig, maxNames)
	}
	last := len(t.names) - 1
	if last < 0 || len(t.names[last])+len(name) > arenaPiece {
		t.names = append(t.names, make([]byte, 0, arenaPiece))
		last++
	}
	at := uint32(last*arenaPiece + len(t.names[last]))
	t.names[last] = append(t.names[last], name...)
	parent := t.inodes.at(dir)
	n := t.dirents.add(dirent{dir: dir, ino: ino, next: parent.child, name: at, layer: t.layer, nlen: uint8(len(name))})
	parent.child = n + 1
	t.index[s] = n + 1
	if int(t.dirents.n) > len(t.index)/4*3 {
		t.index = make([]uint32, 2*len(t.index))
		for i := range t.dirents.n {
			d := t.dirents.at(i)
			t.index[t.slot(d.dir, t.name(d))] = i + 1
		}
	}
	return nil
}

// breathe is called for every entry that is touched, and now and then collects garbage. A tree has no pointers, so that costs
// next to nothing; without it, the heap of a large image would grow to twice what lives before the
// collector looks.
func (t *tree) breathe() {
	const every, small = 1 << 14, 1 << 17
	if t.work++; t.work%every == 0 && t.dirents.n > small {
		runtime.GC()
	}
}

// count takes one entry from what the limits allow.
func (t *tree) count() error {
	t.breathe()
	if t.room--; t.room < 0 {
		return fmt.Errorf("%w: too many entries", ErrTooBig)
	}
	return nil
}

// add makes a new file under a name that is gone or new.
func (t *tree) add(dir uint32, name string, n inode) (uint32, error) {
	n.nlink = 1
	if n.isDir() {
		above := t.inodes.at(dir)
		if int(above.depth)+1 > maxDepth {
			return 0, fmt.Errorf("%w: more than %d directories deep", ErrTooBig, maxDepth)
		}
		n.up, n.depth = dir, above.depth+1
	}
	ino := t.inodes.add(n)
	return ino, t.enter(dir, name, ino)
}

// dir finds the directory that a path names, within the tree: links are followed, as every runtime
// does when a layer writes through one (usr-merged distributions depend on it), but they can
// lead nowhere else. With create, what is missing is made; without, a missing one is fs.ErrNotExist.
func (t *tree) dir(path string, create bool) (uint32, error) {
	cur, links := uint32(0), 0
	for rest := path; rest != ""; {
		var name string
		name, rest = cut(rest)
		switch name {
		case "", ".":
			continue
		case "..": // only link targets have these
			cur = t.inodes.at(cur).up
			continue
		}
		d := t.lookup(cur, name)
		if d == nil {
			if !create {
				return 0, fs.ErrNotExist
			}
			if len(name) > maxName {
				return 0, fmt.Errorf("%w: a name of more than %d bytes", ErrMalformed, maxName)
			}
			if err := t.count(); err != nil {
				return 0, err
			}
			ino, err := t.add(cur, name, inode{mode: sDIR | 0o755})
			if err != nil {
				return 0, err
			}
			cur = ino
			continue
		}
		switch n := t.inodes.at(d.ino); n.mode & sTYPE {
		case sDIR:
			cur = d.ino
		case sLNK:
			if links++; links > maxLinks {
				return 0, fmt.Errorf("%w: more than %d symbolic links on the way", ErrMalformed, maxLinks)
			}
			target, err := t.spool.read(n.off, int(n.size))
			if err != nil {
				return 0, err
			}
			if target[0] == '/' {
				cur = 0
			}
			rest = string(target) + "/" + rest
		default:
			return 0, fmt.Errorf("%w: %q on the way is not a directory", ErrMalformed, name)
		}
	}
	return cur, nil
}

// cut splits a path at its first slash.
func cut(path string) (name, rest string) {
	for i := range len(path) {
		if path[i] == '/' {
			return path[:i], path[i+1:]
		}
	}
	return path, ""
}

// drop removes a name and all below it.
func (t *tree) drop(d *dirent) {
	n := t.inodes.at(d.ino)
	d.ino = 0
	n.nlink--
	if n.isDir() {
		for c := n.child; c != 0; {
			e := t.dirents.at(c - 1)
			if c = e.next; e.ino != 0 {
				t.drop(e)
			}
		}
	}
}

// hide removes what lower layers have put under a name, and tells whether the name is gone. What the
// layer itself has put there stays, whichever came first in its tar.
func (t *tree) hide(d *dirent) (gone bool) {
	n := t.inodes.at(d.ino)
	if n.isDir() && !t.hideBelow(d.ino) {
		return false
	}
	if d.layer == t.layer {
		return false
	}
	t.drop(d)
	return true
}

// hideBelow hides all names of a directory, and tells whether none is left. A layer that says so
// twice changes nothing: what has come since is its own.
func (t *tree) hideBelow(dir uint32) (empty bool) {
	n := t.inodes.at(dir)
	if n.hid == t.layer+1 {
		return false
	}
	n.hid = t.layer + 1
	empty = true
	for c := n.child; c != 0; {
		e := t.dirents.at(c - 1)
		if c = e.next; e.ino != 0 && !t.hide(e) {
			empty = false
		}
	}
	return empty
}

// children returns the living names of a directory, sorted by their bytes, and leaves the directory
// in that order with no other names in it. It is for when all layers are applied.
func (t *tree) children(dir uint32) []uint32 {
	var all []uint32
	n := t.inodes.at(dir)
	for c := n.child; c != 0; c = t.dirents.at(c - 1).next {
		if t.dirents.at(c-1).ino != 0 {
			all = append(all, c-1)
		}
	}
	slices.SortFunc(all, func(a, b uint32) int {
		return slices.Compare(t.name(t.dirents.at(a)), t.name(t.dirents.at(b)))
	})
	n.child = 0
	for _, c := range slices.Backward(all) {
		t.dirents.at(c).next = n.child
		n.child = c + 1
	}
	return all
}
