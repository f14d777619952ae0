//go:build !carreltest

package main

// hostMemory is nil: the daemon asks the system.
var hostMemory func() (available, total int64, err error)
