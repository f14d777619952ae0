//go:build !linux

package images

import (
	"context"
	"errors"
)

// Build makes an image; on this system it cannot.
func (s *Store) Build(context.Context, BuildOptions) (*Image, error) {
	return nil, errors.New("images are built on Linux, with Debian's tools")
}
