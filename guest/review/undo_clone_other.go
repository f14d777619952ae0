//go:build !linux

package review

import (
	"errors"

	"github.com/carrel-vm/carrel/guest/share"
)

// clone is for Linux.
func clone(*share.Handle, share.Reader) error { return errors.ErrUnsupported }
