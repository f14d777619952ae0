//go:build cgo

package main

import (
	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/hypervisor/vz"
)

// machine keeps a guest in a machine of Virtualization.framework, which lives in
// this process. It is the one that needs the entitlement for it.
func machine(req guest.KeepRequest) (guest.KeepOptions, error) {
	var o vz.Options
	for _, pin := range req.Pins {
		o.Pins = append(o.Pins, vz.Pin{Path: pin.Path, Dev: pin.Dev, Ino: pin.Ino})
	}
	d := vz.New(o)
	if err := d.Check(); err != nil {
		return guest.KeepOptions{}, err
	}
	return guest.KeepOptions{
		Driver: d, Share: startShare, ShareOwner: taskUser,
		// A keeper has no sandbox of its own here: docs/platforms.md.
		Confine: func() error { return nil },
		Describe: func(g *api.Guest) {
			g.Accelerator, g.AcceleratorReason = "vz", "macOS' Virtualization.framework"
			g.HypervisorArgs = d.Summary()
			g.Boundary, g.BoundaryNotes = wallVM, d.Notes()
		},
	}, nil
}

// machinesBuilt says whether this program has what drives machines in it.
const machinesBuilt = true
