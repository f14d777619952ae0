package audit

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/windows"
)

// lockEvery is how often a lock that another process holds is asked for again.
const lockEvery = 2 * time.Millisecond

// lockFile makes this process the only one that reads or writes the log's end.
func lockFile(f *os.File, limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(lockEvery) {
		err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped))
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, windows.ERROR_LOCK_VIOLATION) && !errors.Is(err, windows.ERROR_IO_PENDING):
			return fmt.Errorf("lock %s: %w", lockName, err)
		case time.Now().After(end):
			return fmt.Errorf("another process has held %s for %v (is it stopped?)", lockName, limit)
		}
	}
}

func unlockFile(f *os.File) {
	windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, new(windows.Overlapped))
}
