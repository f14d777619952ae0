// Package wall is what drivers share whose guest is a handful of this host's
// processes: bubblewrap and gvisor.
//
//	keeper (VM) ── control socket ──> wall (Process) ──> bwrap or runsc ──> agent
//
// The wall is a process of its own because a keeper with a running guest gives
// up what it takes to end one: the right to signal another user's process, to
// thaw it and to remove its control group. It reads single letters from the
// keeper and nothing from the guest.
package wall
