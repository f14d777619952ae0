package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

// ErrInUse says that somebody uses an image just now.
var ErrInUse = errors.New("image is in use")

// Locks lie in locks/, one file for each image that there ever was; the file stays, since one that is
// removed while another waits for it locks nothing. An image is held, shared, from before its parts are
// looked at until the guest that starts has opened them, and by what runs from a folder of it as long
// as it runs. It is removed or replaced by whoever has the lock alone.
func (s *Store) lockPath(id, suffix string) string {
	return filepath.Join(s.cache, "locks", id+suffix)
}

func (s *Store) newLock(id, suffix string) (*flock.Flock, error) {
	path := s.lockPath(id, suffix)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return flock.New(path, flock.SetPermissions(0o600)), nil
}

// holdEvery is how often somebody who waits for a lock looks again.
const holdEvery = 50 * time.Millisecond

// hold keeps an image from being removed or replaced until release is called.
func (s *Store) hold(ctx context.Context, id string) (release func(), err error) {
	l, err := s.newLock(id, "")
	if err != nil {
		return nil, err
	}
	// Who has it alone renames a folder, which takes moments.
	if _, err := l.TryRLockContext(ctx, holdEvery); err != nil {
		return nil, fmt.Errorf("image %s: hold it: %w", id, err)
	}
	return func() { l.Close() }, nil
}

// alone makes the caller the only one with an image. It waits for patience: guests that are being started,
// and those that have just ended, give it back by themselves. 0 is for what can be done another time.
func (s *Store) alone(ctx context.Context, id string, patience time.Duration) (release func(), err error) {
	l, err := s.newLock(id, "")
	if err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ok, err := l.TryLock()
	if err == nil && !ok && patience > 0 {
		ok, err = l.TryLockContext(wait, holdEvery)
	}
	if err != nil && wait.Err() == nil || ctx.Err() != nil {
		l.Close()
		return nil, fmt.Errorf("image %s: lock it: %w", id, errors.Join(err, ctx.Err()))
	}
	if !ok {
		l.Close()
		return nil, fmt.Errorf("image %s: %w: a guest runs from it, or is being started (carrel ls shows the guests: stop those that are made from it)", id, ErrInUse)
	}
	return func() { l.Close() }, nil
}

// A guest is started within a minute, or not at all, and is gone within 10 s of its end.
const (
	startPatience = time.Minute
	endPatience   = 15 * time.Second
)

// making makes the caller the only one who makes an image of that id; it waits for others.
func (s *Store) making(ctx context.Context, id string) (release func(), err error) {
	l, err := s.newLock(id, ".making")
	if err != nil {
		return nil, err
	}
	if _, err := l.TryLockContext(ctx, holdEvery); err != nil {
		return nil, fmt.Errorf("image %s: wait for another pull: %w", id, err)
	}
	return func() { l.Close() }, nil
}

// pulling keeps Prune away while an image and what it is made of come: it would take for unneeded what no
// image needs yet.
func (s *Store) pulling(ctx context.Context) (release func(), err error) {
	l, err := s.newLock("prune", "")
	if err != nil {
		return nil, err
	}
	if _, err := l.TryRLockContext(ctx, holdEvery); err != nil {
		return nil, fmt.Errorf("image store: wait for a prune: %w", err)
	}
	return func() { l.Close() }, nil
}

// pruning waits until nothing is being pulled and keeps pulls waiting.
func (s *Store) pruning(ctx context.Context) (release func(), err error) {
	l, err := s.newLock("prune", "")
	if err != nil {
		return nil, err
	}
	if _, err := l.TryLockContext(ctx, holdEvery); err != nil {
		return nil, fmt.Errorf("image store: wait for a pull: %w", err)
	}
	return func() { l.Close() }, nil
}

// Use returns an image whose parts are what its manifest says, as Get does, and keeps it from being
// removed or replaced until release is called.
func (s *Store) Use(ctx context.Context, id string) (img *Image, release func(), err error) {
	if err := checkID(id); err != nil {
		return nil, nil, err
	}
	if release, err = s.hold(ctx, id); err != nil {
		return nil, nil, err
	}
	if img, err = s.Get(ctx, id); err != nil {
		release()
		return nil, nil, err
	}
	return img, release, nil
}

// UseKernel does the same with the parts of a built image that a machine starts from, whatever its root.
func (s *Store) UseKernel(ctx context.Context, id string) (img *Image, release func(), err error) {
	if err := CheckName(id); err != nil {
		return nil, nil, err
	}
	if release, err = s.hold(ctx, id); err != nil {
		return nil, nil, err
	}
	if img, err = s.load(id); err == nil {
		err = s.trusted(img)
	}
	if err == nil {
		for _, p := range []string{Kernel, Initrd} {
			if _, err = checkPart(ctx, filepath.Join(s.dir(id), p), img.Manifest.Part(p)); err != nil {
				if ctx.Err() == nil {
					err = s.damaged(id, err)
				}
				break
			}
		}
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return img, release, nil
}

// Lock is the file that a process locks, shared, while it runs from the image.
func (s *Store) Lock(id string) string { return s.lockPath(id, "") }
