package review

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share"
)

// clone has a new file share the blocks of another, where the file system can
// (btrfs, XFS, bcachefs): nothing is copied, and neither sees what happens to
// the other.
func clone(to *share.Handle, from share.Reader) error {
	f, is := from.(interface{ Descriptor() int })
	if !is || f.Descriptor() < 0 || to.Descriptor() < 0 {
		return errors.ErrUnsupported
	}
	return unix.IoctlFileClone(to.Descriptor(), f.Descriptor())
}
