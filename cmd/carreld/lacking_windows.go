package main

import (
	"errors"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/hypervisor"
)

// lacking refuses a guest for which this host has no process: none is started
// with less than it was granted.
func lacking(spec *api.GuestSpec) error {
	for _, s := range spec.GetShares() {
		if s.Mode == api.ShareMode_SHARE_MODE_REVIEW {
			return &hypervisor.Error{
				Op: "start the guest", Err: errors.New("share " + s.Path + " is in review, and nothing applies a guest's changes on this host yet"),
				Cure: "share it read-only or to be written (--share " + s.Path + ":ro, or :rw), or start the guest with --no-share",
			}
		}
	}
	return nil
}
