package place

import (
	"math"

	"golang.org/x/sys/windows"
)

// space returns the bytes that this user may still write, and all.
func space(dir string) (free, total int64, err error) {
	p, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, 0, err
	}
	var f, t uint64
	if err := windows.GetDiskFreeSpaceEx(p, &f, &t, nil); err != nil {
		return 0, 0, err
	}
	return int64(min(f, math.MaxInt64)), int64(min(t, math.MaxInt64)), nil
}
