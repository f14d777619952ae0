// Package agent is the program inside a guest: it sets the guest up as the
// host asks, runs tasks, and copies files in and out.
//
// It is convenience, not boundary. The guest's root is assumed hostile, so
// whatever must hold against it is enforced on the host; what the agent keeps
// is order among the tasks of one guest. Tasks that are not root cannot signal,
// trace or replace it, and it never runs a program of the guest as root unless
// the host asked for root.
//
// As a guest's PID 1 it starts at [Boot]; the test driver runs the same code
// as an ordinary process through [Serve].
package agent
