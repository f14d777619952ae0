package images

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// lock keeps two removals apart: a file that others may not open meanwhile. There is no build here.
func (s *Store) lock(_ context.Context, _ func()) (unlock func(), err error) {
	if err := os.MkdirAll(s.cache, 0o700); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	path := filepath.Join(s.cache, "remove.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("image store: %w (if no other carrel runs, delete %s)", err, path)
	}
	return func() { f.Close(); os.Remove(path) }, nil
}
