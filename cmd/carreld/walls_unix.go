//go:build linux || darwin

package main

// The walls, as a request names them.
const (
	wallVM      = "vm"
	wallGVisor  = "gvisor"
	wallProcess = "process"
)

// hostImage is the image that is the host's own system, for a process sandbox.
const hostImage = "host"
