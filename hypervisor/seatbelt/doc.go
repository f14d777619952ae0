// Package seatbelt makes guests out of processes of macOS that Seatbelt, the
// kernel's sandbox, confines. There is no Linux behind it: a guest sees the
// Mac's own system and the shares under their own paths, reaches the outside
// through a proxy only, and cannot be reviewed. docs/seatbelt.md says what holds.
//
//	keeper (Driver, VM) ── carrier ──> sandbox-exec, which becomes the agent
//
// What a profile is and what it must not be (profile.go, lint.go) is plain data
// and tested on every host. What starts and ends processes compiles on any Unix
// and is tested with stand-ins. The Driver itself exists on macOS only.
//
// Nothing here has run on a Mac yet. What of it runs on Linux is tested there,
// without a wall: Bare.
package seatbelt
