package share

import (
	"errors"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
)

// Pre-images: before the first change of what is at a path in a session, Options.Before gets to see it. All of this is
// nothing without Options.Before.
//
// A path is asked for once: after that, what is there is the guest's own. So whatever lets the guest change an object under
// another path has the first path kept as well (LINK), or keeps all that a folder holds (RENAME of a folder). And below a
// path where nothing was, nothing was: what is there now was made in this session, or brought from where it was kept.
type keeping struct {
	session atomic.Uint64
	mu      sync.Mutex
	paths   map[string]*kept
}

type kept struct {
	done  chan struct{} // closed when e is set
	e     errno
	there bool // something was at the path
}

const (
	// maxKept bounds what one session remembers, at some 150 bytes each. Beyond it changes are refused.
	maxKept = 1 << 20
	// A folder is renamed in one piece if it holds no more than this; of a larger one the guest is told to copy, name by name.
	maxMovedEntries = 4096
	maxMovedBytes   = 256 << 20
	maxMovedNames   = 1 << 16 // of one that the guest has made itself, of which nothing but names are kept
)

// NewSession has the first change of each path kept anew from now on. It waits for requests under way, but for writes to open
// files: those may still count for the session before.
func (s *Server) NewSession() {
	s.topo.Lock()
	defer s.topo.Unlock()
	s.keeping.mu.Lock()
	defer s.keeping.mu.Unlock()
	s.keeping.session.Add(1)
	s.keeping.paths = nil
}

// keep asks for the pre-image of path, unless it was asked for in this session. is is nil if nothing is there.
func (s *Server) keep(path string, is *Info, open func() (Reader, error)) errno {
	k := &s.keeping
	k.mu.Lock()
	if was := k.paths[path]; was != nil {
		k.mu.Unlock()
		<-was.done
		return was.e
	}
	if k.findLocked(path) != nil {
		is, open = nil, nothing
	}
	if len(k.paths) >= maxKept {
		k.mu.Unlock()
		return eNOSPC
	}
	if k.paths == nil {
		k.paths = map[string]*kept{}
	}
	now := &kept{done: make(chan struct{}), e: eNOSPC, there: is != nil}
	k.paths[path] = now
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		if now.e != ok && k.paths[path] == now {
			delete(k.paths, path) // to be tried again
		}
		k.mu.Unlock()
		close(now.done)
	}()
	if err := s.opts.Before.Keep(path, is, open); err == nil {
		now.e = ok
	}
	return now.e
}

// nothing opens what is not there.
func nothing() (Reader, error) { return nil, fs.ErrNotExist }

// findLocked gives what was asked for path, or above it if nothing was there.
func (k *keeping) findLocked(path string) *kept {
	for i := range len(path) {
		if path[i] == '/' {
			if above := k.paths[path[:i]]; above != nil && !above.there {
				return above
			}
		}
	}
	return k.paths[path]
}

// isKept says whether path was asked for in this session, and whether something was there then.
func (s *Server) isKept(path string) (asked, there bool) {
	s.keeping.mu.Lock()
	defer s.keeping.mu.Unlock()
	k := s.keeping.findLocked(path)
	return k != nil, k != nil && k.there
}

// keepPath keeps what is at path, or that nothing is. The caller holds topo, so that the guest cannot move it.
func (s *Server) keepPath(path string) errno {
	if s.opts.Before == nil {
		return ok
	}
	if asked, _ := s.isKept(path); asked {
		return s.keep(path, nil, nothing) // at once, or when it is kept
	}
	st, err := s.back.lstat(path)
	switch s.failure(err) {
	case ok:
		return s.keepStat(path, &st)
	case eNOENT, eNOTDIR, eLOOP: // the last two: what is above it is no folder
		return s.keep(path, nil, nothing)
	}
	return s.failure(err)
}

func (s *Server) keepStat(path string, st *stat) errno {
	is := st.info()
	return s.keep(path, &is, func() (Reader, error) {
		switch st.kind() {
		case modeRegular:
			f, now, err := s.back.open(path, openMode{read: true})
			if err == nil && !now.same(st.dev, st.ino) {
				_ = f.close()
				err = eSTALE
			}
			return &Handle{f: f}, err
		case modeSymlink:
			target, err := s.back.readlink(path)
			return linkReader{strings.NewReader(target)}, err
		}
		return nil, errors.New("neither a file nor a link")
	})
}

// keepFile keeps an open file that is about to be changed.
func (s *Server) keepFile(path string, f file, st *stat) errno {
	if s.opts.Before == nil {
		return ok
	}
	is := st.info()
	return s.keep(path, &is, func() (Reader, error) { return borrowed{&Handle{f: f}}, nil })
}

// keepOpen keeps a file that was opened for writing in an earlier session and is written to in this one.
func (s *Server) keepOpen(h *handle) errno {
	if s.opts.Before == nil || h.kept.Load() == s.keeping.session.Load() {
		return ok
	}
	s.topo.RLock()
	defer s.topo.RUnlock()
	return s.keepOpenLocked(h)
}

func (s *Server) keepOpenLocked(h *handle) errno {
	session := s.keeping.session.Load()
	if s.opts.Before == nil || h.kept.Load() == session {
		return ok
	}
	st, err := h.file.stat()
	if err != nil {
		return toErrno(err)
	}
	// A file that has lost its name, to the guest or to the host's own doing, is nobody's to restore.
	if path, e := s.tree.pathOf(h.node); e == ok {
		if is, err := s.back.lstat(path); err == nil && is.same(st.dev, st.ino) {
			if e := s.keepFile(path, h.file, &st); e != ok {
				return e
			}
		}
	}
	h.kept.Store(session)
	return ok
}

// keepMoved keeps what goes away from one path and what it replaces at another. Of a folder that is all that it holds, unless
// it is of this session's making; and if there was a folder at the other path, all that nothing was in the place of.
func (s *Server) keepMoved(from, to string, st *stat) errno {
	if s.opts.Before == nil {
		return ok
	}
	if st.kind() != modeDir {
		return first(s.keepPath, from, to)
	}
	asked, there := s.isKept(from)
	own := asked && !there
	if asked, there = s.isKept(to); !asked {
		_, err := s.back.lstat(to)
		there = err == nil
	}
	if own && !there {
		return first(s.keepPath, to)
	}
	most := maxMovedEntries
	if own {
		most = maxMovedNames
	}
	names, e := s.namesBelow(from, most, own)
	if e != ok {
		return e
	}
	for _, below := range names {
		if !own {
			e = s.keepPath(from + below)
		}
		if e == ok && (there || below == "") {
			e = s.keepPath(to + below)
		}
		if e != ok {
			return e
		}
	}
	return ok
}

func first(keep func(string) errno, paths ...string) errno {
	for _, p := range paths {
		if e := keep(p); e != ok {
			return e
		}
	}
	return ok
}

// namesBelow lists a folder and all that it holds, as what comes after its own path: "", "/a", "/a/b". A folder with more entries or,
// where their contents are to be kept, more bytes is EXDEV.
func (s *Server) namesBelow(path string, most int, namesOnly bool) ([]string, errno) {
	names, size := []string{""}, uint64(0)
	for i := 0; i < len(names); i++ {
		st, err := s.back.lstat(path + names[i])
		if err != nil {
			return nil, s.failure(err)
		}
		if st.kind() == modeDir {
			var e errno
			if names, e = s.appendNames(names, path, names[i], most); e != ok {
				return nil, e
			}
		} else if st.kind() == modeRegular && !namesOnly {
			size += st.size
		}
		if len(names) > most || size > maxMovedBytes {
			return nil, eXDEV
		}
	}
	return names, ok
}

// appendNames adds the entries of one folder.
func (s *Server) appendNames(names []string, path, below string, most int) ([]string, errno) {
	d, err := s.back.openDir(path + below)
	if err != nil {
		return nil, s.failure(err)
	}
	defer func() { _ = d.close() }()
	for len(names) <= most {
		entry, more, err := d.next()
		switch {
		case err != nil:
			return nil, toErrno(err)
		case !more:
			return names, ok
		case entry.name == "." || entry.name == "..":
			continue
		}
		names = append(names, below+"/"+entry.name)
	}
	return names, ok
}

// borrowed is an open file that its owner closes.
type borrowed struct{ *Handle }

func (borrowed) Close() error { return nil }

// linkReader has a symbolic link's target for contents.
type linkReader struct{ *strings.Reader }

func (linkReader) Close() error { return nil }
