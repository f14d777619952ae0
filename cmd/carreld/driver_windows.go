//go:build !carreltest

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hcs"
	"github.com/carrel-vm/carrel/images"
)

const driverName = "hcs"

// keeperOptions gives the one wall that there is here.
func keeperOptions(_ place.Place, req guest.KeepRequest, _ *slog.Logger) (guest.KeepOptions, error) {
	if wall := req.Spec.GetBoundary(); wall != "" && wall != "vm" {
		return guest.KeepOptions{}, &hypervisor.Error{Op: "start the guest", Err: fmt.Errorf("there is no wall %q on Windows", wall), Cure: "use vm"}
	}
	// Before it has a guest, and starts what reads the guest's bytes.
	if err := shutProcess(); err != nil {
		return guest.KeepOptions{}, err
	}
	d := hcs.New()
	if err := d.Check(); err != nil {
		return guest.KeepOptions{}, err
	}
	return guest.KeepOptions{
		Driver: d,
		// A keeper has no sandbox of its own here: docs/hcs.md.
		Confine: func() error { return nil },
		Share:   startShare,
		Describe: func(g *api.Guest) {
			g.Accelerator, g.AcceleratorReason = "hyper-v", "Windows' own hypervisor"
			g.Boundary = "vm"
		},
	}, nil
}

// imageParts verifies an image and names its parts.
func imageParts(s *images.Store) func(context.Context, string) (policy.Parts, func(), error) {
	return func(ctx context.Context, name string) (policy.Parts, func(), error) {
		id, _, err := s.Find(name)
		if err != nil && hypervisor.ValidName(name) {
			id = name // it is said how to get it
		} else if err != nil {
			return policy.Parts{}, nil, err
		}
		img, release, err := s.Use(ctx, id)
		if err != nil {
			return policy.Parts{}, nil, err
		}
		if img.Manifest.Origin != nil {
			release()
			return policy.Parts{}, nil, fmt.Errorf("image %s: %w", name, errors.ErrUnsupported)
		}
		return policy.Parts{Kernel: img.Kernel, Initrd: img.Initrd, Root: img.Root}, release, nil
	}
}

func runWall([]string) error { return errNotHere }
