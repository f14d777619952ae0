package agent

import "golang.org/x/sys/unix"

// pathOnly opens a folder to find names in it, whether or not it may be listed.
const pathOnly = unix.O_PATH

// beneath is how every name of a copy is resolved: not above the folder it
// goes to, and over no link.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// openBeneath opens a clean relative name beneath the folder dir. A process
// sandbox has no openat2, since no filter can look at the mode in its memory;
// there the name is walked.
func openBeneath(dir int, name string, flags int) (int, error) {
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: beneath})
	if err != unix.ENOSYS {
		return fd, err
	}
	return walkBeneath(dir, name, flags)
}
