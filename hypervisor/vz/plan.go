package vz

import (
	"errors"
	"fmt"
	"strings"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Architectures of Macs, as GOARCH calls them. A guest has its host's.
const (
	AMD64 = "amd64"
	ARM64 = "arm64"
)

// maxDevices is how many plain shares are virtio-fs devices; those beyond ride the
// vsock carrier. The guest's PCI bus has 32 places, of which the others need ten.
const maxDevices = 16

// Host is what a plan depends on besides the guest's Config.
type Host struct {
	Arch  string
	MacOS Version
	// Virtual says that the processor and macOS can run machines at all.
	Virtual bool
	// The framework's bounds of a machine; memory in bytes.
	MinCPUs, MaxCPUs     uint
	MinMemory, MaxMemory uint64
}

// Plan is one machine as the framework is to make it. It has an entropy device, a
// memory balloon, a serial port for the console and a vsock device besides what
// is named here, and no network card.
type Plan struct {
	Kernel, Initrd, Cmdline string
	CPUs                    uint
	// Memory is in bytes.
	Memory uint64
	Disks  []Disk
	// Shares are virtio-fs devices of the framework's own, one for each plain share.
	Shares []Device
	// Mounts say how the agent reaches each share of the Config, in order.
	Mounts []hypervisor.Mount
	// Identity says that the machine gets an identifier of its own, which a saved
	// machine must have again.
	Identity bool
}

// Sync is what a guest's flush of a disk does on the host.
type Sync string

// The ways to synchronise.
const (
	// SyncNone does nothing; of disks that are only read.
	SyncNone Sync = "none"
	// SyncFile is fsync(2): what was flushed outlives this process, and a panic of
	// macOS, but not a loss of power, since the drive's own cache is not flushed.
	SyncFile Sync = "fsync"
	// SyncDrive is F_FULLFSYNC: it outlives a loss of power, and takes longer.
	SyncDrive Sync = "full"
)

// Disk is a raw image as a virtio disk. The host's page cache is always used: with
// the framework's own choice of caching, Linux' file systems were found damaged
// (github.com/lima-vm/lima/issues/1957, github.com/utmapp/UTM/issues/4840).
type Disk struct {
	Path     string
	ReadOnly bool
	Sync     Sync
	// Serial is what the guest sees as the disk's serial number, at most 20 bytes.
	Serial string `json:",omitempty"`
}

// Device is a share as a virtio-fs device.
type Device struct {
	Tag, Path string
	ReadOnly  bool
}

// MakePlan decides what machine a Config becomes on a host, or says why none does.
func MakePlan(c hypervisor.Config, h Host) (Plan, error) {
	op := func(err error, cure string) (Plan, error) {
		return Plan{}, &hypervisor.Error{Op: "create guest", Err: err, Cure: cure}
	}
	if err := c.Check(); err != nil {
		return op(err, "")
	}
	for _, w := range c.Cmdline {
		if w == "" || strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return op(fmt.Errorf("kernel command line word %q is empty or has spaces or control characters", w), "")
		}
	}
	memory := uint64(c.MemoryMiB) << 20
	switch {
	case h.Arch != ARM64 && h.Arch != AMD64:
		return op(fmt.Errorf("there are no machines for the processor %q", h.Arch), "")
	case !h.Virtual:
		return op(errors.New("this Mac's processor or macOS runs no virtual machines (sysctl kern.hv_support is 0)"),
			"if this macOS is itself a virtual machine, turn nested virtualisation on for it; else --boundary process --image host")
	case uint(c.CPUs) < h.MinCPUs || uint(c.CPUs) > h.MaxCPUs:
		return op(fmt.Errorf("%d CPUs asked for; between %d and %d are possible on this Mac", c.CPUs, h.MinCPUs, h.MaxCPUs), "--cpus")
	case memory < h.MinMemory || memory > h.MaxMemory:
		return op(fmt.Errorf("%d MiB of memory asked for; between %d and %d are possible on this Mac", c.MemoryMiB, (h.MinMemory+1<<20-1)>>20, h.MaxMemory>>20), "--memory")
	}
	if err := h.needs("a machine that can be stopped", forMachine); err != nil {
		return Plan{}, err
	}
	p := Plan{
		Kernel: c.Kernel, Initrd: c.Initrd, Cmdline: cmdline(c), CPUs: uint(c.CPUs), Memory: memory,
		Disks:    []Disk{{Path: c.Root, ReadOnly: true, Sync: SyncNone}},
		Identity: h.needs("an identifier", forIdentity) == nil,
	}
	if c.Scratch != "" {
		p.Disks = append(p.Disks, Disk{Path: c.Scratch, Sync: SyncFile})
	}
	for _, v := range c.Volumes {
		if err := h.needs("a volume", forSerial); err != nil {
			return Plan{}, err
		}
		// A volume outlives its guest, and nobody can make its content again.
		p.Disks = append(p.Disks, Disk{Path: v.Path, Sync: SyncDrive, Serial: v.Serial})
	}
	for _, s := range c.Shares {
		m := hypervisor.Mount{Tag: s.Tag, Type: "fuse", GuestPath: s.GuestPath, ReadOnly: s.ReadOnly, Overlay: s.Overlay, Layer: s.Layer}
		// Only what no rule of the share server narrows may pass it by.
		if s.Plain && len(p.Shares) < maxDevices {
			m.Type = "virtiofs"
			p.Shares = append(p.Shares, Device{Tag: s.Tag, Path: s.Path, ReadOnly: s.ReadOnly || s.Overlay})
		}
		p.Mounts = append(p.Mounts, m)
	}
	return p, nil
}

// cmdline is the guest kernel's. Here a reboot starts the guest again, so its end
// must be a power-off; and after a panic it waits until VM, which reads the
// console, has ended it.
func cmdline(c hypervisor.Config) string {
	words := []string{"quiet", "console=hvc0", "panic=0", "random.trust_cpu=on", "carrel.end=poweroff"}
	if c.Scratch != "" {
		words = append(words, "carrel.scratch=/dev/vdb")
	}
	return strings.Join(append(words, c.Cmdline...), " ")
}
