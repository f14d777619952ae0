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
	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/seatbelt"
	"github.com/carrel-vm/carrel/images"
)

const driverName = "vz"

// keeperOptions picks the driver for the wall that was granted. Without a wish
// it is a machine: what is weaker must be asked for.
func keeperOptions(_ place.Place, req guest.KeepRequest, _ *slog.Logger) (guest.KeepOptions, error) {
	image, wall := req.Spec.GetImage(), req.Spec.GetBoundary()
	op := func(err error, cure string) (guest.KeepOptions, error) {
		return guest.KeepOptions{}, &hypervisor.Error{Op: "start the guest", Err: err, Cure: cure}
	}
	if image == hostImage && wall != wallProcess {
		return op(errors.New("only the process wall can start from the host's system"), "use --boundary process with --image host")
	}
	switch wall {
	case "", wallVM:
		return machine(req)
	case wallProcess:
		return process(req)
	}
	return op(fmt.Errorf("there is no wall %q on macOS", wall), "use vm or process")
}

// process keeps a guest in Seatbelt.
func process(req guest.KeepRequest) (guest.KeepOptions, error) {
	grant, err := policy.Decide(req.Spec, req.Rules)
	if err != nil {
		return guest.KeepOptions{}, err
	}
	o, err := seatbeltOptions()
	if err != nil {
		return guest.KeepOptions{}, err
	}
	for i, pin := range req.Pins {
		o.Pins = append(o.Pins, seatbelt.Pin{Path: pin.Path, Dev: pin.Dev, Ino: pin.Ino})
		r := grant.ShareRules(i)
		hide, protect := r.Patterns()
		o.Names = append(o.Names, seatbelt.Names{Hide: hide, Protect: protect, NoDelete: r.Mode == rules.NoDelete})
	}
	d := seatbelt.New(o)
	if err := d.Check(); err != nil {
		return guest.KeepOptions{}, err
	}
	return guest.KeepOptions{
		Driver: d,
		// A keeper has no sandbox of its own here: docs/seatbelt.md.
		Confine: func() error { return nil },
		Describe: func(g *api.Guest) {
			g.Accelerator, g.AcceleratorReason = "none", "the host's kernel runs the guest's programs itself"
			g.HypervisorArgs = d.CommandLine()
			g.Boundary, g.BoundaryNotes = wallProcess, d.Notes()
		},
	}, nil
}

// seatbeltOptions are those that every guest has.
func seatbeltOptions() (seatbelt.Options, error) {
	self, err := os.Executable()
	if err != nil {
		return seatbelt.Options{}, err
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return seatbelt.Options{}, fmt.Errorf("find the home directory, which is never shared: %w (set HOME)", err)
	}
	return seatbelt.Options{Agent: filepath.Join(filepath.Dir(self), "carrel-agent"), Home: home}, nil
}

// imageParts names an image's parts, or the Mac's own system's.
func imageParts(s *images.Store) func(context.Context, string) (policy.Parts, func(), error) {
	return partsOf(s, policy.Parts{Kernel: seatbelt.HostRoot, Initrd: seatbelt.HostRoot, Root: seatbelt.HostRoot})
}

func runWall([]string) error { return errNotHere }
