//go:build linux && carreltest

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/images"
)

// Built with the tag carreltest, the daemon drives no boundary at all: its
// "guests" are the real agent as an ordinary process. The second ring of tests
// runs the real daemon and keeper over it, as fast as processes start.
const driverName = "test"

func keeperOptions(_ place.Place, req guest.KeepRequest, _ *slog.Logger) (guest.KeepOptions, error) {
	// Whoever asks for a wall shall not be told that it stands.
	if b := req.Spec.GetBoundary(); b != "" {
		return guest.KeepOptions{}, fmt.Errorf("this daemon was built for tests and has no wall %q", b)
	}
	self, err := os.Executable()
	if err != nil {
		return guest.KeepOptions{}, err
	}
	d := testDriver(filepath.Join(filepath.Dir(self), "carrel-agent"))
	return guest.KeepOptions{
		Driver: d, Confine: func() error { return nil },
		Describe: func(g *api.Guest) { g.Accelerator, g.AcceleratorReason = "none", "a test driver without any boundary" },
	}, nil
}

func imageParts(*images.Store) func(context.Context, string) (policy.Parts, func(), error) {
	return func(context.Context, string) (policy.Parts, func(), error) {
		return policy.Parts{Kernel: "/none", Initrd: "/none", Root: "/none"}, func() {}, nil
	}
}

func diagnose(place.Place, *images.Store) func(context.Context, func(*api.Finding)) {
	return func(_ context.Context, found func(*api.Finding)) {
		found(&api.Finding{Check: "driver", Level: api.FindingLevel_FINDING_LEVEL_NOTE, Text: "this daemon was built for tests: its guests have no boundary"})
	}
}

func runConfined([]string) error {
	return errors.New("a daemon built for tests confines nothing")
}

func runWall([]string) error {
	return errors.New("a daemon built for tests builds no wall")
}
