//go:build !carrelmac

package main

import (
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share"
)

// confineShare leaves a share process its folder and its stores: no other file,
// no socket, no new process, no device, no owner but its own.
func confineShare(root *share.Root, readOnly bool, stores ...string) error {
	if err := dropForeign(); err != nil {
		return err
	}
	return share.Confine(root, readOnly, stores...)
}

// confineReview leaves a review process its folders and its stores, likewise.
func confineReview(roots []*share.Root, readOnly bool, stores ...string) error {
	if err := dropForeign(); err != nil {
		return err
	}
	return share.ConfineAll(roots, readOnly, stores...)
}

// dropForeign keeps of all capabilities those that let root's share hold files
// of any owner.
func dropForeign() error {
	return dropCapabilities(unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER)
}
