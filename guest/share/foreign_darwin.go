package share

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// MarkForeign marks the file as one that came from a guest. A file system
// without extended attributes has no place for the mark. It was compiled for
// macOS and never ran there.
func (h *Handle) MarkForeign(at time.Time) error {
	f, is := h.f.(*rootFile)
	if !is {
		return nil
	}
	c, err := f.f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := c.Control(func(fd uintptr) {
		failed = unix.Fsetxattr(int(fd), quarantineName, []byte(quarantine(at)), 0)
	}); err != nil {
		return err
	}
	if errors.Is(failed, unix.ENOTSUP) {
		return nil
	}
	// EPERM is none of those: it is a sandbox's way to say no, and a file without
	// the mark would pass the gatekeeper.
	return failed
}
