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

const driverName = "seatbelt"

// wallProcess is the one wall there is here, as a request names it.
const wallProcess = "process"

var errNoMachine = &hypervisor.Error{
	Op: "start the guest", Err: errors.New("there is no virtual machine for macOS yet"),
	Cure: "use Linux, or the weaker wall that is there: --boundary process --image host; docs/seatbelt.md says what it holds",
}

// hostImage is the image that is the host's own system.
const hostImage = "host"

// keeperOptions picks the driver for the wall that was granted. Without a wish
// it is a machine, which there is none of here: what is weaker must be asked for.
func keeperOptions(_ place.Place, req guest.KeepRequest, _ *slog.Logger) (guest.KeepOptions, error) {
	switch wall := req.Spec.GetBoundary(); wall {
	case "", "vm":
		return guest.KeepOptions{}, errNoMachine
	case wallProcess:
	default:
		return guest.KeepOptions{}, &hypervisor.Error{Op: "start the guest", Err: fmt.Errorf("there is no wall %q on macOS", wall), Cure: "use process"}
	}
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

// imageParts knows one image: the Mac's own system.
func imageParts(*images.Store) func(context.Context, string) (policy.Parts, func(), error) {
	return func(_ context.Context, name string) (policy.Parts, func(), error) {
		if name != hostImage {
			return policy.Parts{}, nil, &hypervisor.Error{
				Op: "start the guest", Err: fmt.Errorf("image %q is for a machine, and there is none for macOS yet", name), Cure: "use --boundary process --image host",
			}
		}
		return policy.Parts{Kernel: seatbelt.HostRoot, Initrd: seatbelt.HostRoot, Root: seatbelt.HostRoot}, func() {}, nil
	}
}

func runWall([]string) error { return errNotHere }
