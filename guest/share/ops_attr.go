package share

import "math"

// hold gives a reference to some open file of the node, or nil. What a program has open goes on working after its name has
// gone, and for as long as the host's object under that name is another.
func (s *Server) hold(id uint64, writable bool) *handle {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	n := s.tree.byID[id]
	if n == nil {
		return nil
	}
	return s.handles.hold(n.handles, writable)
}

// drop gives a reference to a handle back, and closes it with the last.
func (s *Server) drop(h *handle) {
	if !s.handles.drop(h) {
		return
	}
	s.tree.closed(h.node, h)
	if h.file == nil {
		_ = h.dir.close()
		return
	}
	if h.unlinked {
		if st, err := h.file.stat(); err == nil && st.nlink == 0 && s.hold(h.node.id, false) == nil {
			s.quota.refund(st.size)
		}
	}
	_ = h.file.close() // an error here would be one of writing back, which FSYNC reports
}

// doGetattr asks an open file where there is one, which needs no path.
func (s *Server) doGetattr(r *request) errno {
	flags := r.args.u32()
	_ = r.args.u32()
	fh := r.args.u64()
	var h *handle
	if flags&getattrFH != 0 {
		if h = s.handles.get(fh, r.node); h == nil {
			return eBADF
		}
		if h.file == nil {
			s.drop(h)
			h = nil
		}
	} else {
		h = s.hold(r.node, false)
	}
	if h != nil {
		defer s.drop(h)
		st, err := h.file.stat()
		if err != nil {
			return toErrno(err)
		}
		return s.attr(r, h.node, &st)
	}
	s.topo.RLock()
	defer s.topo.RUnlock()
	n, path, e := s.here(r.node, actLookup)
	if e != ok {
		return e
	}
	st, e := s.sameObject(n, path)
	if e != ok {
		return e
	}
	return s.attr(r, n, &st)
}

// sameObject stats path and makes sure that it still is what the guest was told of: otherwise ESTALE, upon which the guest's
// kernel looks the name up anew.
func (s *Server) sameObject(n *node, path string) (stat, errno) {
	st, err := s.back.lstat(path)
	switch {
	case err != nil:
		return st, s.failure(err)
	case n.id == rootID && s.back.gone():
		return st, eSTALE
	case n.id != rootID && !s.tree.is(n, &st):
		return st, eSTALE
	}
	return st, ok
}

// attr appends struct fuse_attr_out.
func (s *Server) attr(r *request, n *node, st *stat) errno {
	s.tree.told(n, st, settled(st))
	r.out = le.AppendUint64(r.out, validFor)
	r.out = le.AppendUint64(r.out, 0) // nanoseconds, padding
	r.out = appendAttr(r.out, st, s.inode(st, n), s.opts.UID, s.opts.GID)
	return ok
}

// setattr is struct fuse_setattr_in, without the lock owner.
type setattr struct {
	valid    uint32
	fh, size uint64
	change   change
}

func parseSetattr(a *args) (v setattr, e errno) {
	var mode uint32
	var at, mt timespec
	v.valid = a.u32()
	_ = a.u32()
	v.fh, v.size = a.u64(), a.u64()
	_ = a.u64() // lock owner
	at.sec, mt.sec = int64(a.u64()), int64(a.u64())
	_ = a.u64() // ctime is the host's
	at.nsec, mt.nsec = a.u32(), a.u32()
	_ = a.u32()
	mode = a.u32() & modePerm // set-id and sticky bits are dropped, not refused: `cp -p` and tar set them in passing
	at.now, mt.now = v.valid&fattrAtimeNow != 0, v.valid&fattrMtimeNow != 0
	if v.valid&fattrMode != 0 {
		v.change.mode = &mode
	}
	if v.valid&fattrAtime != 0 {
		v.change.atime = &at
	}
	if v.valid&fattrMtime != 0 {
		v.change.mtime = &mt
	}
	if at.nsec > 999_999_999 || mt.nsec > 999_999_999 {
		return v, eINVAL
	}
	return v, ok
}

// doSetattr sets size, then mode, then times. The owner is the one that is shown, or the change is refused.
func (s *Server) doSetattr(r *request) errno {
	tail := le.Uint64(r.args.b[76:]) // uid, gid
	uid, gid := uint32(tail), uint32(tail>>32)
	v, e := parseSetattr(&r.args)
	if e != ok {
		return e
	}
	if !s.writes {
		return eROFS // also what would be refused or change nothing below
	}
	if v.valid&fattrUID != 0 && uid != s.opts.UID || v.valid&fattrGID != 0 && gid != s.opts.GID {
		return ePERM
	}
	var h *handle
	if v.valid&fattrFH != 0 {
		if h = s.handles.get(v.fh, r.node); h == nil || h.file == nil {
			if h != nil {
				s.drop(h)
			}
			return eBADF
		}
	} else if h = s.hold(r.node, true); h == nil && v.valid&fattrSize == 0 {
		h = s.hold(r.node, false)
	}
	s.topo.RLock()
	defer s.topo.RUnlock()
	n, path, e := s.tree.path(r.node)
	if h != nil {
		defer s.drop(h)
		// An open file is still judged by its name; without one, by how it was opened: one that may only be read may be
		// what a protected name was until the host replaced it.
		if e != ok && !h.write && !s.rules.Plain() {
			return ePERM
		}
		if e == ok {
			if e = s.checkSetattr(path, &v); e != ok {
				return e
			}
		}
		return s.setattrHandle(r, h, path, &v)
	}
	if e != ok {
		return e
	}
	if e = s.checkSetattr(path, &v); e != ok {
		return e
	}
	st, e := s.sameObject(n, path)
	if e != ok {
		return e
	}
	if v.valid&fattrSize != 0 {
		if st.kind() != modeRegular {
			return eINVAL
		}
		f, was, e := s.openFile(path, openMode{write: true}, func(st *stat) bool { return s.tree.is(n, st) })
		if e != ok {
			return e
		}
		if e = s.check(path, cut(&was, v.size)); e == ok {
			e = s.truncate(f, &was, v.size)
		}
		if err := f.close(); e == ok {
			e = toErrno(err)
		}
		if e != ok {
			return e
		}
	}
	if v.change.mode != nil {
		if s.aliased(&st) {
			return ePERM
		}
		if e = s.keepPath(path); e != ok {
			return e
		}
	}
	if v.change != (change{}) {
		if err := s.back.change(path, v.change); err != nil {
			return s.failure(err)
		}
	}
	if st, e = s.sameObject(n, path); e != ok {
		return e
	}
	return s.attr(r, n, &st)
}

func (s *Server) checkSetattr(path string, v *setattr) errno {
	if v.valid&fattrSize != 0 {
		if e := s.check(path, actWrite); e != ok { // whether it is cut short is judged when its length is known
			return e
		}
	}
	return s.check(path, actChange)
}

// setattrHandle changes an open file; path is its name, if it has one.
func (s *Server) setattrHandle(r *request, h *handle, path string, v *setattr) errno {
	was, err := h.file.stat()
	if err != nil {
		return toErrno(err)
	}
	if v.valid&fattrSize != 0 && !h.write {
		return eBADF
	}
	if v.change.mode != nil && s.aliased(&was) {
		return ePERM
	}
	if v.valid&fattrSize != 0 || v.change.mode != nil {
		if e := s.keepOpenLocked(h); e != ok {
			return e
		}
	}
	if v.valid&fattrSize != 0 {
		if e := s.check(path, cut(&was, v.size)); e != ok {
			return e
		}
		if e := s.truncate(h.file, &was, v.size); e != ok {
			return e
		}
	}
	if v.change != (change{}) {
		if err := h.file.change(v.change); err != nil {
			return toErrno(err)
		}
	}
	st, err := h.file.stat()
	if err != nil {
		return toErrno(err)
	}
	return s.attr(r, h.node, &st)
}

// truncate sets a file's length within the quota: a length is counted in full, although it may be sparse on the host.
func (s *Server) truncate(f file, was *stat, size uint64) errno {
	if size > math.MaxInt64 {
		return eFBIG
	}
	var reserved uint64
	if size > was.size {
		reserved = size - was.size
		if e := s.quota.reserve(reserved); e != ok {
			return e
		}
	}
	if err := f.truncate(int64(size)); err != nil {
		s.quota.refund(reserved)
		return toErrno(err)
	}
	s.settleWith(f, reserved, was)
	return ok
}

// settleWith closes an account after a change to f. If the host does not say what became of it, the reservation stands.
func (s *Server) settleWith(f file, reserved uint64, was *stat) {
	if is, err := f.stat(); err == nil {
		s.quota.settle(reserved, was, &is)
	}
}
