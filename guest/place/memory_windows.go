package place

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

var globalMemoryStatusEx = windows.NewLazySystemDLL("kernel32.dll").NewProc("GlobalMemoryStatusEx")

// memoryStatus is MEMORYSTATUSEX.
type memoryStatus struct {
	length, load             uint32
	totalPhys, availPhys     uint64
	totalPage, availPage     uint64
	totalVirtual, availVirt  uint64
	availableExtendedVirtual uint64
}

// Memory returns how much memory programs can get before this machine pages, and
// how much it has, in bytes. What could not be committed counts as not there.
func Memory() (available, total int64, err error) {
	s := memoryStatus{length: uint32(unsafe.Sizeof(memoryStatus{}))}
	if ok, _, err := globalMemoryStatusEx.Call(uintptr(unsafe.Pointer(&s))); ok == 0 {
		return 0, 0, fmt.Errorf("GlobalMemoryStatusEx: %w", err)
	}
	available, total = int64(min(s.availPhys, s.availPage)), int64(s.totalPhys)
	if available <= 0 || total < available {
		return 0, 0, errors.New("GlobalMemoryStatusEx does not say how much memory there is")
	}
	return available, total, nil
}

// Touched is not known here: a virtual machine's memory is that of a process of
// the system's. 0: a guest is taken to have touched nothing.
func Touched(int) int64 { return 0 }
