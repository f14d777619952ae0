package oci

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"slices"
)

// An EROFS file of ours (Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h in Linux):
//
//	block 0     superblock at 1024
//	blocks 1…   data: the whole blocks of each file, directory and link target, in the order of a walk
//	then        metadata: inodes, each followed by its xattrs and, where it fits, by its last part of a block
//
// Blocks are 4096 bytes, which every kernel can mount; nothing is compressed, so a guest reads at the
// speed of the host's page cache. All inodes are of the extended kind, since the compact
// one has no mtime, and Python takes a stale mtime for a stale .pyc. The order is that of sorted names
// and nothing depends on time, chance or host: the same tree gives the same bytes.
const (
	blockSize  = 4096
	superAt    = 1024
	inodeSize  = 64
	direntSize = 12
	slotSize   = 32 // inode numbers count these from the start of the metadata

	erofsMagic    = 0xe0f5e1e2
	compatSum     = 1 // EROFS_FEATURE_COMPAT_SB_CHKSUM
	compatMtime   = 2
	layoutPlain   = 0
	layoutInline  = 2
	extendedInode = 1
)

// erofs writes a tree whose layers are all applied.
type erofs struct {
	t      *tree
	dst    *os.File
	blocks uint32 // of data, with block 0
	meta   int64  // bytes of metadata
	open   []gap  // blocks of metadata with room left
	inodes uint32
	stats  *Stats

	tail []byte // the last part of the file at hand
	head []byte // its inode

	out    []byte // data not written yet
	outOff int64  // where it goes
}

// gap is what is left of one block of metadata.
type gap struct{ off, free int64 }

// openGaps is how many blocks of metadata wait for an inode that fills them.
const openGaps = 16

// writeErofs writes t to dst and tells its length in bytes.
func writeErofs(ctx context.Context, t *tree, dst *os.File, stats *Stats, report func(done, total int64)) (int64, error) {
	w := &erofs{t: t, dst: dst, blocks: 1, stats: stats, out: make([]byte, 0, 1<<20), outOff: blockSize}
	w.meta = slotSize // inode number 0 would read as "no entry" in a directory
	if err := w.plan(0); err != nil {
		return 0, err
	}
	total := int64(w.blocks)*blockSize + w.meta
	if total/blockSize+2 >= math.MaxUint32 {
		return 0, fmt.Errorf("%w: an EROFS file of %d bytes", ErrTooBig, total)
	}
	// One block more: fsck.erofs 1.5 reads a head of xattrs behind every inode, also where there are none,
	// and calls an image damaged whose last inode ends with it.
	end := (total+blockSize-1)/blockSize*blockSize + blockSize
	// Its size by its last byte: a sandbox on macOS judges a truncation by the file's path, which it was not given.
	if _, err := dst.WriteAt([]byte{0}, end-1); err != nil {
		return 0, err
	}
	if err := w.write(ctx, 0, func() { report(w.outOff+int64(len(w.out)), end) }); err != nil {
		return 0, err
	}
	if err := w.flush(); err != nil {
		return 0, err
	}
	if _, err := dst.WriteAt(w.super(uint32(end/blockSize)), 0); err != nil {
		return 0, err
	}
	report(end, end)
	return end, nil
}

// plan gives the directory and all below it their places, and sorts names.
func (w *erofs) plan(ino uint32) error {
	names := w.t.children(ino)
	n := w.t.inodes.at(ino)
	n.size = 0
	for off := range w.direntBlocks(ino, names) {
		n.size = off
	}
	n.nlink = 2
	if err := w.place(n); err != nil {
		return err
	}
	for _, c := range names {
		d := w.t.dirents.at(c)
		w.stats.Entries++
		w.t.breathe()
		m := w.t.inodes.at(d.ino)
		switch {
		case m.isDir():
			n.nlink++
			if err := w.plan(d.ino); err != nil {
				return err
			}
		case m.nid == 0: // otherwise another name of it came first
			if m.mode&sTYPE == sREG {
				w.stats.Content += m.size
			}
			if err := w.place(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// place gives an inode its number and its blocks.
func (w *erofs) place(n *inode) error {
	full, tail := n.size/blockSize, n.size%blockSize
	head := inodeSize + int64(n.xlen)
	need := head
	if w.inline(n) {
		need += tail
	} else if tail > 0 {
		full++
	}
	if int64(w.blocks)+full >= math.MaxUint32 {
		return fmt.Errorf("%w: more than %d blocks", ErrTooBig, uint32(math.MaxUint32))
	}
	n.block = w.blocks
	w.blocks += uint32(full)
	at := w.allot((need + slotSize - 1) / slotSize * slotSize)
	if at/slotSize > math.MaxUint32 {
		return fmt.Errorf("%w: %d bytes of metadata", ErrTooBig, w.meta)
	}
	n.nid = uint32(at / slotSize)
	w.inodes++
	return nil
}

// inline tells whether the last part of a block follows the inode: it must not cross into another block.
func (w *erofs) inline(n *inode) bool {
	tail := n.size % blockSize
	return tail > 0 && inodeSize+int64(n.xlen)+tail <= blockSize
}

// allot returns where need bytes of metadata go: into the fullest block that has the room, so that
// small files share blocks, else to the end.
func (w *erofs) allot(need int64) int64 {
	best := -1
	for i, g := range w.open {
		if g.free >= need && (best < 0 || g.free < w.open[best].free) {
			best = i
		}
	}
	if best >= 0 {
		g := &w.open[best]
		at := g.off
		g.off, g.free = g.off+need, g.free-need
		if g.free == 0 {
			w.open = slices.Delete(w.open, best, best+1)
		}
		return at
	}
	at := w.meta
	if used := at % blockSize; used+need > blockSize && used != 0 {
		at += blockSize - used
		w.keep(gap{w.meta, at - w.meta})
	}
	w.meta = at + need
	// The rest of the last block is a gap like any other: whoever comes next starts a block or fills it.
	if rest := -w.meta & (blockSize - 1); rest > 0 {
		w.keep(gap{w.meta, rest})
		w.meta += rest
	}
	return at
}

func (w *erofs) keep(g gap) {
	if w.open = append(w.open, g); len(w.open) > openGaps {
		least := slices.MinFunc(w.open, func(a, b gap) int { return cmp.Or(cmp.Compare(a.free, b.free), cmp.Compare(a.off, b.off)) })
		w.open = slices.DeleteFunc(w.open, func(g gap) bool { return g == least })
	}
}

// write writes a directory and all below it, in the order of plan.
func (w *erofs) write(ctx context.Context, ino uint32, report func()) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	n := w.t.inodes.at(ino)
	var names []uint32
	for c := n.child; c != 0; c = w.t.dirents.at(c - 1).next {
		names = append(names, c-1)
	}
	var tail []byte
	for _, b := range w.direntBlocks(ino, names) {
		if tail = b; len(b) == blockSize {
			if err := w.data(b); err != nil {
				return err
			}
			tail = nil
		}
	}
	if err := w.inode(n, tail); err != nil {
		return err
	}
	for _, c := range names {
		w.t.breathe()
		d := w.t.dirents.at(c)
		m := w.t.inodes.at(d.ino)
		var err error
		if m.isDir() {
			err = w.write(ctx, d.ino, report)
		} else if m.child == 0 {
			m.child = 1 // written: it may have more names
			err = w.file(ctx, m)
		}
		if err != nil {
			return err
		}
		report()
	}
	return nil
}

// file writes what is not a directory.
func (w *erofs) file(ctx context.Context, n *inode) error {
	tail := n.size % blockSize
	for off, whole := n.off, n.off+n.size-tail; off < whole; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if len(w.out) == cap(w.out) {
			if err := w.flush(); err != nil {
				return err
			}
		}
		k := min(whole-off, int64(cap(w.out)-len(w.out)))
		at := len(w.out)
		w.out = w.out[:at+int(k)]
		if err := w.t.spool.readAt(w.out[at:], off); err != nil {
			return err
		}
		off += k
	}
	w.tail = slices.Grow(w.tail[:0], blockSize)[:tail]
	if err := w.t.spool.readAt(w.tail, n.off+n.size-tail); err != nil {
		return err
	}
	return w.inode(n, w.tail)
}

// data adds one block, padded.
func (w *erofs) data(b []byte) error {
	if len(w.out) == cap(w.out) {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.out = append(w.out, b...)
	w.out = append(w.out, make([]byte, blockSize-len(b))...)
	return nil
}

func (w *erofs) flush() error {
	_, err := w.dst.WriteAt(w.out, w.outOff)
	w.outOff += int64(len(w.out))
	w.out = w.out[:0]
	return err
}

// inode writes struct erofs_inode_extended, the xattrs, and tail where it is inline; a tail that is
// not becomes the last block of the file's data.
func (w *erofs) inode(n *inode, tail []byte) error {
	b := slices.Grow(w.head[:0], inodeSize+int(n.xlen)+len(tail))[:inodeSize]
	w.head = b
	clear(b)
	le := binary.LittleEndian
	layout := uint16(layoutPlain)
	if w.inline(n) {
		layout = layoutInline
	}
	le.PutUint16(b[0:], extendedInode|layout<<1)
	if n.xlen > 0 {
		le.PutUint16(b[2:], uint16((n.xlen-12)/4+1))
	}
	le.PutUint16(b[4:], n.mode)
	le.PutUint64(b[8:], uint64(n.size))
	switch n.mode & sTYPE {
	case sCHR, sBLK:
		le.PutUint32(b[16:], n.rdev)
	case sREG, sDIR, sLNK:
		le.PutUint32(b[16:], n.block)
	}
	le.PutUint32(b[20:], n.nid) // i_ino: only for tools that want 32 bits
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	le.PutUint64(b[32:], uint64(n.mtime))
	le.PutUint32(b[40:], n.nsec)
	le.PutUint32(b[44:], n.nlink)
	if n.xlen > 0 {
		b = b[:inodeSize+int(n.xlen)]
		if err := w.t.spool.readAt(b[inodeSize:], n.xoff); err != nil {
			return err
		}
	}
	if layout == layoutInline {
		b = append(b, tail...)
	} else if len(tail) > 0 {
		if err := w.data(tail); err != nil {
			return err
		}
	}
	_, err := w.dst.WriteAt(b, int64(w.blocks)*blockSize+int64(n.nid)*slotSize)
	return err
}

// direntBlocks yields the blocks of a directory with the size up to their ends. All but the last are
// blockSize long, padded with NUL. In each, the heads of its entries come first, then their names. Names
// are sorted over the whole directory, with "." and ".." in their places.
func (w *erofs) direntBlocks(ino uint32, names []uint32) func(func(int64, []byte) bool) {
	return func(yield func(int64, []byte) bool) {
		n := w.t.inodes.at(ino)
		var heads, texts []byte
		size := int64(0)
		add := func(name string, nid uint32, kind byte) bool {
			if len(heads)+len(texts)+direntSize+len(name) > blockSize {
				b := w.finishBlock(heads, texts)
				b = append(b, make([]byte, blockSize-len(b))...)
				if size += blockSize; !yield(size, b) {
					return false
				}
				heads, texts = heads[:0], texts[:0]
			}
			heads = binary.LittleEndian.AppendUint64(heads, uint64(nid))
			heads = binary.LittleEndian.AppendUint16(heads, uint16(len(texts))) // finishBlock adds the heads' length
			heads = append(heads, kind, 0)
			texts = append(texts, name...)
			return true
		}
		dots := [...]string{".", ".."}
		next := 0 // of dots
		for i := 0; i <= len(names); i++ {
			var name string
			if i < len(names) {
				name = string(w.t.name(w.t.dirents.at(names[i])))
			}
			for next < len(dots) && (i == len(names) || dots[next] < name) {
				nid := n.nid
				if next == 1 {
					nid = w.t.inodes.at(n.up).nid
				}
				if !add(dots[next], nid, 2) {
					return
				}
				next++
			}
			if i == len(names) {
				break
			}
			m := w.t.inodes.at(w.t.dirents.at(names[i]).ino)
			if !add(name, m.nid, fileType(m.mode)) {
				return
			}
		}
		b := w.finishBlock(heads, texts)
		yield(size+int64(len(b)), b)
	}
}

func (w *erofs) finishBlock(heads, texts []byte) []byte {
	for i := 8; i < len(heads); i += direntSize {
		off := binary.LittleEndian.Uint16(heads[i:])
		binary.LittleEndian.PutUint16(heads[i:], off+uint16(len(heads)))
	}
	return append(slices.Clip(heads), texts...)
}

// fileType is what a directory says of an entry: EROFS_FT_*.
func fileType(mode uint16) byte { return fileTypes[mode&sTYPE] }

var fileTypes = map[uint16]byte{sREG: 1, sDIR: 2, sCHR: 3, sBLK: 4, sFIFO: 5, sLNK: 7}

// super returns block 0.
func (w *erofs) super(blocks uint32) []byte {
	b := make([]byte, blockSize)
	s, le := b[superAt:], binary.LittleEndian
	le.PutUint32(s[0:], erofsMagic)
	le.PutUint32(s[8:], compatSum|compatMtime)
	s[12] = 12 // log2 of blockSize
	le.PutUint16(s[14:], uint16(w.t.inodes.at(0).nid))
	le.PutUint64(s[16:], uint64(w.inodes))
	le.PutUint32(s[36:], blocks)
	le.PutUint32(s[40:], w.blocks) // where metadata starts
	sum := crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli))
	le.PutUint32(s[4:], ^sum) // Linux's crc32c does not invert at the end
	return b
}
