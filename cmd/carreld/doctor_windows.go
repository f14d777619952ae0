package main

import (
	"context"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/doctor"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/images"
)

// diagnose looks at what a guest needs of this Windows.
func diagnose(p place.Place, _ *images.Store) func(context.Context, func(*api.Finding)) {
	return func(_ context.Context, found func(*api.Finding)) {
		each(doctor.ReadWindows(machinesBuilt, p.State, p.Cache).Findings(), found)
	}
}
