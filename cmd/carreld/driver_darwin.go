package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

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
		for _, s := range req.Spec.GetShares() {
			if !s.Plain {
				return op(fmt.Errorf("share %s has rules, and what serves such shares runs on Linux only yet", s.Path), "share it plain (PATH:ro,plain), or not at all (--no-share)")
			}
		}
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

// tools is where Apple's command line tools are, the only compilers and git that
// a guest here can run: Xcode's lie outside of what it sees.
const tools = "/Library/Developer/CommandLineTools/usr/bin"

// doctor looks at what a guest needs of this Mac.
func doctor(place.Place, *images.Store) func(context.Context, func(*api.Finding)) {
	return func(_ context.Context, found func(*api.Finding)) {
		const good, note, bad = api.FindingLevel_FINDING_LEVEL_GOOD, api.FindingLevel_FINDING_LEVEL_NOTE, api.FindingLevel_FINDING_LEVEL_BAD
		var he *hypervisor.Error
		what, err := checkMachine()
		switch {
		case err == nil:
			found(&api.Finding{Check: "vm", Level: good, Text: what})
			found(&api.Finding{Check: "vm never run", Level: note, Text: "machines were made without a Mac: what drives them was type-checked, and never run", Cure: "scripts/verify-host tries it; docs/platforms.md says what was tried, and how"})
		case errors.As(err, &he):
			found(&api.Finding{Check: "vm", Level: bad, Text: "no machine can be started: " + he.Err.Error(), Cure: he.Cure})
		default:
			found(&api.Finding{Check: "vm", Level: bad, Text: "no machine can be started: " + err.Error()})
		}
		o, err := seatbeltOptions()
		d := seatbelt.New(o)
		if err == nil {
			err = d.Check()
		}
		switch {
		case err == nil:
			found(&api.Finding{Check: "process wall", Level: good, Text: "Seatbelt, with this Mac's own system; " + strings.Join(d.Notes(), "; ")})
		case errors.As(err, &he):
			found(&api.Finding{Check: "process wall", Level: bad, Text: "--boundary process does not work: " + he.Err.Error(), Cure: he.Cure})
		default:
			found(&api.Finding{Check: "process wall", Level: bad, Text: "--boundary process does not work: " + err.Error()})
		}
		found(&api.Finding{Check: "never run", Level: note, Text: "this wall was made without a Mac: its rules are taken from others' and have not been tried", Cure: "docs/seatbelt.md says what was tried, and how"})
		found(&api.Finding{Check: "confinement", Level: note, Text: "a guest's keeper and its egress process have no sandbox of their own on macOS, as they have on Linux"})
		if fi, err := os.Stat(tools); err != nil || !fi.IsDir() {
			found(&api.Finding{Check: "command line tools", Level: note, Text: "git, make and compilers are missing in guests: Apple's command line tools are not installed", Cure: "xcode-select --install"})
		}
	}
}

func runWall([]string) error { return errNotHere }
