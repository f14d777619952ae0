package share

import "github.com/carrel-vm/carrel/guest/share/rules"

// action is what a request would do to one path.
type action uint8

const (
	actLookup   action = iota // learn that it is there, its size, mode and times
	actRead                   // open for reading, list, read a link
	actWrite                  // open for writing, allocate, make longer
	actTruncate               // lose bytes: cut short, punch a hole, zero a range
	actChange                 // mode or times
	actCreate                 // make a file
	actMkdir
	actSymlink
	actUnlink
	actRmdir
	actRenameFrom // goes away from here
	actRenameTo   // arrives here, in place of what is there
	actExchange   // either side of an exchange
	actLinkFrom   // gets a second name
	actLinkTo     // is the second name
)

// changes says whether an action alters the host's folder.
func (a action) changes() bool { return a >= actWrite }

// arrives says whether something is to be at the path afterwards that was not there.
func (a action) arrives() bool {
	switch a {
	case actCreate, actMkdir, actSymlink, actRenameTo, actExchange, actLinkTo:
		return true
	}
	return false
}

// folderOnly says whether an action would make something else than a folder of a name that protected names may lie below,
// change such a thing where the host has one (a file `.git` says where hooks are), or move the folder: all but making,
// listing and removing a folder.
func (a action) folderOnly() bool {
	return a.changes() && a != actMkdir && a != actRmdir && a != actChange
}

// loses says whether an action destroys what the host has. RENAME onto a name is made not to: see Server.rename.
func (a action) loses() bool { return a == actTruncate || a == actUnlink || a == actRmdir }

// check is the one place that says whether the guest may do something to a path. It is asked with the same path, under
// the same hold of Server.topo, that the backend is called with afterwards: no request of the guest can move the
// object between the two. Renames never carry an object to where other rules hold (moves), so that what was allowed
// when a file was opened is still allowed while it is open.
//
// Nothing in the answers is about what is there: a hidden name is ENOENT to who looks and EPERM to who makes one,
// whether the host has it or not; a protected one is EPERM in the same way.
func (s *Server) check(path string, a action) errno {
	if a.changes() && !s.writes {
		return eROFS
	}
	v := s.rules.Judge(path)
	switch {
	case v.Hidden && a.arrives():
		return ePERM
	case v.Hidden:
		return eNOENT
	case v.Protected && a.changes():
		return ePERM
	case v.Ancestor && a.folderOnly():
		return ePERM
	case v.Within && a == actSymlink:
		return ePERM
	case a.loses() && s.rules.Mode() == rules.NoDelete:
		return ePERM
	}
	return ok
}

// moves says whether what is at one path, of the kind given, may come to be at another. Both ends have been checked.
func (s *Server) moves(kind uint32, from, to string) errno {
	switch {
	case kind == modeSymlink && s.rules.Judge(to).Within:
		return ePERM
	case kind == modeDir && !s.rules.Same(from, to):
		// Other names would be hidden or protected below it from then on. EXDEV has programs copy instead, name by
		// name, and each name is judged.
		return eXDEV
	}
	return ok
}

// cut is what setting a length does to a file.
func cut(is *stat, size uint64) action {
	if size < is.size {
		return actTruncate
	}
	return actWrite
}
