package machine

import (
	"errors"
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

// trimStep is how much of a file system is trimmed at once, in bytes: between two
// steps the time is looked at.
const trimStep = 16 << 30

// Trim gives back what the file system at a place does not use, and gives up at
// end. Deleting does so while the guest runs, a moment later and in the background.
// The kernel skips what it has trimmed and what is in use.
func Trim(at string, end time.Time) {
	f, err := os.Open(at)
	if err != nil {
		return
	}
	defer f.Close()
	for start := uint64(0); time.Now().Before(end); start += trimStep {
		// struct fstrim_range (linux/fs.h): in pieces of 1 MiB at least. Beyond
		// the end of the file system it is EINVAL.
		r := struct{ start, length, least uint64 }{start, trimStep, 1 << 20}
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), fitrim, uintptr(unsafe.Pointer(&r))); e != 0 {
			return
		}
	}
}

// fitrim is FITRIM, _IOWR('X', 121, struct fstrim_range), on amd64 and arm64.
const fitrim = 0xc0185879
