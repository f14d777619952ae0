package bubblewrap

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/wall"
)

// Options are what a Driver is made from.
type Options struct {
	// Bwrap is bwrap's path; empty: bwrap in PATH.
	Bwrap string
	// Agent is the path of carrel-agent on the host, which runs in the guest.
	Agent string
	// Shim is a command that calls WallMain: {"/usr/bin/carreld", "wall"}.
	Shim []string
	// CacheDir keeps unpacked images, where the kernel lets this user mount
	// none.
	CacheDir string
	// MaxProcesses is how many processes and threads a guest may have; 0:
	// 16,384.
	MaxProcesses int
	// Pins say which folder each share of the Config must be.
	Pins []Pin
}

// Pin identifies a folder.
type Pin = wall.Pin

// maxProcesses is how many processes and threads a guest may have.
const maxProcesses = 16 << 10

// Driver makes guests with bwrap.
type Driver struct {
	opts Options

	mu    sync.Mutex
	notes []string // of the last Start
	argv  []string
}

// New returns a driver. Whether it can make guests shows at Check or Create.
func New(o Options) *Driver { return &Driver{opts: o} }

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return "bubblewrap" }

// Notes say what holds the last guest started and what does not, a sentence
// each.
func (d *Driver) Notes() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.notes)
}

// CommandLine is bwrap's own of the last guest started, nil before.
func (d *Driver) CommandLine() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.argv)
}

func (d *Driver) note(notes, argv []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notes, d.argv = notes, argv
}

// Create implements hypervisor.Driver. A Config whose Root is HostRoot gets the
// host's system; kernel and initrd are not used.
func (d *Driver) Create(ctx context.Context, cfg hypervisor.Config, h hypervisor.Handlers) (hypervisor.VM, error) {
	spec, err := d.spec(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return wall.New(ctx, cfg, h, wall.Options{Shim: d.opts.Shim, Spec: spec, Started: d.note})
}

// spec is what the wall is to make of a Config.
func (d *Driver) spec(ctx context.Context, cfg hypervisor.Config) (s wall.Spec, err error) {
	if err := cfg.Check(); err != nil {
		return s, &hypervisor.Error{Op: "create guest", Err: err}
	}
	s = wall.Spec{Ranged: wall.AsRoot(), Name: cfg.Name, Dir: cfg.Dir, Agent: d.opts.Agent, CPUs: cfg.CPUs, MemoryMiB: cfg.MemoryMiB, Processes: d.opts.MaxProcesses}
	if s.Processes <= 0 {
		s.Processes = maxProcesses
	}
	if s.Program, err = findBwrap(d.opts.Bwrap); err != nil {
		return s, err
	}
	if fi, err := os.Stat(d.opts.Agent); err != nil || !fi.Mode().IsRegular() {
		return s, &hypervisor.Error{Op: "create guest", Err: fmt.Errorf("the agent %q is not there: %v", d.opts.Agent, err), Cure: "make build"}
	}
	if s.Shares, err = wall.Pinned(cfg.Shares, d.opts.Pins, wall.ByStream); err != nil {
		return s, err
	}
	// Shares that come later need it too.
	if err := wall.FuseError(); err == nil {
		s.Fuse = true
	} else if served(&s) {
		return s, err
	}
	if cfg.Scratch != "" {
		// The disk's image is for a machine; here its place is a folder.
		s.Changes = cfg.Scratch + ".files"
	}
	switch {
	case cfg.Root == HostRoot:
	case cfg.Foreign:
		if s.Tree, err = wall.Extracted(ctx, cfg.Root); err != nil {
			return s, &hypervisor.Error{Op: "unpack the image", Err: err, Cure: "make room on the disk of " + d.opts.CacheDir}
		}
	case wall.AsRoot():
		s.Image = cfg.Root
	default:
		if s.Tree, err = wall.Unpacked(ctx, d.opts.CacheDir, cfg.Root); err != nil {
			return s, &hypervisor.Error{Op: "unpack the image", Err: err, Cure: "sudo apt-get install erofs-utils, and room on the disk of " + d.opts.CacheDir}
		}
	}
	return s, nil
}
