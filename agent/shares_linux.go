package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// shares are the host's folders that this guest sees, while it runs.
type shares struct {
	m    mounter
	dial func(context.Context, uint32) (net.Conn, error)
	// reviews has a place for each review.
	reviews chan struct{}

	// mu is held while what is mounted changes: one change at a time.
	mu     sync.Mutex
	byPath map[string]*sharedFolder // by wire.Mount.path, cleaned
	// next is the number of the next share; those of Setup are numbered as
	// the driver has them.
	next   int
	closed bool
}

// sharedFolder is one of them.
type sharedFolder struct {
	*wire.Mount
	// mounts are its mounts, in the order in which they were made, each an
	// O_PATH file: whoever renames folders in the guest does not change what
	// is meant.
	mounts []int
	// at is where tasks see it, under what lies beneath its layer: two of the
	// above, or -1.
	at, under int
	// layer is the folder of its layer, or empty.
	layer string
	relay *relay // or nil
	// forgotten says when the removal of a name was forgotten; see forget.
	forgotten map[string]int64
}

func newShares(m mounter, dial func(context.Context, uint32) (net.Conn, error)) *shares {
	return &shares{m: m, dial: dial, reviews: make(chan struct{}, maxReviews), byPath: make(map[string]*sharedFolder)}
}

// attach mounts one more share.
func (k *shares) attach(ctx context.Context, s *wire.Mount) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := k.next
	k.next++
	for _, other := range k.byPath {
		switch {
		case path.Clean(other.Path) == path.Clean(s.Path):
			return fmt.Errorf("share %s is at %s already", other.Tag, s.Path)
		case s.Overlay && s.Layer != "" && other.Layer == s.Layer:
			return fmt.Errorf("share %s has the layer %s already", other.Tag, s.Layer)
		}
	}
	switch {
	case k.closed:
		return errors.New("the guest ends")
	case len(k.byPath) >= maxMounts:
		return fmt.Errorf("the guest has %d shares already, which is the limit", maxMounts)
	}
	n := &sharedFolder{Mount: s, at: -1, under: -1}
	if err := k.mount(ctx, i, n); err != nil {
		n.unmount()
		return err
	}
	k.byPath[path.Clean(s.Path)] = n
	return nil
}

// mount does what attach says of share i.
func (k *shares) mount(ctx context.Context, i int, n *sharedFolder) (err error) {
	number := strconv.Itoa(i)
	at, lower := n.Path, filepath.Join(lowerDir, number)
	if n.Overlay {
		at = lower
	}
	if n.Type == "fuse" {
		n.relay, err = mountFuse(ctx, k.dial, n.Mount, at, flags(n.Mount))
	} else {
		err = k.m.lower(i, n.Mount, at)
	}
	if err != nil {
		return err
	}
	if n.at, err = n.hold(at); err != nil {
		return err
	}
	if n.Overlay {
		n.under = n.at
		layer, inMemory, err := k.m.layer(i, n.Mount)
		if inMemory {
			if _, err := n.hold(layer); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		if err := k.m.lay(n.Mount, lower, layer); err != nil {
			return err
		}
		n.layer = layer
		if n.at, err = n.hold(n.Path); err != nil {
			return err
		}
	}
	if k.m.cover && (n.Overlay || n.Type == bindType) {
		// The guest's user or root could enter that, and where the share has
		// a layer, it leads to the folder itself: to its sockets, for one, on
		// which programs of the host listen.
		if err := unix.Mount(emptyDir, lower, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover %s: %w", lower, err)
		}
		_, err = n.hold(lower)
	}
	return err
}

// hold keeps the mount that was made at a place.
func (n *sharedFolder) hold(at string) (int, error) {
	fd, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = unix.Unmount(at, unix.MNT_DETACH)
		return -1, fmt.Errorf("open %s: %w", at, err)
	}
	n.mounts = append(n.mounts, fd)
	return fd, nil
}

// held is a file's path, whatever its name is by now.
func held(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// unmount takes the share away from whoever uses it. What they have open of a
// share that is relayed leads nowhere from here on; a device is the host's to
// cut off.
func (n *sharedFolder) unmount() {
	if n.relay != nil {
		n.relay.close()
	}
	for i := len(n.mounts) - 1; i >= 0; i-- {
		_ = unix.Unmount(held(n.mounts[i]), unix.MNT_DETACH)
		_ = unix.Close(n.mounts[i])
	}
	n.mounts, n.at, n.under = nil, -1, -1
}

// find returns the share that is seen at a path. The caller holds k.mu.
func (k *shares) find(at string) (*sharedFolder, error) {
	n := k.byPath[path.Clean(at)]
	if n == nil {
		return nil, fmt.Errorf("the guest has no share at %.200q", at)
	}
	return n, nil
}

// detach takes a share away.
func (k *shares) detach(at string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	n, err := k.find(at)
	if err != nil {
		return err
	}
	if n.Type == bindType {
		return fmt.Errorf("share %s is a part of the guest's own file system, and stays with whoever has it open (stop the guest, and start it without)", n.Tag)
	}
	delete(k.byPath, path.Clean(at))
	n.unmount()
	return nil
}

// refresh has the kernel forget what it remembers of a share's names, so that
// it looks at the host again. Nothing is unmounted: a task that works in the
// share keeps its place. What a task has open, and the folder that it is in,
// stays what it was until it is closed or left; the names in that folder do
// not.
func (k *shares) refresh(at string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	n, err := k.find(at)
	if err != nil {
		return err
	}
	return n.refresh()
}

// refresh remounts what there is with the flags that it has: a remount, and
// nothing else short of an unmount, empties the kernel's list of a file
// system's names (shrink_dcache_sb in reconfigure_super, fs/super.c). The layer
// comes first, since it holds on to what is under it.
func (n *sharedFolder) refresh() error {
	if n.layer != "" {
		if err := unix.Mount("", held(n.at), "", unix.MS_REMOUNT|fromHost, ""); err != nil {
			return fmt.Errorf("refresh %s: %w", n.Path, err)
		}
	}
	if n.Type == bindType {
		return nil // the kernel's own, and always fresh
	}
	if n.relay != nil {
		n.relay.fresh.forget()
	}
	below := n.at
	if n.layer != "" {
		below = n.under
	}
	if err := unix.Mount("", held(below), "", unix.MS_REMOUNT|flags(n.Mount), ""); err != nil {
		return fmt.Errorf("refresh share %s: %w", n.Tag, err)
	}
	return nil
}

// close takes every share away.
func (k *shares) close() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	for at, n := range k.byPath {
		delete(k.byPath, at)
		n.unmount()
	}
}
