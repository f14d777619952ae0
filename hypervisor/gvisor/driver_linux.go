package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/wall"
)

// Options are what a Driver is made from.
type Options struct {
	// Runsc is runsc's path; empty: runsc in PATH.
	Runsc string
	// Agent is the path of carrel-agent on the host, which runs in the guest.
	Agent string
	// Shim is a command that calls WallMain: {"/usr/bin/carreld", "wall", "gvisor"}.
	Shim []string
	// CacheDir keeps unpacked images, where the kernel lets this user mount
	// none, and which platform works here.
	CacheDir string
	// MaxProcesses is how many processes and threads of the host a guest may
	// have: the sentry's own are a few dozen, and one or more for each of the
	// guest's. 0: 16,384.
	MaxProcesses int
	// Pins say which folder each share of the Config must be.
	Pins []wall.Pin
}

// maxProcesses is how many processes and threads a guest may have.
const maxProcesses = 16 << 10

// overheadMiB is what sentry, gofer and runsc take beside the guest's own
// memory, which the control group counts together.
const overheadMiB = 128

// Driver makes guests with runsc.
type Driver struct {
	opts Options

	mu       sync.Mutex
	platform Platform
	notes    []string // of the last Start
	argv     []string
}

// New returns a driver. Whether it can make guests shows at Check or Create.
func New(o Options) *Driver { return &Driver{opts: o} }

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return "gvisor" }

// Notes say what holds the last guest started and what does not, a sentence
// each.
func (d *Driver) Notes() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.notes)
}

// CommandLine is runsc's own of the last guest started, nil before.
func (d *Driver) CommandLine() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.argv)
}

// Platform is how the last guest created runs its programs.
func (d *Driver) Platform() Platform {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.platform
}

func (d *Driver) started(notes, argv []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notes, d.argv = notes, argv
}

// Create implements hypervisor.Driver. Kernel and initrd are not used: gVisor is
// the kernel.
func (d *Driver) Create(ctx context.Context, cfg hypervisor.Config, h hypervisor.Handlers) (hypervisor.VM, error) {
	spec, err := d.spec(ctx, cfg)
	if err != nil {
		return nil, err
	}
	o := wall.Options{Shim: d.opts.Shim, Spec: spec, Started: d.started}
	if !spec.Ranged {
		o.Sys = ownNamespaces()
	}
	return wall.New(ctx, cfg, h, o)
}

// ownNamespaces start the wall process as root of a user namespace that has
// this user only, where it may mount what the guest is to see.
func ownNamespaces() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	return a
}

// spec is what the wall is to make of a Config.
func (d *Driver) spec(ctx context.Context, cfg hypervisor.Config) (s wall.Spec, err error) {
	if err := cfg.Check(); err != nil {
		return s, &hypervisor.Error{Op: "create guest", Err: err}
	}
	if cfg.Scratch != "" {
		return s, &hypervisor.Error{
			Op:   "create guest",
			Err:  errors.New("gVisor keeps a guest's changes in memory: a guest with a disk is not possible"),
			Cure: "leave --disk away: what such a guest changes outside of shared folders is gone when it stops. Or use --boundary vm or process",
		}
	}
	s = wall.Spec{
		Ranged: wall.AsRoot(), Name: cfg.Name, Dir: cfg.Dir, Agent: d.opts.Agent,
		CPUs: cfg.CPUs, MemoryMiB: cfg.MemoryMiB, ExtraMiB: overheadMiB, Processes: d.opts.MaxProcesses,
	}
	if s.Processes <= 0 {
		s.Processes = maxProcesses
	}
	if s.Program, err = findRunsc(d.opts.Runsc); err != nil {
		return s, err
	}
	if fi, err := os.Stat(d.opts.Agent); err != nil || !fi.Mode().IsRegular() {
		return s, &hypervisor.Error{Op: "create guest", Err: fmt.Errorf("the agent %q is not there: %v", d.opts.Agent, err), Cure: "make build"}
	}
	if s.Shares, err = wall.Pinned(cfg.Shares, d.opts.Pins, wall.ByDevice); err != nil {
		return s, err
	}
	if cfg.Foreign {
		if s.Tree, err = wall.Extracted(ctx, cfg.Root); err != nil {
			return s, &hypervisor.Error{Op: "unpack the image", Err: err, Cure: "make room on the disk of " + d.opts.CacheDir}
		}
	} else if s.Ranged {
		s.Image = cfg.Root
	} else if s.Tree, err = wall.Unpacked(ctx, d.opts.CacheDir, cfg.Root); err != nil {
		return s, &hypervisor.Error{Op: "unpack the image", Err: err, Cure: "sudo apt-get install erofs-utils, and room on the disk of " + d.opts.CacheDir}
	}
	p, err := d.probe(ctx, s.Program)
	if err != nil {
		return s, err
	}
	s.Platform = p.Name
	d.mu.Lock()
	defer d.mu.Unlock()
	d.platform = p
	return s, nil
}
