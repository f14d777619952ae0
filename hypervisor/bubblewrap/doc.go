// Package bubblewrap makes guests out of Linux namespaces: bwrap sets them up,
// and the agent is their first process. The wall is the host's own kernel, so it
// is weaker than a machine's; docs/boundaries.md says how much.
//
//	keeper (Driver, VM) ── control socket ──> wall (WallMain) ──> bwrap ──> agent
//
// The wall is a process of its own because a keeper with a running guest gives
// up what it takes to end one: the right to signal another user's process, to
// thaw it and to remove its control group. It reads single letters from the
// keeper and nothing from the guest.
package bubblewrap
