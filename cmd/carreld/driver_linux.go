//go:build linux && !carreltest

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
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/bubblewrap"
	"github.com/carrel-vm/carrel/hypervisor/gvisor"
	"github.com/carrel-vm/carrel/hypervisor/qemu"
	"github.com/carrel-vm/carrel/hypervisor/wall"
	"github.com/carrel-vm/carrel/images"
)

const driverName = "qemu"

func qemuOptions(p place.Place) (qemu.Options, error) {
	self, err := os.Executable()
	return qemu.Options{Shim: []string{self, "confine"}, CacheDir: p.Cache}, err
}

// keeperOptions picks the driver for the wall that was granted. Without a wish
// it is a machine: what is weaker must be asked for.
func keeperOptions(p place.Place, req guest.KeepRequest, log *slog.Logger) (guest.KeepOptions, error) {
	image, wall := req.Spec.GetImage(), req.Spec.GetBoundary()
	if image == hostImage && wall != wallProcess {
		return guest.KeepOptions{}, &hypervisor.Error{
			Op: "start the guest", Err: errors.New("only a process sandbox can start from the host's system"), Cure: "use --boundary process with --image host",
		}
	}
	switch wall {
	case "", wallVM:
		return machine(p, req)
	case wallProcess:
		return process(p, req)
	case wallGVisor:
		return sandbox(p, req)
	}
	return guest.KeepOptions{}, &hypervisor.Error{Op: "start the guest", Err: fmt.Errorf("there is no wall %q", wall), Cure: "use vm, gvisor or process"}
}

// machine keeps a guest in a microVM.
func machine(p place.Place, req guest.KeepRequest) (guest.KeepOptions, error) {
	qo, err := qemuOptions(p)
	if err != nil {
		return guest.KeepOptions{}, err
	}
	d := qemu.New(qo)
	if _, err := d.Version(context.Background()); err != nil {
		var he *hypervisor.Error
		if errors.As(err, &he) && req.Spec.GetBoundary() == "" {
			he.Cure += "; or choose the weaker wall that this machine has: --boundary process, see docs/boundaries.md"
		}
		return guest.KeepOptions{}, err
	}
	return guest.KeepOptions{
		Driver: d, Share: startShare, ShareOwner: taskUser,
		Confine: func() error { return confineKeeper(req.Parts.Dir) },
		Describe: func(g *api.Guest) {
			a := d.Accel()
			g.Accelerator, g.AcceleratorReason = a.Name, a.Reason
			g.HypervisorArgs = d.CommandLine()
			g.Boundary = wallVM
		},
	}, nil
}

// sandbox keeps a guest in gVisor.
func sandbox(p place.Place, req guest.KeepRequest) (guest.KeepOptions, error) {
	g, err := gvisorOptions(p)
	if err != nil {
		return guest.KeepOptions{}, err
	}
	for _, pin := range req.Pins {
		g.Pins = append(g.Pins, wall.Pin{Path: pin.Path, Dev: pin.Dev, Ino: pin.Ino})
	}
	d := gvisor.New(g)
	// The host's kernel shows the mount to the gofer: the user of tasks is one of
	// the guest's range there, or this one, whom its namespace calls root.
	owner := uint32(0)
	if wall.AsRoot() {
		owner = wall.BaseID(req.Parts.Dir) + wall.TaskID
	}
	return guest.KeepOptions{
		Driver: d, Share: startShare, ShareOwner: owner, OneUser: !wall.AsRoot(),
		Confine: func() error { return confineKeeper(req.Parts.Dir) },
		Describe: func(g *api.Guest) {
			pl := d.Platform()
			g.Accelerator, g.AcceleratorReason = pl.Name, pl.Reason
			g.HypervisorArgs = d.CommandLine()
			g.Boundary, g.BoundaryNotes = wallGVisor, d.Notes()
		},
	}, nil
}

func gvisorOptions(p place.Place) (gvisor.Options, error) {
	self, err := os.Executable()
	return gvisor.Options{Agent: filepath.Join(filepath.Dir(self), "carrel-agent"), Shim: []string{self, "wall", wallGVisor}, CacheDir: p.Cache}, err
}

// process keeps a guest in Linux namespaces.
func process(p place.Place, req guest.KeepRequest) (guest.KeepOptions, error) {
	bo, err := bubblewrapOptions(p)
	if err != nil {
		return guest.KeepOptions{}, err
	}
	for _, pin := range req.Pins {
		bo.Pins = append(bo.Pins, bubblewrap.Pin{Path: pin.Path, Dev: pin.Dev, Ino: pin.Ino})
	}
	d := bubblewrap.New(bo)
	return guest.KeepOptions{
		Driver: d, Share: startShare, ShareOwner: taskUser, OneUser: !wall.AsRoot(),
		Confine: func() error { return confineKeeper(req.Parts.Dir) },
		Describe: func(g *api.Guest) {
			g.Accelerator, g.AcceleratorReason = "none", "the host's kernel runs the guest's programs itself"
			g.HypervisorArgs = d.CommandLine()
			g.Boundary, g.BoundaryNotes = wallProcess, d.Notes()
			if i := req.Parts.Image; i != nil && !wall.AsRoot() {
				g.BoundaryNotes = append(g.BoundaryNotes, fmt.Sprintf("users: tasks are user 1000 here, whatever the image says (%.64q)", i.User))
			}
		},
	}, nil
}

func bubblewrapOptions(p place.Place) (bubblewrap.Options, error) {
	self, err := os.Executable()
	return bubblewrap.Options{Agent: filepath.Join(filepath.Dir(self), "carrel-agent"), Shim: []string{self, "wall"}, CacheDir: p.Cache}, err
}

// imageParts names an image's parts, or the host's own system's.
func imageParts(s *images.Store) func(context.Context, string) (policy.Parts, func(), error) {
	return partsOf(s, policy.Parts{Kernel: bubblewrap.HostRoot, Initrd: bubblewrap.HostRoot, Root: bubblewrap.HostRoot})
}

func runConfined(args []string) error { return qemu.ConfineMain(args) }

// runWall is the wall process of the driver that the first argument names, or
// else of bubblewrap.
func runWall(args []string) error {
	if len(args) > 0 && args[0] == wallGVisor {
		return gvisor.WallMain(args[1:])
	}
	return bubblewrap.WallMain(args)
}
