package share

import (
	"bytes"
	"time"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// Operations on names: (parent node, name). Each holds topo shared from the path to the host's answer, RENAME exclusively.

// validFor is how long the guest may rely on a name or on attributes without asking, in seconds: what C virtiofsd gives with
// cache=auto. A change made on the host shows in the guest after that time at the latest: what is opened a second after the host's
// user has saved it has the new contents, and a name that was removed, replaced or made is seen so. That a name is not there is
// not remembered at all.
const validFor = 1

// settledAfter is how old a modification must be, in seconds, for a later one to be sure to have another time stamp: two,
// for FAT's granularity.
const settledAfter = 2

// at gives the path of name in directory id, and whether the rules allow a there. The caller holds topo.
func (s *Server) at(id uint64, name string, a action) (parent *node, path string, e errno) {
	parent, path, e = s.tree.path(id)
	if e != ok {
		return nil, "", e
	}
	if path, e = join(path, name); e != ok {
		return nil, "", e
	}
	return parent, path, s.check(path, a)
}

// here gives the path of node id itself, and whether the rules allow a there. The caller holds topo.
func (s *Server) here(id uint64, a action) (n *node, path string, e errno) {
	if n, path, e = s.tree.path(id); e != ok {
		return nil, "", e
	}
	return n, path, s.check(path, a)
}

// failure maps the host's error. With the root itself removed, ENOENT would be half the truth.
func (s *Server) failure(err error) errno {
	e := toErrno(err)
	if e == eNOENT && s.back.gone() {
		return eSTALE
	}
	return e
}

func settled(st *stat) bool { return time.Now().Unix()-st.mtime.sec >= settledAfter }

// inode is the number that the guest sees: the host's, made different where the host's folder spans devices.
func (s *Server) inode(st *stat, n *node) uint64 {
	switch {
	case st.ino == 0:
		return n.id
	case st.dev != s.root.dev:
		return st.ino ^ st.dev*0x9e3779b97f4a7c15
	}
	return st.ino
}

// entry appends struct fuse_entry_out and counts the lookup.
func (s *Server) entry(r *request, parent *node, name, path string, st *stat) (*node, errno) {
	n, fresh, e := s.tree.enter(parent, name, st, settled(st))
	if e != ok {
		return nil, e
	}
	if fresh {
		s.served(path, st)
	}
	r.out = s.appendEntry(r.out, n, st)
	return n, ok
}

// served tells whoever asked for it of an entry that the guest gets to know now.
func (s *Server) served(path string, st *stat) {
	if s.opts.Served != nil {
		s.opts.Served(path, st.info())
	}
}

func (s *Server) appendEntry(b []byte, n *node, st *stat) []byte {
	b = le.AppendUint64(b, n.id)
	b = le.AppendUint64(b, 0) // generation: ids are never given twice
	b = le.AppendUint64(b, validFor)
	b = le.AppendUint64(b, validFor)
	b = le.AppendUint64(b, 0) // both in nanoseconds
	return appendAttr(b, st, s.inode(st, n), s.opts.UID, s.opts.GID)
}

func (s *Server) doLookup(r *request) errno {
	name, e := oneName(r.rest)
	if e != ok {
		return e
	}
	s.topo.RLock()
	defer s.topo.RUnlock()
	parent, path, e := s.at(r.node, name, actLookup)
	if e != ok {
		return e
	}
	st, err := s.back.lstat(path)
	if err != nil {
		return s.failure(err)
	}
	_, e = s.entry(r, parent, name, path, &st)
	return e
}

// made wraps what creates an entry without opening it: quota, pre-image (that nothing was there), host, reply.
func (s *Server) made(r *request, name string, a action, host func(path string) (stat, error)) errno {
	s.topo.RLock()
	defer s.topo.RUnlock()
	parent, path, e := s.at(r.node, name, a)
	if e != ok {
		return e
	}
	if e = s.quota.create(); e != ok {
		return e
	}
	if e = s.keepPath(path); e != ok {
		s.quota.uncreate()
		return e
	}
	st, err := host(path)
	if err != nil {
		s.quota.uncreate()
		return s.failure(err)
	}
	_, e = s.entry(r, parent, name, path, &st)
	return e
}

func (s *Server) doMkdir(r *request) errno {
	perm := r.args.u32() & modePerm
	name, e := oneName(r.rest)
	if e != ok {
		return e
	}
	return s.made(r, name, actMkdir, func(path string) (stat, error) { return s.back.mkdir(path, perm) })
}

// doMknod makes regular files. Devices would be the host's, and sockets and FIFOs would reach host programs: EPERM.
func (s *Server) doMknod(r *request) errno {
	mode := r.args.u32()
	name, e := oneName(r.rest)
	if e != ok {
		return e
	}
	if kind := mode & modeType; kind != modeRegular && kind != 0 {
		return ePERM
	}
	return s.made(r, name, actCreate, func(path string) (stat, error) {
		f, st, err := s.back.create(path, openMode{read: true}, mode&modePerm)
		if err != nil {
			return stat{}, err
		}
		return st, f.close()
	})
}

// doSymlink stores a target as data. Wherever it points, only the guest follows it.
func (s *Server) doSymlink(r *request) errno {
	i := bytes.IndexByte(r.rest, 0)
	if i < 0 {
		return eINVAL
	}
	name, e := oneName(r.rest[:i+1])
	if e != ok {
		return e
	}
	target := r.rest[i+1:]
	if len(target) < 2 || bytes.IndexByte(target, 0) != len(target)-1 {
		return eINVAL
	}
	if len(target)-1 > maxTarget {
		return eNAMETOOLONG
	}
	to := string(target[:len(target)-1])
	return s.made(r, name, actSymlink, func(path string) (stat, error) { return s.back.symlink(to, path) })
}

func (s *Server) doReadlink(r *request) errno {
	s.topo.RLock()
	defer s.topo.RUnlock()
	_, path, e := s.here(r.node, actRead)
	if e != ok {
		return e
	}
	target, err := s.back.readlink(path)
	if err != nil {
		return s.failure(err)
	}
	if len(target) > min(r.room, maxTarget) {
		return eNAMETOOLONG
	}
	r.out = append(r.out, target...)
	return ok
}

// doLink gives node oldID a second name in directory r.node. The second name is a node of its own here: the guest sees the
// same inode number and a link count, and caches the two apart.
func (s *Server) doLink(r *request) errno {
	oldID := r.args.u64()
	name, e := oneName(r.rest)
	if e != ok {
		return e
	}
	return s.made(r, name, actLinkTo, func(path string) (stat, error) {
		_, old, e := s.here(oldID, actLinkFrom)
		if e != ok {
			return stat{}, e
		}
		is, err := s.back.lstat(old)
		if err != nil {
			return stat{}, err
		}
		if e := s.moves(is.kind(), old, path); e != ok {
			return stat{}, e
		}
		// What is written through the second name changes the first, whose pre-image would then not be kept.
		if e := s.keepPath(old); e != ok {
			return stat{}, e
		}
		s.second.mu.Lock()
		defer s.second.mu.Unlock()
		st, err := s.back.link(old, path)
		if err == nil {
			s.second.addLocked(&st)
		}
		return st, err
	})
}

func (s *Server) doUnlink(r *request) errno { return s.doRemove(r, actUnlink) }
func (s *Server) doRmdir(r *request) errno  { return s.doRemove(r, actRmdir) }

func (s *Server) doRemove(r *request, a action) errno {
	name, e := oneName(r.rest)
	if e != ok {
		return e
	}
	s.topo.RLock()
	defer s.topo.RUnlock()
	parent, path, e := s.at(r.node, name, a)
	if e != ok {
		return e
	}
	if e = s.keepPath(path); e != ok {
		return e
	}
	s.second.mu.Lock()
	defer s.second.mu.Unlock()
	st, err := s.back.lstat(path)
	if err != nil {
		return s.failure(err)
	}
	if st.remote {
		return ePERM // it would go from the cloud, too
	}
	if a == actRmdir {
		if err := s.back.rmdir(path); err != nil {
			return s.failure(err)
		}
		s.quota.uncreate()
		s.tree.removed(parent, name)
		return ok
	}
	s.second.removeLocked(&st)
	if err := s.back.unlink(path); err != nil {
		return s.failure(err)
	}
	s.lost(parent, name, &st)
	s.tree.removed(parent, name)
	return ok
}

// lost gives back to the quota what the last name of a file took with it; of a file that is still open, at its close.
func (s *Server) lost(parent *node, name string, st *stat) {
	s.quota.uncreate()
	if st.kind() != modeRegular || st.nlink > 1 {
		return
	}
	s.tree.mu.Lock()
	open := false
	if n := parent.kids[name]; n != nil {
		open = s.handles.unlink(n.handles)
	}
	s.tree.mu.Unlock()
	if !open {
		s.quota.refund(st.size)
	}
}

func (s *Server) doRename(r *request) errno {
	return s.rename(r, r.args.u64(), 0)
}

func (s *Server) doRename2(r *request) errno {
	return s.rename(r, r.args.u64(), r.args.u32())
}

// rename holds topo exclusively: no other request's path may change between its check and its use.
func (s *Server) rename(r *request, toID uint64, flags uint32) errno {
	oldName, newName, e := twoNames(r.rest)
	if e != ok {
		return e
	}
	from, to := actRenameFrom, actRenameTo
	switch flags {
	case 0, renameNoReplace:
	case renameExchange:
		from, to = actExchange, actExchange
	default:
		return eINVAL // WHITEOUT would make a device node
	}
	s.topo.Lock()
	defer s.topo.Unlock()
	oldParent, oldPath, e := s.at(r.node, oldName, from)
	if e != ok {
		return e
	}
	newParent, newPath, e := s.at(toID, newName, to)
	if e != ok {
		return e
	}
	m := renaming{from: oldPath, to: newPath, flags: flags}
	if e = s.look(&m); e != ok {
		return e
	}
	if e = s.checkMove(&m); e != ok {
		return e
	}
	if m.replaces {
		s.second.mu.Lock()
		s.second.removeLocked(&m.is)
		s.second.mu.Unlock()
	}
	if err := s.back.rename(oldPath, newPath, m.flags); err != nil {
		return s.failure(err)
	}
	if m.replaces {
		s.lost(newParent, newName, &m.is)
	}
	s.tree.renamed(oldParent, oldName, newParent, newName, flags == renameExchange)
	return ok
}

// renaming is one rename: what is at either end.
type renaming struct {
	from, to string
	flags    uint32
	was, is  stat // at from and, if there is something, at to
	there    bool // something is at to
	replaces bool // it counts as removed: it is another object, and does not go to from
}

func (s *Server) look(m *renaming) errno {
	var err error
	if m.was, err = s.back.lstat(m.from); err != nil {
		return s.failure(err)
	}
	switch m.is, err = s.back.lstat(m.to); {
	case err == nil:
		m.there = true
		m.replaces = m.flags == 0 && (m.is.ino == 0 || !m.was.same(m.is.dev, m.is.ino))
	case s.failure(err) != eNOENT:
		return s.failure(err)
	}
	return ok
}

// checkMove judges the objects of a rename whose names have been judged, and keeps what was at both ends.
func (s *Server) checkMove(m *renaming) errno {
	if s.rules.Mode() == rules.NoDelete && m.flags == 0 {
		if m.replaces {
			return ePERM
		}
		m.flags = renameNoReplace // should something come to be there meanwhile
		if m.there {
			return ok // two names of one object: nothing happens
		}
	}
	if m.replaces && m.is.remote {
		return ePERM
	}
	if e := s.moves(m.was.kind(), m.from, m.to); e != ok {
		return e
	}
	if m.flags == renameExchange && m.there {
		if e := s.moves(m.is.kind(), m.to, m.from); e != ok {
			return e
		}
	}
	if e := s.keepMoved(m.from, m.to, &m.was); e != ok {
		return e
	}
	if m.flags == renameExchange && m.there {
		return s.keepMoved(m.to, m.from, &m.is)
	}
	return ok
}
