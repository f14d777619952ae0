//go:build unix

package policy

import (
	"errors"
	"os"
	"runtime"
	"syscall"
)

// foldsCase: APFS folds case by default.
const foldsCase = runtime.GOOS == "darwin"

func identity(_ string, fi os.FileInfo) (dev, ino uint64, err error) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, errors.New("the file system does not say which folder it is")
	}
	return uint64(st.Dev), uint64(st.Ino), nil
}

// guestPath is where a folder appears by default: at the same path.
func guestPath(p string) string { return p }

// openPlain opens a file to read it; it does not wait for the other end of a
// pipe. Without follow, a link at the path's end is an error.
func openPlain(path string, follow bool) (*os.File, error) {
	flags := os.O_RDONLY | syscall.O_NONBLOCK | syscall.O_CLOEXEC
	if !follow {
		flags |= syscall.O_NOFOLLOW
	}
	return os.OpenFile(path, flags, 0)
}
