package share

func (s *Server) doOpendir(r *request) errno {
	s.topo.RLock()
	defer s.topo.RUnlock()
	n, path, e := s.here(r.node, actRead)
	if e != ok {
		return e
	}
	if s.handles.full() {
		return eMFILE
	}
	d, err := s.back.openDir(path)
	if err != nil {
		return s.failure(err)
	}
	h := &handle{node: n, dir: d}
	if !s.handles.add(h) {
		_ = d.close()
		return eMFILE
	}
	s.tree.opened(n, h)
	r.out = le.AppendUint64(r.out, h.fh)
	r.out = le.AppendUint64(r.out, 0)
	return ok
}

func (s *Server) doReaddir(r *request) errno     { return s.list(r, false) }
func (s *Server) doReaddirplus(r *request) errno { return s.list(r, true) }

// list fills one reply with entries from the position that the guest names. With plus, each entry is a LOOKUP as well, and
// counts as one.
func (s *Server) list(r *request, plus bool) errno {
	fh, off, size := r.args.u64(), r.args.u64(), r.args.u32()
	room := min(int(min(size, maxList)), r.room)
	h := s.handles.get(fh, r.node)
	if h == nil {
		return eBADF
	}
	defer s.drop(h)
	if h.dir == nil {
		return eBADF
	}
	s.topo.RLock() // before dirMu: a rename must not move the directory between the names read and the nodes made
	defer s.topo.RUnlock()
	h.dirMu.Lock()
	defer h.dirMu.Unlock()
	if off != h.pos {
		h.holding = false
		if err := h.dir.seek(off); err != nil {
			return toErrno(err)
		}
		h.pos = off
	}
	base, place := s.tree.pathOf(h.node)
	if place == ok {
		if e := s.check(base, actRead); e != ok {
			return e
		}
	} else if !s.rules.Plain() {
		return ok // without a place nothing says which of its names are hidden: it is shown as empty, as a removed folder is
	}
	for {
		if !h.holding {
			e, more, err := h.dir.next()
			if err != nil {
				if len(r.out) > 0 {
					break // said again, and then alone, with the next request
				}
				return toErrno(err)
			}
			if !more {
				break
			}
			h.held, h.holding = e, true
		}
		fits := s.listOne(r, h, room, place == ok, plus, base)
		if !fits {
			if len(r.out) == 0 {
				return eINVAL // room for not even one
			}
			break
		}
		h.pos, h.holding = h.held.next, false
	}
	return ok
}

// listOne appends the held entry if it fits, and a node for it if plus is asked and the directory still has a place.
func (s *Server) listOne(r *request, h *handle, room int, placed, plus bool, base string) bool {
	e := &h.held
	if e.name != "." && e.name != ".." && goodName([]byte(e.name)) != ok {
		return true // the host has a name that cannot be asked for: it is not shown
	}
	dots := e.name == "." || e.name == ".."
	path := ""
	if !dots && placed {
		var bad errno
		if path, bad = join(base, e.name); bad != ok {
			return true // too deep to be asked for
		}
		if s.check(path, actLookup) != ok {
			return true // hidden
		}
	}
	start := len(r.out)
	ino := e.ino
	if e.name == ".." && r.node == rootID {
		ino = s.root.ino // the folder above the share is nobody's business
	}
	if ino == 0 {
		ino = ^uint64(0) // an unknown number, but not 0, which readers take for a deleted entry
	}
	if !plus {
		var fits bool
		r.out, fits = appendDirent(r.out, room, ino, e.next, e.kind, e.name)
		return fits
	}
	if start+entryOutSize+direntSize+(len(e.name)+7)&^7 > room {
		return false
	}
	var st stat
	found := false
	if placed && !dots {
		var err error
		st, err = h.dir.lstat(e.name)
		found = err == nil
	}
	kind := e.kind
	if found {
		n, bad := s.entry(r, h.node, e.name, path, &st)
		if found = bad == ok; found {
			ino, kind = s.inode(&st, n), st.kind()
		}
	}
	if !found {
		// Node id 0 tells the guest to look the name up when it needs it.
		r.out = append(r.out, make([]byte, entryOutSize)...)
	}
	var fits bool
	r.out, fits = appendDirent(r.out, room, ino, e.next, kind, e.name)
	return fits // always: measured above
}
