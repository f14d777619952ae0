package share

import "sync"

// secondNames counts the hard links that the guest has made itself, by object. A file of which the host has further names
// may be a protected file, or lie outside the folder altogether (a package manager's store, a copy made with cp -al), and
// no name tells. So the guest may write to a file with several names only if the names beyond the first are its own.
//
// The count is of this server's life: a file that was given a second name before is the host's from then on. That a
// hidden file may be read under a second name that the host has given it cannot be known here.
type secondNames struct {
	// mu is held from the look at an object until its name is added or gone. Otherwise two requests could have a name
	// removed that the count of another object stands for.
	mu   sync.Mutex
	made map[object]uint32
}

type object struct{ dev, ino uint64 }

// maxSecondNames bounds the table; what does not fit counts as the host's.
const maxSecondNames = 1 << 16

// addLocked follows a LINK.
func (n *secondNames) addLocked(st *stat) {
	o := object{st.dev, st.ino}
	if _, known := n.made[o]; !known && len(n.made) >= maxSecondNames {
		return
	}
	if n.made == nil {
		n.made = map[object]uint32{}
	}
	n.made[o]++
}

// removeLocked goes before the removal of any name of the object, whoever made that name: too few is safe.
func (n *secondNames) removeLocked(st *stat) {
	o := object{st.dev, st.ino}
	switch n.made[o] {
	case 0:
	case 1:
		delete(n.made, o)
	default:
		n.made[o]--
	}
}

// aliased says that the host may know the file by another name.
func (s *Server) aliased(st *stat) bool {
	if st.kind() != modeRegular || st.nlink < 2 || s.rules.Plain() {
		return false
	}
	s.second.mu.Lock()
	defer s.second.mu.Unlock()
	return st.nlink-1 > s.second.made[object{st.dev, st.ino}]
}
