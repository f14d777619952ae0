//go:build !linux && !darwin && !windows

package main

import (
	"context"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/images"
)

func diagnose(place.Place, *images.Store) func(context.Context, func(*api.Finding)) {
	return func(_ context.Context, found func(*api.Finding)) {
		found(&api.Finding{Check: "driver", Level: api.FindingLevel_FINDING_LEVEL_BAD, Text: errNotHere.Error()})
	}
}
