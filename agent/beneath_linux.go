package agent

import (
	"strings"

	"golang.org/x/sys/unix"
)

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

// walkBeneath is openBeneath one name at a time: none may be a link or "..".
func walkBeneath(dir int, name string, flags int) (int, error) {
	at := dir
	for {
		first, rest, more := strings.Cut(name, "/")
		if first == ".." || first == "" {
			if at != dir {
				_ = unix.Close(at)
			}
			return -1, unix.EXDEV
		}
		how := flags | unix.O_NOFOLLOW | unix.O_CLOEXEC
		if more {
			how = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		}
		fd, err := unix.Openat(at, first, how, 0)
		if at != dir {
			_ = unix.Close(at)
		}
		if err != nil || !more {
			return fd, err
		}
		at, name = fd, rest
	}
}
