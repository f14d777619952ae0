//go:build unix

package audit

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockEvery is how often a lock that another process holds is asked for again:
// flock(2) can wait by itself, but not for a bounded time.
const lockEvery = 2 * time.Millisecond

// lockFile makes this process the only one that reads or writes the log's end.
// The kernel takes the lock from a process that dies.
func lockFile(f *os.File, limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(lockEvery) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("lock %s: %w", lockName, err)
		case time.Now().After(end):
			return fmt.Errorf("another process has held %s for %v (is it stopped?)", lockName, limit)
		}
	}
}

func unlockFile(f *os.File) { unix.Flock(int(f.Fd()), unix.LOCK_UN) }
