//go:build linux && !carreltest

package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor/qemu"
	"github.com/carrel-vm/carrel/images"
)

const driverName = "qemu"

func qemuOptions(p place.Place) (qemu.Options, error) {
	self, err := os.Executable()
	return qemu.Options{Shim: []string{self, "confine"}, CacheDir: p.Cache}, err
}

// keeperOptions picks the driver of this host.
func keeperOptions(p place.Place, req guest.KeepRequest, log *slog.Logger) (guest.KeepOptions, error) {
	qo, err := qemuOptions(p)
	if err != nil {
		return guest.KeepOptions{}, err
	}
	d := qemu.New(qo)
	return guest.KeepOptions{
		Driver: d, Share: startShares(req.Pins),
		Confine: func() error { return confineKeeper(req.Parts.Dir) },
		Describe: func(g *api.Guest) {
			a := d.Accel()
			g.Accelerator, g.AcceleratorReason = a.Name, a.Reason
			g.HypervisorArgs = d.CommandLine()
		},
	}, nil
}

// imageParts verifies an image and names its parts.
func imageParts(s *images.Store) func(context.Context, string) (policy.Parts, error) {
	return func(ctx context.Context, name string) (policy.Parts, error) {
		img, err := s.Get(ctx, name)
		if err != nil {
			return policy.Parts{}, err
		}
		return policy.Parts{Kernel: img.Kernel, Initrd: img.Initrd, Root: img.Root}, nil
	}
}

func runConfined(args []string) error { return qemu.ConfineMain(args) }
