package main

import (
	"context"
	"os"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/share/control"
)

// startShare starts the process of one share, which ends with this one.
func startShare(ctx context.Context, spec guest.ShareSpec) (*control.Conn, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return guest.StartShare(ctx, spec, guest.ShareStart{Command: []string{ownProgram(self), "share"}})
}
