package seatbelt

// process is what is known of one: its parent, its process group, and when it
// began, in any unit, so that two which had one number are told apart.
type process struct {
	pid, parent, group int
	began              int64
}

// family are the processes of a guest: those that were seen before, and still
// are who they were, those that descend from them, and all in their process
// groups. The first process leads a session of its own. Since no process can
// join a group of another session (setpgid(2)), a group whose leader lives and
// is not of the family is not the family's either, whatever the list says. Who
// has left both its ancestors and their groups before it was seen is not found:
// a daemon.
//
// It returns them by when they began, to be seen with the next list.
func family(all []process, seen map[int]int64) map[int]int64 {
	in, alive, groups := map[int]int64{}, map[int]bool{}, map[int]bool{}
	join := func(p process) { in[p.pid], groups[p.group] = p.began, true }
	for _, p := range all {
		alive[p.pid] = true
		if began, ok := seen[p.pid]; ok && began == p.began {
			join(p)
		}
	}
	has := func(pid int) bool { _, ok := in[pid]; return ok }
	own := func(group int) bool { return groups[group] && (has(group) || !alive[group]) }
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if p.pid <= 1 || p.group <= 1 || has(p.pid) || !has(p.parent) && !own(p.group) {
				continue
			}
			join(p)
			grown = true
		}
	}
	return in
}
