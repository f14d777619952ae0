//go:build unix

package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockEvery is how often a waiting build looks again: flock(2) can wait by itself, but not end
// with a context.
const lockEvery = 100 * time.Millisecond

// lockFile makes the caller the only one who builds or removes in this store, and removes what
// interrupted builds have left. Closing the file, or the death of every process that has it open,
// gives the lock back. waiting, if set, is called once if there is somebody to wait for.
func (s *Store) lockFile(ctx context.Context, waiting func()) (*os.File, error) {
	if err := os.MkdirAll(s.cache, 0o700); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.cache, "build.lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("image store: lock %s: %w", f.Name(), err)
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("image store: waiting for another build: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
	if err := os.RemoveAll(filepath.Join(s.cache, "tmp")); err != nil {
		f.Close()
		return nil, fmt.Errorf("image store: remove an interrupted build: %w", err)
	}
	return f, nil
}

func (s *Store) lock(ctx context.Context, waiting func()) (unlock func(), err error) {
	f, err := s.lockFile(ctx, waiting)
	if err != nil {
		return nil, err
	}
	return func() { f.Close() }, nil
}
