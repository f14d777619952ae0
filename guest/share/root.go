package share

import (
	"fmt"
	"sync"
)

// Root is a host folder that was opened once and is never looked up by name again: if the name comes to mean another
// folder, a Root stays with the one that was chosen.
type Root struct {
	path     string
	dev, ino uint64
	back     backend
	closing  sync.Once
	closed   error
}

// OpenRoot opens and pins the folder at path. path is absolute, and no component of it may be a symbolic link: policy has
// resolved it, so a link there now means that somebody has changed it since.
func OpenRoot(path string) (*Root, error) { return openRoot(path, pin) }

func openRoot(path string, pin func(string) (backend, stat, error)) (*Root, error) {
	back, st, err := pin(path)
	if err != nil {
		return nil, fmt.Errorf("open share %q: %w", path, err)
	}
	return &Root{path: path, dev: st.dev, ino: st.ino, back: back}, nil
}

// Path is the name by which the folder was opened, for messages only.
func (r *Root) Path() string { return r.path }

// ID is the folder's device and inode number, for comparing with what the grant recorded; both are 0 on a host without.
func (r *Root) ID() (dev, ino uint64) { return r.dev, r.ino }

// Close lets go of the folder. It may be called twice.
func (r *Root) Close() error {
	r.closing.Do(func() { r.closed = r.back.close() })
	return r.closed
}
