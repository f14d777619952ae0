//go:build unix && !linux

package agent

import "golang.org/x/sys/unix"

// pathOnly opens a folder to find names in it; other systems than Linux want it
// to be one that may be listed.
const pathOnly = unix.O_RDONLY

// openBeneath opens a clean relative name beneath the folder dir.
func openBeneath(dir int, name string, flags int) (int, error) {
	return walkBeneath(dir, name, flags)
}
