//go:build linux && !carreltest

package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/doctor"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/service"
	"github.com/carrel-vm/carrel/hypervisor/bubblewrap"
	"github.com/carrel-vm/carrel/hypervisor/gvisor"
	"github.com/carrel-vm/carrel/hypervisor/qemu"
	"github.com/carrel-vm/carrel/images"
)

// diagnose looks at what a guest needs of this host. What takes longest, a boot
// on KVM, is said last.
func diagnose(p place.Place, store *images.Store) func(context.Context, func(*api.Finding)) {
	return func(ctx context.Context, found func(*api.Finding)) {
		l := doctor.ReadLinux(unitFile())
		machine, err := newMachine(p)
		if err == nil {
			l.QEMU.Version, err = machine.Version(ctx)
		}
		l.QEMU.Trouble = trouble(err)
		each(l.Host(), found)
		var o bubblewrap.Options
		if o, err = bubblewrapOptions(p); err == nil {
			l.Process.Version, l.Process.Notes, err = bubblewrap.New(o).Check(ctx)
		}
		l.Process.Trouble = trouble(err)
		var g gvisor.Options
		if g, err = gvisorOptions(p); err == nil {
			l.GVisor.Version, l.GVisor.Notes, err = gvisor.New(g).Check(ctx)
		}
		l.GVisor.Trouble = trouble(err)
		each(l.Walls(), found)
		// The accelerator is found out by booting the image's own kernel.
		if img, err := store.Get(ctx, policy.DefaultImage); err == nil && l.QEMU.Trouble.Cause == "" {
			a, err := machine.Probe(ctx, img.Kernel, img.Initrd)
			l.KVM.Accelerator, l.KVM.Reason, l.KVM.ProbeTrouble = a.Name, a.Reason, trouble(err).Cause
		}
		each(l.KVM.Findings(), found)
	}
}

func newMachine(p place.Place) (*qemu.Driver, error) {
	o, err := qemuOptions(p)
	return qemu.New(o), err
}

// unitFile is where the daemon's systemd unit of this user would be.
func unitFile() string {
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "systemd", "user", service.SystemdName)
}
