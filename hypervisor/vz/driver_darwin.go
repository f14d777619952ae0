//go:build cgo

package vz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"github.com/Code-Hex/vz/v3"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Options are what a Driver is made from.
type Options struct {
	// Pins say which folder each share of the Config must be.
	Pins []Pin
	// Saved is the folder of a guest that was saved and is to go on; empty: guests
	// boot.
	Saved string
}

// Pin identifies a folder.
type Pin struct {
	Path     string
	Dev, Ino uint64
}

// Driver makes guests with Virtualization.framework.
type Driver struct {
	opts Options

	mu   sync.Mutex
	last Plan // of the last Create
}

// New returns a driver. Whether it can make guests shows at Check or Create.
func New(o Options) *Driver { return &Driver{opts: o} }

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return "vz" }

// FindHost asks this Mac what it can do.
func FindHost() (Host, error) {
	said, err := unix.Sysctl("kern.osproductversion")
	if err != nil {
		return Host{}, fmt.Errorf("ask macOS for its version: %w", err)
	}
	v, err := ParseVersion(said)
	if err != nil {
		return Host{}, err
	}
	// Apple's documentation of Hypervisor.framework: 1 where it can be used.
	support, err := unix.SysctlUint32("kern.hv_support")
	return Host{
		Arch: runtime.GOARCH, MacOS: v, Virtual: err == nil && support == 1,
		MinCPUs: vz.VirtualMachineConfigurationMinimumAllowedCPUCount(), MaxCPUs: vz.VirtualMachineConfigurationMaximumAllowedCPUCount(),
		MinMemory: vz.VirtualMachineConfigurationMinimumAllowedMemorySize(), MaxMemory: vz.VirtualMachineConfigurationMaximumAllowedMemorySize(),
	}, nil
}

// Check says why no guest can be made on this Mac, or nil. Whether this program is
// signed for it shows at Create only.
func (d *Driver) Check() error {
	h, err := FindHost()
	if err != nil {
		return &hypervisor.Error{Op: "create guest", Err: err}
	}
	_, err = MakePlan(hypervisor.Config{
		Name: "check", Dir: "/", Kernel: "/", Initrd: "/", Root: "/", CPUs: int(h.MinCPUs), MemoryMiB: max(hypervisor.MinMemoryMiB, int(h.MinMemory+1<<20-1)>>20),
	}, h)
	return err
}

// Summary is the last guest's machine in a few words, for people to read.
func (d *Driver) Summary() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last.Kernel == "" {
		return nil
	}
	return []string{
		"Virtualization.framework", fmt.Sprintf("cpus=%d", d.last.CPUs), fmt.Sprintf("memory=%dMiB", d.last.Memory>>20),
		fmt.Sprintf("disks=%d", len(d.last.Disks)), fmt.Sprintf("virtio-fs=%d", len(d.last.Shares)), "cmdline=" + d.last.Cmdline,
	}
}

// Notes say what a guest's owner should know of its boundary, a sentence each.
func (d *Driver) Notes() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var notes []string
	for _, s := range d.last.Shares {
		notes = append(notes, fmt.Sprintf("%s is served by macOS itself, as it is: nothing in it is hidden or protected, and nothing is kept for undo", s.Path))
	}
	return notes
}

// Create implements hypervisor.Driver.
func (d *Driver) Create(_ context.Context, cfg hypervisor.Config, h hypervisor.Handlers) (_ hypervisor.VM, err error) {
	op := func(err error) error { return &hypervisor.Error{Op: "create guest", Err: err} }
	host, err := FindHost()
	if err != nil {
		return nil, op(err)
	}
	plan, err := MakePlan(cfg, host)
	if err != nil {
		return nil, err
	}
	if err := CheckKernel(plan.Kernel, host.Arch); err != nil {
		return nil, err
	}
	for _, path := range append([]string{plan.Initrd}, disks(plan)...) {
		if fi, err := os.Lstat(path); err != nil || !fi.Mode().IsRegular() {
			return nil, op(errors.Join(err, fmt.Errorf("%s is not a regular file", path)))
		}
	}
	still := func() error { return d.pinned(cfg, plan) }
	if err := still(); err != nil {
		return nil, op(err)
	}
	var identity []byte
	saved := ""
	if d.opts.Saved != "" {
		if identity, saved, err = readSaved(d.opts.Saved, plan, host); err != nil {
			return nil, err
		}
	}
	p, err := newPipes()
	if err != nil {
		return nil, op(err)
	}
	m, identity, err := translate(plan, identity, p)
	if err != nil {
		p.close()
		p.closeOurs()
		return nil, err
	}
	d.mu.Lock()
	d.last = plan
	d.mu.Unlock()
	v := newVM(plan, host, h, m, p)
	v.identity, v.saved, v.still = identity, saved, still
	return v, nil
}

func disks(p Plan) (paths []string) {
	for _, disk := range p.Disks {
		paths = append(paths, disk.Path)
	}
	return paths
}

// pinned checks that the folders that are devices are the ones that were granted.
// The framework opens them by their path, so it is asked before and after.
func (d *Driver) pinned(cfg hypervisor.Config, plan Plan) error {
	for i, m := range plan.Mounts {
		if m.Type != "virtiofs" {
			continue
		}
		path := cfg.Shares[i].Path
		if i >= len(d.opts.Pins) || d.opts.Pins[i].Path != path {
			return fmt.Errorf("share %s has no pin", path)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("share %s: %w", path, err)
		}
		// The numbers are those that policy has pinned, in its widths.
		if st.Mode&unix.S_IFMT != unix.S_IFDIR || uint64(st.Dev) != d.opts.Pins[i].Dev || st.Ino != d.opts.Pins[i].Ino {
			return fmt.Errorf("share %s was replaced by another folder (choose it again)", path)
		}
	}
	return nil
}

// explain adds to an error of the framework what would mend it.
func explain(op string, err error) error {
	e := &hypervisor.Error{Op: op, Err: err}
	var ns *vz.NSError
	switch {
	case errors.As(err, &ns):
		e.Err, e.Cure = errors.New(strings.TrimSpace(ns.LocalizedDescription)), cure(ns.Domain, ns.Code)
	case errors.Is(err, vz.ErrUnsupportedOSVersion):
		e.Cure = "update macOS"
	case errors.Is(err, vz.ErrBuildTargetOSVersion):
		e.Cure = "build carreld with a newer Xcode"
	}
	return e
}
