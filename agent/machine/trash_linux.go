package machine

import (
	"errors"
	"math"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// FreshDir makes an empty folder on the scratch disk. What it held before this
// start is moved aside and removed later, so that much of it does not hold the
// start up.
func FreshDir(disk, name string, mode uint32) (string, error) {
	path := disk + "/" + name
	old := disk + "/" + TrashName + "/" + name + "-" + strconv.FormatInt(time.Now().UnixNano(), 10)
	if err := os.Rename(path, old); err == nil {
		go func() { _ = os.RemoveAll(old) }()
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", err
	}
	return path, syscall.Chmod(path, mode)
}

// TrashName is where on the scratch disk things wait for their removal.
const TrashName = "trash"

// EmptyTrash removes what an earlier start had no time to remove, and then calls
// after, if there was an earlier start.
func EmptyTrash(disk string, after func()) {
	trash := disk + "/" + TrashName
	if os.Mkdir(trash, 0o700) == nil {
		return
	}
	old, err := os.ReadDir(trash)
	if err != nil {
		return
	}
	go func() {
		for _, e := range old {
			_ = os.RemoveAll(trash + "/" + e.Name())
		}
		if after != nil {
			after()
		}
	}()
}

// trim gives back what the disk does not use. Deleting does so while the guest
// runs; what was deleted just before a guest was killed is found here, at its
// next start. The kernel skips what it has trimmed and what is in use.
func trim(disk string) {
	f, err := os.Open(disk)
	if err != nil {
		return
	}
	defer f.Close()
	// struct fstrim_range (linux/fs.h): all of it, in pieces of 1 MiB at least.
	r := struct{ start, length, least uint64 }{0, math.MaxUint64, 1 << 20}
	_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), fitrim, uintptr(unsafe.Pointer(&r)))
}

// fitrim is FITRIM, _IOWR('X', 121, struct fstrim_range), on amd64 and arm64.
const fitrim = 0xc0185879
