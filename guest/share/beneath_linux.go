package share

import (
	"errors"

	"golang.org/x/sys/unix"
)

// below opens a folder beneath b for a backend of its own.
func below(b backend, path string) (backend, error) {
	l, is := b.(*linuxBackend)
	if !is {
		return nil, errors.ErrUnsupported
	}
	fd, err := l.openat(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return &linuxBackend{root: fd, readOnly: l.readOnly}, nil
}

// startSync writes dirty pages out and waits for none (sync_file_range(2)). It
// promises nothing by itself.
func startSync(f file) {
	if fd, is := f.(linuxFile); is {
		unix.SyncFileRange(int(fd), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
}

// Descriptor is for cloning into a file of another kind; -1: there is none. It is valid until Close.
func (h *Handle) Descriptor() int {
	if f, is := h.f.(linuxFile); is {
		return int(f)
	}
	return -1
}
