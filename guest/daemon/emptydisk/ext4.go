// Package emptydisk makes the disks of guests on hosts that have no mkfs: an ext4
// without files, in a virtual disk that takes the room of what was written to it.
//
// What the two formats are: Documentation/filesystems/ext4 of the kernel, and
// Microsoft's [MS-VHDX]. Each is written whole, by one pass over a few dozen
// structures; what is not written reads as zeros, which is what an empty file
// system has there. hcsshim's writer makes file systems that are as large as
// their contents and have no journal.
package emptydisk

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
	"time"
)

// Sizes of the file system, in bytes, blocks or inodes as each says.
const (
	block      = 4096      // bytes
	perGroup   = 8 * block // blocks, as many as a block has bits
	inodeSize  = 256       // bytes
	descriptor = 64        // bytes of a group's
	// roomPerInode is how many bytes of the disk there are for each inode, and
	// on disks below smallDisk: mke2fs.conf's for "ext4" and for "small".
	roomPerInode, roomPerInodeSmall = 16 << 10, 4 << 10
	smallDisk                       = 512 << 20
)

// Inodes that every ext4 has.
const (
	rootInode    = 2
	journalInode = 8
	firstInode   = 11 // which is lost+found's
)

// Features: those of mke2fs, without what is for a later change of the size, and
// with one copy of the superblock instead of one in every few groups: each would
// take a block of the virtual disk.
const (
	compat   = 0x4 | 0x8 | 0x20 | 0x200              // has_journal, ext_attr, dir_index, sparse_super2
	incompat = 0x2 | 0x40 | 0x80 | 0x200             // filetype, extents, 64bit, flex_bg
	roCompat = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400 // sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum
)

// Flags of a group.
const (
	inodesUnused = 1
	blocksUnused = 2
	inodesZero   = 4
)

// piece is what is written at an offset of the disk.
type piece struct {
	at int64
	b  []byte
}

// span is a range of blocks.
type span struct{ from, n int64 }

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// sum is the kernel's crc32c, which inverts neither what it begins with nor what
// it returns.
func sum(seed uint32, b []byte) uint32 { return ^crc32.Update(^seed, castagnoli, b) }

// ext4 is a file system under way.
type ext4 struct {
	blocks, groups, tables int64 // tables: blocks of group descriptors
	inodes                 int64 // of a group
	used                   []span
	next                   int64 // the first block that nothing is in yet
	uuid, hash             [16]byte
	seed                   uint32
	now                    uint32
	pieces                 []piece
}

// makeExt4 returns what is to be written for an empty file system of size bytes,
// of which reserved are for root alone.
func makeExt4(size, reserved, journal int64, uuid, hash [16]byte, now time.Time) []piece {
	e := &ext4{blocks: size / block, uuid: uuid, hash: hash, seed: sum(1<<32-1, uuid[:]), now: uint32(now.Unix())}
	e.groups = (e.blocks + perGroup - 1) / perGroup
	e.tables = (e.groups*descriptor + block - 1) / block
	room := int64(roomPerInode)
	if size < smallDisk {
		room = roomPerInodeSmall
	}
	const perBlock = block / inodeSize
	e.inodes = (min(e.blocks, perGroup)*block/room + perBlock - 1) / perBlock * perBlock

	e.used = []span{{0, 1 + e.tables}}
	e.next = 1 + e.tables
	if e.groups > 1 {
		e.used = append(e.used, span{perGroup, 1 + e.tables}) // the copy
	}
	blockMaps, inodeMaps, inodeTables := e.each(1), e.each(1), e.each(e.inodes/perBlock)
	root, lost, log := e.take(1), e.take(1), e.take(journal/block)

	e.inode(inodeTables[0], rootInode, 0o40755, 3, span{root, 1})
	e.inode(inodeTables[0], journalInode, 0o100600, 1, span{log, journal / block})
	e.inode(inodeTables[0], firstInode, 0o40700, 2, span{lost, 1})
	e.folder(root, rootInode, rootInode, true)
	e.folder(lost, firstInode, rootInode, false)
	e.journal(log, journal/block)

	table := make([]byte, e.tables*block)
	var free int64
	for g := range e.groups {
		free += e.group(table[g*descriptor:][:descriptor], g, blockMaps[g], inodeMaps[g], inodeTables[g])
	}
	super := e.super(free, reserved/block, span{log, journal / block})
	// It lies 1 KiB into the first block, and at the beginning of the copy.
	e.put(1024, seal(super, 0))
	e.put(block, table)
	if e.groups > 1 {
		e.put(perGroup*block, seal(super, 1))
		e.put((perGroup+1)*block, table)
	}
	return e.pieces
}

func (e *ext4) put(at int64, b []byte) { e.pieces = append(e.pieces, piece{at, b}) }

// take takes n blocks in a row.
func (e *ext4) take(n int64) int64 {
	if e.groups > 1 && e.next+n > perGroup && e.next < perGroup+1+e.tables {
		e.next = perGroup + 1 + e.tables // behind the copy
	}
	at := e.next
	e.next += n
	if last := &e.used[len(e.used)-1]; last.from+last.n == at {
		last.n += n
	} else {
		e.used = append(e.used, span{at, n})
	}
	return at
}

// each takes n blocks for every group, all at the disk's beginning.
func (e *ext4) each(n int64) []int64 {
	all := make([]int64, e.groups)
	for g := range all {
		all[g] = e.take(n)
	}
	return all
}

// inodeSeed is what checksums of an inode begin with.
func (e *ext4) inodeSeed(number uint32) uint32 {
	return sum(sum(e.seed, le.AppendUint32(nil, number)), make([]byte, 4)) // of generation 0
}

func (e *ext4) inode(table int64, number uint32, mode, links uint16, content span) {
	b := make([]byte, inodeSize)
	le.PutUint16(b[0x0:], mode)
	le.PutUint32(b[0x4:], uint32(content.n*block))
	for _, at := range []int{0x8, 0xc, 0x10, 0x90} { // read, changed, written, made
		le.PutUint32(b[at:], e.now)
	}
	le.PutUint16(b[0x1a:], links)
	le.PutUint32(b[0x1c:], uint32(content.n*block/512))
	le.PutUint32(b[0x20:], 0x80000) // its content is described by extents
	copy(b[0x28:], extent(content))
	le.PutUint16(b[0x80:], 32) // bytes of the inode beyond the first 128
	s := sum(e.inodeSeed(number), b)
	le.PutUint16(b[0x7c:], uint16(s))
	le.PutUint16(b[0x82:], uint16(s>>16))
	e.put(table*block+int64(number-1)*inodeSize, b)
}

// extent is the 60 bytes of an inode whose content is one run of blocks.
func extent(content span) []byte {
	b := make([]byte, 60)
	le.PutUint16(b[0:], 0xf30a)
	le.PutUint16(b[2:], 1) // of at most
	le.PutUint16(b[4:], 4)
	le.PutUint16(b[16:], uint16(content.n))
	le.PutUint16(b[18:], uint16(content.from>>32))
	le.PutUint32(b[20:], uint32(content.from))
	return b
}

// folder is one block with the entries of a folder.
func (e *ext4) folder(at int64, self, parent uint32, root bool) {
	const tail = 12 // bytes of the entry that holds the checksum
	b := make([]byte, block)
	entries := []struct {
		inode uint32
		name  string
	}{{self, "."}, {parent, ".."}, {firstInode, "lost+found"}}
	if !root {
		entries = entries[:2]
	}
	off := 0
	for i, n := range entries {
		size := (8 + len(n.name) + 3) &^ 3
		if i == len(entries)-1 {
			size = block - tail - off
		}
		le.PutUint32(b[off:], n.inode)
		le.PutUint16(b[off+4:], uint16(size))
		b[off+6], b[off+7] = byte(len(n.name)), 2 // a folder
		copy(b[off+8:], n.name)
		off += size
	}
	le.PutUint16(b[off+4:], tail)
	b[off+7] = 0xde
	le.PutUint32(b[off+8:], sum(e.inodeSeed(self), b[:off]))
	e.put(at*block, b)
}

// journal is the head of one in which nothing waits; it is big endian.
func (e *ext4) journal(at, blocks int64) {
	b := make([]byte, 1024)
	for i, v := range []uint32{0xc03b3998, 4, 0, block, uint32(blocks), 1, 1, 0} {
		binary.BigEndian.PutUint32(b[4*i:], v)
	}
	copy(b[0x30:], e.uuid[:])
	b[0x43] = 1 // file system that uses it
	e.put(at*block, b)
}

// group fills in a group's descriptor, writes its bitmaps where something is in
// it, and returns its free blocks.
func (e *ext4) group(d []byte, g, blockMap, inodeMap, inodeTable int64) (free int64) {
	first := g * perGroup
	size := min(perGroup, e.blocks-first)
	blocks := make([]byte, block)
	free = size
	for _, s := range e.used {
		for at := max(s.from, first); at < min(s.from+s.n, first+size); at++ {
			blocks[(at-first)/8] |= 1 << ((at - first) % 8)
			free--
		}
	}
	fillFrom(blocks, size)
	flags := uint16(inodesZero)
	var blockSum, inodeSum uint32
	if free < size || size < perGroup || g == e.groups-1 {
		e.put(blockMap*block, blocks)
		blockSum = sum(e.seed, blocks)
	} else {
		flags |= blocksUnused
	}
	freeInodes, folders := e.inodes, int64(0)
	if g == 0 {
		inodes := make([]byte, block)
		freeInodes, folders = e.inodes-firstInode, 2
		for i := range firstInode {
			inodes[i/8] |= 1 << (i % 8)
		}
		fillFrom(inodes, e.inodes)
		e.put(inodeMap*block, inodes)
		inodeSum = sum(e.seed, inodes[:e.inodes/8])
	} else {
		flags |= inodesUnused
	}
	for i, at := range []int64{blockMap, inodeMap, inodeTable} {
		le.PutUint32(d[4*i:], uint32(at))
		le.PutUint32(d[0x20+4*i:], uint32(at>>32))
	}
	le.PutUint16(d[0xc:], uint16(free))
	le.PutUint16(d[0xe:], uint16(freeInodes))
	le.PutUint16(d[0x10:], uint16(folders))
	le.PutUint16(d[0x12:], flags)
	le.PutUint16(d[0x18:], uint16(blockSum))
	le.PutUint16(d[0x38:], uint16(blockSum>>16))
	le.PutUint16(d[0x1a:], uint16(inodeSum))
	le.PutUint16(d[0x3a:], uint16(inodeSum>>16))
	le.PutUint16(d[0x1c:], uint16(freeInodes)) // that were never used
	le.PutUint16(d[0x1e:], uint16(sum(sum(e.seed, le.AppendUint32(nil, uint32(g))), d)))
	return free
}

// fillFrom sets the bits that stand for nothing.
func fillFrom(b []byte, from int64) {
	for i := from; i < int64(8*len(b)); i++ {
		b[i/8] |= 1 << (i % 8)
	}
}

func (e *ext4) super(free, reserved int64, journal span) []byte {
	b := make([]byte, 1024)
	long := func(at int, v int64) { le.PutUint32(b[at:], uint32(v)) }
	short := func(at int, v uint16) { le.PutUint16(b[at:], v) }
	long(0x0, e.groups*e.inodes)
	long(0x4, e.blocks)
	long(0x8, reserved)
	long(0xc, free)
	long(0x10, e.groups*e.inodes-firstInode)
	long(0x18, 2) // a block is 1024 << 2 bytes
	long(0x1c, 2)
	long(0x20, perGroup)
	long(0x24, perGroup)
	long(0x28, e.inodes)
	long(0x30, int64(e.now))
	short(0x36, 1<<16-1) // never checked for the number of mounts
	short(0x38, 0xef53)
	short(0x3a, 1) // clean
	short(0x3c, 1) // go on after errors: the mount says otherwise
	long(0x40, int64(e.now))
	long(0x4c, 1)
	long(0x54, firstInode)
	short(0x58, inodeSize)
	long(0x5c, compat)
	long(0x60, incompat)
	long(0x64, roCompat)
	copy(b[0x68:], e.uuid[:])
	long(0xe0, journalInode)
	copy(b[0xec:], e.hash[:])
	b[0xfc] = 1 // half MD4
	b[0xfd] = 1 // what follows at 0x10c is the journal's inode
	short(0xfe, descriptor)
	long(0x100, 0xc) // user_xattr, acl
	long(0x108, int64(e.now))
	copy(b[0x10c:], extent(journal))
	long(0x10c+64, journal.n*block)
	long(0x150, e.blocks>>32)
	long(0x154, reserved>>32)
	long(0x158, free>>32)
	short(0x15c, 32)
	short(0x15e, 32)
	long(0x160, 1) // signed hashes
	b[0x174] = byte(max(4, min(12, bits.Len64(uint64(e.groups-1)))))
	b[0x175] = 1 // crc32c
	if e.groups > 1 {
		long(0x24c, 1) // the group with the copy
	}
	return b
}

// seal is the superblock as it lies in a group.
func seal(super []byte, group uint16) []byte {
	b := append([]byte(nil), super...)
	le.PutUint16(b[0x5a:], group)
	le.PutUint32(b[0x3fc:], sum(1<<32-1, b[:0x3fc]))
	return b
}
