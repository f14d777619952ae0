package share

// action is what a request would do to one path.
type action uint8

const (
	actLookup action = iota // learn that it is there, its size, mode and times
	actRead                 // open for reading, list, read a link
	actWrite                // open for writing, allocate
	actTruncate
	actChange // mode or times
	actCreate // make a file, also as a second link
	actMkdir
	actSymlink
	actUnlink
	actRmdir
	actRenameFrom // goes away from here
	actRenameTo   // arrives here, in place of what is there
	actExchange   // either side of an exchange
	actLinkFrom   // gets a second name
)

// changes says whether an action alters the host's folder.
func (a action) changes() bool { return a >= actWrite }

// check is the one place that says whether the guest may do something to a path. It is asked with the same path, under
// the same hold of Server.topo, that the backend is called with afterwards: no request of the guest can move the
// object between the two. Whatever narrows a share further (hidden and protected names, no-delete) belongs here.
func (s *Server) check(path string, a action) errno {
	if s.opts.ReadOnly && a.changes() {
		return eROFS
	}
	return ok
}
