// Package gvisor makes guests out of gVisor sandboxes: runsc runs a kernel of
// its own, written in Go, as an ordinary process (the sentry), and the agent and
// its tasks make their system calls to that one. The host's kernel sees the few
// calls of the sentry, and of the process that opens files for it (the gofer).
//
//	keeper (Driver, wall.VM) ── control socket ──> wall (WallMain) ──> runsc ──> sentry, gofer
//
// The guest has no socket of the host's but two: runsc hands its standard input
// and error on, and these are the ends that package passing made. runsc is told
// to open no socket and no pipe of the host for the guest (--host-uds=none).
//
// It was made for and tested with Debian's runsc of 2022-12-19. Newer releases
// are untested.
package gvisor
