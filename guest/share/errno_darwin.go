package share

import (
	"errors"
	"syscall"
)

// darwinErrno holds the numbers above 34 that a file system gives, where macOS and Linux part (sys/errno.h); up to 34 both
// follow the seventh edition, except 11 (EDEADLK there, EAGAIN on Linux).
var darwinErrno = map[syscall.Errno]errno{
	syscall.EAGAIN: eAGAIN, syscall.ENOTSUP: eOPNOTSUPP, syscall.EOPNOTSUPP: eOPNOTSUPP, syscall.ELOOP: eLOOP,
	syscall.ENAMETOOLONG: eNAMETOOLONG, syscall.ENOTEMPTY: eNOTEMPTY, syscall.EDQUOT: eDQUOT, syscall.ESTALE: eSTALE,
	syscall.EDEADLK: eIO, syscall.ENOSYS: eOPNOTSUPP,
}

func hostErrno(err error) (errno, bool) {
	var e syscall.Errno
	if !errors.As(err, &e) {
		return ok, false
	}
	if l, found := darwinErrno[e]; found {
		return l, true
	}
	if e >= 1 && e <= 34 {
		return errno(e), true
	}
	return eIO, true
}
