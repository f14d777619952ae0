//go:build unix

package oci

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenRegular opens a regular file and follows no link in its last element. O_NONBLOCK keeps a FIFO
// that lies in its place from holding us; for a regular file it means nothing.
func OpenRegular(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return f, nil
}
