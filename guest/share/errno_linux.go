package share

import (
	"errors"
	"syscall"
)

// hostErrno: the numbers are Linux's already. ENOSYS is the exception: a FUSE client remembers it for the whole mount, so
// a host call that is missing must not switch a whole operation off.
func hostErrno(err error) (errno, bool) {
	var e syscall.Errno
	if !errors.As(err, &e) {
		return ok, false
	}
	switch {
	case e == syscall.ENOSYS:
		return eOPNOTSUPP, true
	case e == syscall.ENODEV, e == syscall.ENOMEDIUM, e == syscall.ESHUTDOWN, e == syscall.EREMOTEIO:
		return eIO, true // the drive is gone, in the words of several file systems
	case e < 1 || e > 133: // EHWPOISON is the last; nothing above has a meaning to a guest
		return eIO, true
	}
	return errno(e), true
}
