package share

import (
	"errors"
	"io/fs"
	"strconv"
)

// errno is a Linux error number, as it crosses to the guest. The host's own numbers differ (ENOTEMPTY is 39 on Linux
// and 66 on macOS), so they never pass unmapped.
type errno int32

// Linux numbers from include/uapi/asm-generic/errno-base.h and errno.h.
const (
	ok           errno = 0
	ePERM        errno = 1
	eNOENT       errno = 2
	eINTR        errno = 4
	eIO          errno = 5
	eNXIO        errno = 6
	eBADF        errno = 9
	eAGAIN       errno = 11
	eNOMEM       errno = 12
	eACCES       errno = 13
	eBUSY        errno = 16
	eEXIST       errno = 17
	eXDEV        errno = 18
	eNODEV       errno = 19
	eNOTDIR      errno = 20
	eISDIR       errno = 21
	eINVAL       errno = 22
	eNFILE       errno = 23
	eMFILE       errno = 24
	eFBIG        errno = 27
	eNOSPC       errno = 28
	eROFS        errno = 30
	eMLINK       errno = 31
	eRANGE       errno = 34
	eNAMETOOLONG errno = 36
	eNOSYS       errno = 38
	eNOTEMPTY    errno = 39
	eLOOP        errno = 40
	eNODATA      errno = 61
	ePROTO       errno = 71
	eOPNOTSUPP   errno = 95
	eSTALE       errno = 116
	eDQUOT       errno = 122
)

// Error lets an errno be passed as an error between this package's layers.
func (e errno) Error() string { return "linux errno " + strconv.Itoa(int(e)) }

// toErrno gives the Linux number for an error of the host. What has no counterpart is EIO: the guest learns that it
// failed, and nothing about the host.
func toErrno(err error) errno {
	if err == nil {
		return ok
	}
	var e errno
	if errors.As(err, &e) {
		return e
	}
	if e, found := hostErrno(err); found {
		return e
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return eNOENT
	case errors.Is(err, fs.ErrExist):
		return eEXIST
	case errors.Is(err, fs.ErrPermission):
		return eACCES
	case errors.Is(err, fs.ErrInvalid):
		return eINVAL
	case errors.Is(err, errors.ErrUnsupported):
		return eOPNOTSUPP
	}
	return eIO
}
