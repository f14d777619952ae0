package share

import "math"

// Operations on files: opening takes a path and the rules, the rest goes by the handle.

func parseFlags(flags uint32) (o openMode, e errno) {
	switch flags & oAccMode {
	case oRdonly:
		o.read = true
	case oWronly:
		o.write = true
	case oRdwr:
		o.read, o.write = true, true
	default:
		return o, eINVAL
	}
	o.trunc = flags&oTrunc != 0
	o.append = flags&oAppend != 0
	o.sync = flags&(oSync|oDsync) != 0
	return o, ok
}

// checkOpen asks the rules for what an open does, before anything is opened. What O_TRUNC would cut is not known yet.
func (s *Server) checkOpen(path string, o openMode) errno {
	if o.write || o.trunc {
		if e := s.check(path, actWrite); e != ok {
			return e
		}
	}
	return s.check(path, actRead)
}

// openFile opens the file at path, makes sure that it may be changed if it is to be, keeps its pre-image, and truncates it.
// is, if not nil, says whether it is the object that was meant.
func (s *Server) openFile(path string, o openMode, is func(*stat) bool) (file, stat, errno) {
	writes := o.write || o.trunc
	if writes && s.opts.Before != nil {
		o.read = true // for the pre-image, now or in a later session
	}
	f, st, err := s.back.open(path, o)
	if err != nil {
		return nil, stat{}, s.failure(err)
	}
	e := ok
	switch {
	case is != nil && !is(&st):
		e = eSTALE
	case writes:
		e = s.checkFile(path, f, &st)
	}
	if e == ok && o.trunc {
		if e = s.check(path, cut(&st, 0)); e == ok {
			e = s.truncate(f, &st, 0)
		}
		if e == ok {
			st, err = f.stat()
			e = toErrno(err)
		}
	}
	if e != ok {
		_ = f.close()
		return nil, stat{}, e
	}
	return f, st, ok
}

// checkFile judges the object behind a name that may be written to, and keeps its pre-image.
func (s *Server) checkFile(path string, f file, st *stat) errno {
	if s.aliased(st) {
		return ePERM
	}
	return s.keepFile(path, f, st)
}

func (s *Server) doOpen(r *request) errno {
	o, e := parseFlags(r.args.u32())
	if e != ok {
		return e
	}
	s.topo.RLock()
	defer s.topo.RUnlock()
	n, path, e := s.tree.path(r.node)
	if e != ok {
		return e
	}
	if e = s.checkOpen(path, o); e != ok {
		return e
	}
	switch n.kind {
	case modeRegular:
	case modeDir:
		return eISDIR
	case modeSymlink:
		return eLOOP
	default:
		return eACCES // the host's FIFOs, sockets and devices are listed and stay the host's
	}
	if s.handles.full() {
		return eMFILE
	}
	f, st, e := s.openFile(path, o, func(st *stat) bool { return s.tree.is(n, st) })
	if e != ok {
		return e
	}
	s.served(path, &st)
	if s.opts.Opened != nil {
		s.opts.Opened(path, st.info())
	}
	return s.opened(r, n, f, o, !o.trunc && s.tree.unchanged(n, &st))
}

// opened makes the handle and appends struct fuse_open_out.
func (s *Server) opened(r *request, n *node, f file, o openMode, keepCache bool) errno {
	h := &handle{node: n, file: f, write: o.write, app: o.append}
	h.kept.Store(s.keeping.session.Load())
	if !s.handles.add(h) {
		_ = f.close()
		return eMFILE
	}
	s.tree.opened(n, h)
	var flags uint32
	if keepCache {
		flags = fopenKeepCache
	}
	r.out = le.AppendUint64(r.out, h.fh)
	r.out = le.AppendUint32(r.out, flags)
	r.out = le.AppendUint32(r.out, 0)
	return ok
}

// doCreate makes and opens a file, or opens the one that is there. Whether it was there decides what the quota and the
// rules say, so it is first tried as if it were not.
func (s *Server) doCreate(r *request) errno {
	flags, mode := r.args.u32(), r.args.u32()
	o, e := parseFlags(flags)
	if e != ok {
		return e
	}
	name, e := oneName(r.rest)
	if e != ok {
		return e
	}
	s.topo.RLock()
	defer s.topo.RUnlock()
	parent, path, e := s.at(r.node, name, actCreate)
	if e != ok {
		return e
	}
	if e = s.checkOpen(path, o); e != ok {
		return e
	}
	if s.handles.full() {
		return eMFILE
	}
	f, st, e := s.createFile(path, o, mode&modePerm)
	if flags&oExcl == 0 && (e == eEXIST || e == eNOSPC) {
		why := e
		if f, st, e = s.openFile(path, o, nil); e == eNOENT && why == eNOSPC {
			e = why // there is none, and none can be made
		}
	}
	if e != ok {
		return e
	}
	n, e := s.entry(r, parent, name, path, &st)
	if e != ok {
		_ = f.close()
		return e
	}
	if e = s.opened(r, n, f, o, false); e != ok {
		s.tree.forget(n.id, 1) // the guest never hears of it
	}
	return e
}

// createFile makes a file where none is.
func (s *Server) createFile(path string, o openMode, perm uint32) (file, stat, errno) {
	if e := s.quota.create(); e != ok {
		return nil, stat{}, e
	}
	if e := s.keepPath(path); e != ok {
		s.quota.uncreate()
		return nil, stat{}, e
	}
	if s.opts.Before != nil {
		o.read = true
	}
	f, st, err := s.back.create(path, o, perm)
	if err != nil {
		s.quota.uncreate()
		return nil, stat{}, s.failure(err)
	}
	return f, st, ok
}

// checkOpened judges an action on an open file by the file's present name; without one, only the mode is left to judge by.
func (s *Server) checkOpened(h *handle, a action) errno {
	s.topo.RLock()
	defer s.topo.RUnlock()
	path, _ := s.tree.pathOf(h.node)
	return s.check(path, a)
}

// file gives a reference to an open file of the request's node.
func (s *Server) file(r *request, fh uint64) *handle {
	h := s.handles.get(fh, r.node)
	if h != nil && h.file == nil {
		s.drop(h)
		return nil
	}
	return h
}

// doRead has the host's kernel put the bytes straight where the guest wants them.
func (s *Server) doRead(r *request) errno {
	fh, off, size := r.args.u64(), r.args.u64(), r.args.u32()
	if size > MaxWrite || off > math.MaxInt64-MaxWrite {
		return eINVAL
	}
	h := s.file(r, fh)
	if h == nil {
		return eBADF
	}
	defer s.drop(h)
	room := limit(skip(r.segs[0][:0], r.sink, outHeaderSize), min(int(size), r.room))
	r.segs[0] = room
	n, err := h.file.readAt(room, int64(off))
	if err != nil {
		return toErrno(err)
	}
	r.sent = n
	return ok
}

// doWrite has the host's kernel take the bytes straight from where the guest has them.
func (s *Server) doWrite(r *request) errno {
	fh, off, size := r.args.u64(), r.args.u64(), r.args.u32()
	switch {
	case int64(size) != int64(r.size), size > MaxWrite:
		return eINVAL
	case off > math.MaxInt64-MaxWrite:
		return eFBIG
	}
	h := s.file(r, fh)
	if h == nil || !h.write {
		if h != nil {
			s.drop(h)
		}
		return eBADF
	}
	defer s.drop(h)
	if e := s.keepOpen(h); e != ok {
		return e
	}
	was, err := h.file.stat()
	if err != nil {
		return toErrno(err)
	}
	if h.app {
		off = was.size
	}
	var reserved uint64
	if end := off + uint64(size); end > was.size {
		reserved = end - was.size
	}
	if e := s.quota.reserve(reserved); e != ok {
		return e
	}
	n, err := h.file.writeAt(r.data, int64(off))
	s.settleWith(h.file, reserved, &was)
	if err != nil && n == 0 {
		return toErrno(err)
	}
	r.out = le.AppendUint32(r.out, uint32(n))
	r.out = le.AppendUint32(r.out, 0)
	return ok
}

func (s *Server) doRelease(r *request) errno {
	h := s.handles.remove(r.args.u64(), r.node)
	if h == nil {
		return eBADF
	}
	s.drop(h)
	return ok
}

func (s *Server) doFsync(r *request) errno {
	fh, flags := r.args.u64(), r.args.u32()
	h := s.handles.get(fh, r.node)
	if h == nil {
		return eBADF
	}
	defer s.drop(h)
	if h.file == nil {
		return toErrno(h.dir.sync())
	}
	return toErrno(h.file.sync(flags&fsyncDataOnly != 0))
}

func (s *Server) doFallocate(r *request) errno {
	fh, off, length, mode := r.args.u64(), r.args.u64(), r.args.u64(), r.args.u32()
	switch {
	case off > math.MaxInt64 || length > math.MaxInt64 || length == 0:
		return eINVAL
	case off > math.MaxInt64-length:
		return eFBIG
	}
	switch mode {
	case 0, fallocKeepSize, fallocPunchHole | fallocKeepSize, fallocZeroRange, fallocZeroRange | fallocKeepSize:
	default:
		return eOPNOTSUPP // collapsing and inserting move what others have mapped
	}
	h := s.file(r, fh)
	if h == nil || !h.write {
		if h != nil {
			s.drop(h)
		}
		return eBADF
	}
	defer s.drop(h)
	if mode&(fallocPunchHole|fallocZeroRange) != 0 {
		if e := s.checkOpened(h, actTruncate); e != ok {
			return e
		}
	}
	if e := s.keepOpen(h); e != ok {
		return e
	}
	was, err := h.file.stat()
	if err != nil {
		return toErrno(err)
	}
	reserved := length // blocks may come to all of it, wherever it lies
	if mode&fallocPunchHole != 0 {
		reserved = 0
	}
	if end := off + length; mode&fallocKeepSize == 0 && end > was.size {
		reserved = max(reserved, end-was.size)
	}
	if e := s.quota.reserve(reserved); e != ok {
		return e
	}
	if err := h.file.allocate(mode, int64(off), int64(length)); err != nil {
		s.settleWith(h.file, reserved, &was) // it may have come part of the way
		return toErrno(err)
	}
	s.settleWith(h.file, reserved, &was)
	return ok
}

// doLseek finds data and holes; the guest does the other kinds by itself.
func (s *Server) doLseek(r *request) errno {
	fh, off, whence := r.args.u64(), r.args.u64(), r.args.u32()
	if off > math.MaxInt64 || whence != seekData && whence != seekHole {
		return eINVAL
	}
	h := s.file(r, fh)
	if h == nil {
		return eBADF
	}
	defer s.drop(h)
	at, err := h.file.seek(int64(off), int(whence))
	if err != nil {
		return toErrno(err)
	}
	r.out = le.AppendUint64(r.out, uint64(at))
	return ok
}
