package share

// doInit agrees on the protocol. It is answered once; a guest that starts anew says so with DESTROY or through its device.
func (s *Server) doInit(r *request) errno {
	major, minor, readahead, flags := r.args.u32(), r.args.u32(), r.args.u32(), r.args.u32()
	switch {
	case major > protoMajor:
		// The kernel sends INIT again with our major, as fuse.h has it; the rest of this reply is not read.
		minor, flags = protoMinor, 0
	case major < protoMajor || minor < protoOldest:
		return ePROTO
	default:
		minor = min(minor, protoMinor)
		if !s.session.CompareAndSwap(0, minor) {
			return eIO
		}
	}
	b := r.out
	b = le.AppendUint32(b, protoMajor)
	b = le.AppendUint32(b, minor)
	b = le.AppendUint32(b, min(readahead, MaxWrite))
	b = le.AppendUint32(b, flags&initWanted)
	b = le.AppendUint16(b, 64) // max_background: requests that the guest may have under way unasked (read-ahead)
	b = le.AppendUint16(b, 48) // congestion_threshold
	b = le.AppendUint32(b, MaxWrite)
	b = le.AppendUint32(b, 1) // time_gran in ns
	b = le.AppendUint16(b, maxPages)
	r.out = append(b, make([]byte, initOutSize-30)...)
	return ok
}

// doDestroy ends the session: everything is closed and forgotten.
func (s *Server) doDestroy(*request) errno {
	s.Reset()
	return ok
}

// doNothing takes INTERRUPT and NOTIFY_REPLY. No request here waits for anything but the host's file system, and FUSE lets
// a server ignore interrupts.
func (s *Server) doNothing(*request) errno { return ok }

func (s *Server) doForget(r *request) errno {
	s.tree.forget(r.node, r.args.u64())
	return ok
}

// doBatchForget takes as many pairs as the message holds; its own count is not believed beyond that.
func (s *Server) doBatchForget(r *request) errno {
	count := min(int(r.args.u32()), r.size/16)
	var pair [16]byte
	for i := range count {
		copyOut(pair[:], r.data, i*16)
		s.tree.forget(le.Uint64(pair[0:]), le.Uint64(pair[8:]))
	}
	return ok
}

// doStatfs tells the host's figures, and no more room than the quota leaves.
func (s *Server) doStatfs(r *request) errno {
	st, err := s.back.statfs()
	if err != nil {
		return toErrno(err)
	}
	bytes, entries := s.quota.left()
	if st.bsize == 0 {
		st.bsize = 4096
	}
	floor := s.opts.MinFree / st.bsize
	b := r.out
	b = le.AppendUint64(b, st.blocks)
	b = le.AppendUint64(b, min(st.bfree, bytes/st.bsize))
	b = le.AppendUint64(b, min(st.bavail-min(st.bavail, floor), bytes/st.bsize))
	b = le.AppendUint64(b, st.files)
	b = le.AppendUint64(b, min(st.free, entries))
	b = le.AppendUint32(b, uint32(min(st.bsize, 1<<20)))
	b = le.AppendUint32(b, maxName)
	b = le.AppendUint32(b, uint32(min(st.bsize, 1<<20))) // frsize
	r.out = append(b, make([]byte, statfsOutSize-len(b))...)
	return ok
}
