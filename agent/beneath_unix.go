//go:build unix

package agent

import (
	"strings"

	"golang.org/x/sys/unix"
)

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
			how = pathOnly | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
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
