//go:build !linux && !darwin && !windows

package main

import (
	"context"
	"log/slog"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/images"
)

const driverName = "none"

// keeperOptions says honestly that there is no driver for this host yet.
func keeperOptions(place.Place, guest.KeepRequest, *slog.Logger) (guest.KeepOptions, error) {
	return guest.KeepOptions{}, errNotHere
}

func imageParts(*images.Store) func(context.Context, string) (policy.Parts, func(), error) {
	return func(context.Context, string) (policy.Parts, func(), error) { return policy.Parts{}, nil, errNotHere }
}

func runWall([]string) error { return errNotHere }
