//go:build !linux

package daemon

// dropProgram is left to the system here.
func dropProgram() {}
