package share

import (
	"errors"
	"syscall"
)

// windowsErrno holds the system error codes (winerror.h) that a file operation gives and that io/fs has no kind for.
var windowsErrno = map[syscall.Errno]errno{
	4:    eMFILE,       // ERROR_TOO_MANY_OPEN_FILES
	17:   eXDEV,        // ERROR_NOT_SAME_DEVICE
	19:   eROFS,        // ERROR_WRITE_PROTECT
	32:   eBUSY,        // ERROR_SHARING_VIOLATION
	39:   eNOSPC,       // ERROR_HANDLE_DISK_FULL
	112:  eNOSPC,       // ERROR_DISK_FULL
	123:  eINVAL,       // ERROR_INVALID_NAME
	145:  eNOTEMPTY,    // ERROR_DIR_NOT_EMPTY
	206:  eNAMETOOLONG, // ERROR_FILENAME_EXCED_RANGE
	223:  eFBIG,        // ERROR_FILE_TOO_LARGE
	267:  eNOTDIR,      // ERROR_DIRECTORY
	1314: ePERM,        // ERROR_PRIVILEGE_NOT_HELD (making a symbolic link without the right to)
}

func hostErrno(err error) (errno, bool) {
	var e syscall.Errno
	if !errors.As(err, &e) {
		return ok, false
	}
	l, found := windowsErrno[e]
	return l, found
}
