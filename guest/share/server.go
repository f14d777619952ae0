package share

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// Options bound a share. The zero value of each bound means its default.
type Options struct {
	// Rules say what the guest may see and change. Without rules it sees nothing; a share without any narrower rule than
	// its mode is one whose rules are Plain. In the modes that leave the folder as it is every change is EROFS, and on
	// Linux even access times stay as they are where the folder's owner (or root) runs the server.
	Rules *rules.Set

	// UID and GID own every entry, as the guest sees it. They say nothing about the host, where entries belong to
	// whoever runs the server.
	UID, GID uint32

	// Served is told of every entry, with its path below the root, when the guest gets to know or opens it. It is called
	// while the guest waits.
	Served func(path string, is Info)
	// Opened is told of every regular file that the guest opens, after Served and in the same way.
	Opened func(path string, is Info)

	// Before keeps what the guest is about to change: see PreImages, and NewSession.
	Before PreImages

	MaxNodes   int    // nodes that the guest remembers at once; default 1,048,576 (about 200 bytes each)
	MaxHandles int    // files and directories open at once; default 4,096
	MaxBytes   uint64 // net growth of the folder in bytes; default 64 GiB
	MaxEntries uint64 // net growth of the folder in entries; default 1,000,000
	MinFree    uint64 // bytes that are always left free on the host's file system; default 256 MiB
}

func (o Options) withDefaults() Options {
	if o.MaxNodes == 0 {
		o.MaxNodes = 1 << 20
	}
	if o.MaxHandles == 0 {
		o.MaxHandles = 4096
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 30
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = 1_000_000
	}
	if o.MinFree == 0 {
		o.MinFree = 256 << 20
	}
	return o
}

// Server answers the FUSE messages of one guest about one folder. All methods may be called at once from several
// goroutines; the carrier bounds how many (four are enough to keep two cores busy).
//
// Locks, in this order: topo, second.mu, tree.mu, handles.mu, quota.mu. Only the first two are held while the host is asked.
type Server struct {
	opts   Options
	root   *Root
	back   backend
	rules  *rules.Set
	writes bool // the mode lets the guest change the folder

	// topo is held shared from the moment a node becomes a path until the host has answered for that path, and exclusively by what
	// moves nodes: RENAME, LINK's second parent apart, and a reset.
	topo    sync.RWMutex
	tree    *tree
	handles *handles
	quota   quota
	second  secondNames
	keeping keeping

	session atomic.Uint32 // protocol minor that was agreed, 0 before INIT
	dead    atomic.Pointer[error]
}

// New serves root. The server owns root from then on, and Close closes it.
func New(root *Root, o Options) *Server {
	o = o.withDefaults()
	s := &Server{opts: o, root: root, back: root.back, tree: newTree(o.MaxNodes), handles: newHandles(o.MaxHandles)}
	s.rules, s.writes = o.Rules, o.Rules.Mode().Writes()
	if !s.writes {
		s.back.seal()
	}
	s.quota = quota{maxBytes: o.MaxBytes, maxEntries: o.MaxEntries, minFree: o.MinFree, free: func() (uint64, error) {
		st, err := s.back.statfs()
		return st.bavail * st.bsize, err
	}}
	if s.writes {
		s.quota.sinceLooked = lookEvery // so that the first growth looks at the floor
	}
	return s
}

// Err is why the server has stopped answering (with anything but EIO), or nil. A panic in a request ends the share it
// belongs to and nothing else.
func (s *Server) Err() error {
	if p := s.dead.Load(); p != nil {
		return *p
	}
	return nil
}

// Reset forgets every node and closes every handle, as for a guest that starts anew: the next message must be INIT. It
// waits for requests under way that look at paths; those on open files finish on their own.
func (s *Server) Reset() {
	s.topo.Lock()
	defer s.topo.Unlock()
	s.tree.mu.Lock()
	s.tree.resetLocked()
	s.tree.mu.Unlock()
	for _, h := range s.handles.all() {
		s.drop(h)
	}
	s.session.Store(0)
}

// Close ends the session and closes the root. Requests that come later, or were under way, answer EIO or EBADF. It may be
// called twice.
func (s *Server) Close() error {
	err := errors.New("share: closed")
	s.dead.CompareAndSwap(nil, &err)
	s.Reset()
	return s.root.Close()
}

// fail marks the server dead after a panic.
func (s *Server) fail(op opcode, cause any) {
	err := fmt.Errorf("share %q: request %d panicked, the share has ended: %v\n%s", s.root.path, op, cause, debug.Stack())
	s.dead.CompareAndSwap(nil, &err)
}
