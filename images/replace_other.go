//go:build !linux

package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// replace puts the folder from at the place to, and what was there at from. Between two of its three steps
// nothing is at to: whoever is cut off there finds no image, and makes or restores one.
func replace(from, to string) error {
	aside := from + ".aside"
	if err := errors.Join(removeAll(aside), syncFolder(from)); err != nil {
		return err
	}
	err := os.Rename(to, aside)
	had := err == nil
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = os.Rename(from, to)
	}
	if err == nil && had {
		err = os.Rename(aside, from)
	}
	if err != nil {
		return fmt.Errorf("put %s in its place: %w", to, err)
	}
	return syncFolder(filepath.Dir(to))
}
