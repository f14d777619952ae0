package main

import (
	"context"
	"os"

	"github.com/carrel-vm/carrel/guest"
)

// taskUser is whom a guest's tasks run as, and who owns what is in its shares.
const taskUser = 1000

// startShare starts the process of one share, which ends with this one.
func startShare(ctx context.Context, spec guest.ShareSpec) (*os.File, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return guest.StartShare(ctx, spec, guest.ShareStart{Command: []string{self, "share"}})
}
