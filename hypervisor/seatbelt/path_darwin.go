package seatbelt

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// KernelPath is the path that the kernel has for a file: without links, in the
// letters that were given when it was made.
func KernelPath(path string) (string, error) { return kernelPath(path, nil) }

// KernelFolder is KernelPath of a folder that was granted, which has to be the
// very one still: its path may lead elsewhere by now, and a sandbox is made for
// what it leads to.
func KernelFolder(path string, dev, ino uint64) (string, error) {
	return kernelPath(path, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if uint64(st.Dev) != dev || st.Ino != ino {
			return errReplaced
		}
		return nil
	})
}

func kernelPath(path string, is func(fd int) error) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if is != nil {
		if err := is(fd); err != nil {
			return "", &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
	b := make([]byte, unix.PathMax) // fcntl(2): F_GETPATH wants MAXPATHLEN bytes
	var pin runtime.Pinner          // FcntlInt takes the address as a number
	pin.Pin(&b[0])
	defer pin.Unpin()
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETPATH, int(uintptr(unsafe.Pointer(&b[0])))); err != nil {
		return "", &os.PathError{Op: "get the path of", Path: path, Err: err}
	}
	real, _, _ := strings.Cut(string(b), "\x00")
	return real, nil
}

var errReplaced = errors.New("another folder is in its place than the one that was granted")
