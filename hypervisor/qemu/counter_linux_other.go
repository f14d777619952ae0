//go:build linux && !amd64

package qemu

func readCounter() uint64 { return 0 }

// steadyCounter is false: a guest's counter is an emulated one here.
func steadyCounter() bool { return false }
