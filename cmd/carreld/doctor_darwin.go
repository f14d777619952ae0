package main

import (
	"context"
	"os"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/doctor"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/hypervisor/seatbelt"
	"github.com/carrel-vm/carrel/images"
)

// diagnose looks at what a guest needs of this Mac.
func diagnose(place.Place, *images.Store) func(context.Context, func(*api.Finding)) {
	return func(ctx context.Context, found func(*api.Finding)) {
		self, err := os.Executable()
		if err != nil {
			self = os.Args[0]
		}
		m := doctor.ReadMac(ctx, keeperProgram(self), machinesBuilt)
		o, err := seatbeltOptions()
		d := seatbelt.New(o)
		if err == nil {
			err = d.Check()
		}
		m.Seatbelt = doctor.Program{Notes: d.Notes(), Trouble: trouble(err)}
		each(m.Findings(), found)
	}
}
