package agent

import (
	"bytes"
	"encoding/binary"
	"sync"
	"time"
)

// Requests of include/uapi/linux/fuse.h that are about names, and where their
// names begin after struct fuse_in_header.
const (
	fuseLookup  = 1  // the name
	fuseSymlink = 6  // the name, and a target
	fuseMknod   = 8  // struct fuse_mknod_in, the name
	fuseMkdir   = 9  // struct fuse_mkdir_in, the name
	fuseRename  = 12 // struct fuse_rename_in, the old name, the new one
	fuseLink    = 13 // struct fuse_link_in, the name
	fuseCreate  = 35 // struct fuse_create_in, the name
	fuseRename2 = 45 // struct fuse_rename2_in, the old name, the new one

	inHeader = 40
)

var beforeName = map[uint32]int{fuseSymlink: 0, fuseMknod: 16, fuseMkdir: 8, fuseLink: 8, fuseCreate: 16}

const (
	// freshFor is how long an answer about a name may be relied upon; what the
	// share server gives (validFor), and what docs/sharing.md promises.
	freshFor = time.Second
	// maxFresh bounds the folders that are remembered, maxFreshNames the names of
	// each; of a folder with more, none is remembered.
	maxFresh      = 256
	maxFreshNames = 256
)

// fresh knows of each folder that the guest has made within the last second
// which names it cannot have: it was empty then, and what the guest has put
// there since has passed here. Before it makes a file the kernel asks whether
// there is one, so a tree that is unpacked costs one question less for every
// name.
//
// What somebody on the host puts there meanwhile is seen after that second, as it
// is for a name that was looked at; an exclusive create is the host's to judge.
type fresh struct {
	mu     sync.Mutex
	now    func() time.Time
	making map[uint64]time.Time  // requests to make a folder, by their number: when they came
	dirs   map[uint64]*newFolder // by node
}

type newFolder struct {
	until time.Time
	names map[string]struct{} // that it may have
}

func newFresh() *fresh {
	return &fresh{now: time.Now, making: map[uint64]time.Time{}, dirs: map[uint64]*newFolder{}}
}

// forget has every name looked up again.
func (f *fresh) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.making)
	clear(f.dirs)
}

// asked takes note of a request of the kernel's, a whole message. It says whether
// that is for a name that is not there, and needs no other answer.
func (f *fresh) asked(m []byte) (absent bool) {
	op, unique, node := binary.LittleEndian.Uint32(m[4:]), binary.LittleEndian.Uint64(m[8:]), binary.LittleEndian.Uint64(m[16:])
	f.mu.Lock()
	defer f.mu.Unlock()
	body := m[inHeader:]
	switch op {
	case fuseLookup:
		d := f.dirs[node]
		if d == nil {
			return false
		}
		if !f.now().Before(d.until) {
			delete(f.dirs, node)
			return false
		}
		name, _, ok := bytes.Cut(body, []byte{0})
		_, there := d.names[string(name)]
		return ok && !there
	case fuseRename, fuseRename2:
		skip := 8
		if op == fuseRename2 {
			skip = 16
		}
		if len(body) < skip {
			return false
		}
		to := binary.LittleEndian.Uint64(body)
		from, rest, _ := bytes.Cut(body[skip:], []byte{0})
		name, _, _ := bytes.Cut(rest, []byte{0})
		f.nameLocked(node, from) // they may be exchanged
		f.nameLocked(to, name)
	case fuseSymlink, fuseMknod, fuseMkdir, fuseLink, fuseCreate:
		skip := beforeName[op]
		if len(body) < skip {
			return false
		}
		name, _, _ := bytes.Cut(body[skip:], []byte{0})
		f.nameLocked(node, name)
		if op == fuseMkdir && len(f.making) < maxFresh {
			f.making[unique] = f.now()
		}
	}
	return false
}

// nameLocked notes that a folder may have a name from now on.
func (f *fresh) nameLocked(node uint64, name []byte) {
	d := f.dirs[node]
	switch {
	case d == nil:
	case len(d.names) >= maxFreshNames:
		delete(f.dirs, node)
	default:
		d.names[string(name)] = struct{}{}
	}
}

// answered takes note of an answer of the host's, a whole message.
func (f *fresh) answered(m []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.making) == 0 {
		return
	}
	unique := binary.LittleEndian.Uint64(m[8:])
	since, ok := f.making[unique]
	if !ok {
		return
	}
	delete(f.making, unique)
	if binary.LittleEndian.Uint32(m[4:]) != 0 || len(m) < outHeader+8 {
		return // it was not made
	}
	if len(f.dirs) >= maxFresh {
		f.thinLocked()
	}
	node := binary.LittleEndian.Uint64(m[outHeader:]) // of struct fuse_entry_out
	f.dirs[node] = &newFolder{until: since.Add(freshFor), names: map[string]struct{}{}}
}

// thinLocked makes room: of those whose time is up, or of all.
func (f *fresh) thinLocked() {
	now := f.now()
	for node, d := range f.dirs {
		if !now.Before(d.until) {
			delete(f.dirs, node)
		}
	}
	if len(f.dirs) >= maxFresh {
		clear(f.dirs)
	}
}
