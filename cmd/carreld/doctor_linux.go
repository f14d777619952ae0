//go:build linux && !carreltest

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/bubblewrap"
	"github.com/carrel-vm/carrel/hypervisor/gvisor"
	"github.com/carrel-vm/carrel/hypervisor/qemu"
	"github.com/carrel-vm/carrel/images"
)

const (
	good = api.FindingLevel_FINDING_LEVEL_GOOD
	note = api.FindingLevel_FINDING_LEVEL_NOTE
	bad  = api.FindingLevel_FINDING_LEVEL_BAD
)

// doctor looks at what a guest needs of this host.
func doctor(p place.Place, store *images.Store) func(context.Context, func(*api.Finding)) {
	return func(ctx context.Context, found func(*api.Finding)) {
		qo, err := qemuOptions(p)
		if err != nil {
			found(&api.Finding{Check: "qemu", Level: bad, Text: err.Error()})
			return
		}
		d := qemu.New(qo)
		v, err := d.Version(ctx)
		if err != nil {
			found(failure("qemu", err))
		} else {
			found(&api.Finding{Check: "qemu", Level: good, Text: v})
		}
		if abi, err := llsyscall.LandlockGetABIVersion(); err != nil || abi < 1 {
			found(&api.Finding{Check: "landlock", Level: bad, Text: "this kernel has no Landlock, without which no guest is started", Cure: "Linux 5.13 or newer, with landlock in its lsm= list"})
		} else {
			found(&api.Finding{Check: "landlock", Level: good, Text: fmt.Sprintf("Landlock ABI %d", abi)})
		}
		processWall(ctx, p, found)
		gvisorWall(ctx, p, found)
		for _, tool := range []struct{ name, pkg, what string }{
			{"mkfs.ext4", "e2fsprogs", "disks of named guests"},
			{"mmdebstrap", "mmdebstrap", "carrel image build"},
			{"mkfs.erofs", "erofs-utils", "carrel image build"},
		} {
			if _, err := exec.LookPath(tool.name); err != nil {
				found(&api.Finding{Check: tool.name, Level: note, Text: tool.name + " is missing; " + tool.what + " needs it", Cure: "sudo apt-get install " + tool.pkg})
			}
		}
		// The accelerator is found out by booting the image's own kernel.
		img, err := store.Get(ctx, policy.DefaultImage)
		if err != nil || v == "" {
			return
		}
		a, err := d.Probe(ctx, img.Kernel, img.Initrd)
		switch {
		case err != nil:
			found(failure("accelerator", err))
		case a.Name == "kvm":
			found(&api.Finding{Check: "accelerator", Level: good, Text: "KVM works: " + a.Reason})
		default:
			found(&api.Finding{Check: "accelerator", Level: note, Text: "guests run under software emulation, several times slower: " + a.Reason})
		}
	}
}

// processWall looks at what --boundary process needs. Without it machines work
// all the same.
func processWall(ctx context.Context, p place.Place, found func(*api.Finding)) {
	bo, err := bubblewrapOptions(p)
	if err != nil {
		found(&api.Finding{Check: "process wall", Level: note, Text: err.Error()})
		return
	}
	version, notes, err := bubblewrap.New(bo).Check(ctx)
	if err != nil {
		f := failure("process wall", err)
		f.Level, f.Text = note, "--boundary process does not work: "+f.Text
		found(f)
		return
	}
	found(&api.Finding{Check: "process wall", Level: good, Text: version + "; " + strings.Join(notes, "; ")})
}

// gvisorWall looks at what --boundary gvisor needs.
func gvisorWall(ctx context.Context, p place.Place, found func(*api.Finding)) {
	const check = "gvisor wall"
	o, err := gvisorOptions(p)
	if err != nil {
		found(&api.Finding{Check: check, Level: note, Text: err.Error()})
		return
	}
	version, notes, err := gvisor.New(o).Check(ctx)
	if err != nil {
		f := failure(check, err)
		f.Level, f.Text = note, "--boundary gvisor does not work: "+f.Text
		found(f)
		return
	}
	found(&api.Finding{Check: check, Level: good, Text: version + "; " + strings.Join(notes, "; ")})
}

// failure makes a finding of an error, its cure apart.
func failure(check string, err error) *api.Finding {
	f := &api.Finding{Check: check, Level: bad, Text: err.Error()}
	var he *hypervisor.Error
	if errors.As(err, &he) {
		f.Text, f.Cure = he.Op+": "+he.Err.Error(), he.Cure
	}
	return f
}
