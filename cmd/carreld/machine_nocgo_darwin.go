//go:build !cgo

package main

import (
	"errors"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/hypervisor"
)

var errNoCgo = &hypervisor.Error{
	Op: "start the guest", Err: errors.New("this carreld was built without cgo, by which it would reach macOS' Virtualization.framework"),
	Cure: "build it on a Mac with Apple's command line tools (xcode-select --install; make build), or use the weaker wall that is there: --boundary process --image host, see docs/seatbelt.md",
}

func machine(guest.KeepRequest) (guest.KeepOptions, error) { return guest.KeepOptions{}, errNoCgo }

// machinesBuilt says whether this program has what drives machines in it.
const machinesBuilt = false
