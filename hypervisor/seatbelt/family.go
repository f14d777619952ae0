package seatbelt

import "slices"

// process is what is known of one: its parent and its process group.
type process struct{ pid, parent, group int }

// family are the processes of a guest: the first one, which leads a session of
// its own, those that descend from it, and all in their process groups. Since no
// process can join a group of another session (setpgid(2)), a group whose leader
// lives and is not of the family is not the family's either, whatever the list
// says. Who has left both its ancestors and their groups is not found: a daemon.
func family(all []process, first int) []int {
	in, alive := map[int]bool{first: true}, map[int]bool{}
	for _, p := range all {
		alive[p.pid] = true
	}
	groups := map[int]bool{first: true}
	own := func(group int) bool { return groups[group] && (in[group] || !alive[group]) }
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if p.pid <= 1 || p.group <= 1 || in[p.pid] || !in[p.parent] && !own(p.group) {
				continue
			}
			in[p.pid], groups[p.group], grown = true, true, true
		}
	}
	var pids []int
	for pid := range in {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}
