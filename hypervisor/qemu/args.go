package qemu

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Names of the accelerators.
const (
	KVM = "kvm" // the host's processor
	TCG = "tcg" // software emulation
)

// Slots is how many virtio devices QEMU's microvm machine has room for without
// ACPI (hw/i386/microvm.c, microvm_devices_init).
const Slots = 8

// buses are the slots in the order in which they are taken. QEMU announces the
// highest first, and Linux names disks in that order: root must be vda. Slot n
// has interrupt 5+n; slot 3 comes last because its interrupt is also that of
// the clock chip, whose driver then complains and gives up. The chip itself is
// needed: a kernel without one looks for it for two seconds.
var buses = [Slots]int{7, 6, 5, 4, 2, 1, 0, 3}

// Machine is what Args needs to know besides the guest's Config. The numbers
// are file descriptors that QEMU inherits, each one end of a socket pair.
type Machine struct {
	Version Version
	// Arch is the guest's, AMD64 or ARM64; empty: AMD64.
	Arch string
	// Accel is KVM or TCG.
	Accel string
	// QMP, Console and Vsock carry QEMU's monitor, the guest's serial port
	// and vhost-user.
	QMP, Console, Vsock int
	// CounterKHz is how fast this host's processor counts time, if that is known;
	// 0 leaves it to the guest's kernel to find out.
	CounterKHz int
	// Shares carry vhost-user, one for each of the Config's first Devices.
	Shares []int
}

// MaxShares is how many shares fit into a guest as devices beside the devices that it
// cannot do without: vsock, root, volumes and, if the Config has one, scratch. The
// memory balloon and the random number device give way to shares.
func MaxShares(c hypervisor.Config) int {
	n := Slots - 2 - len(c.Volumes)
	if c.Scratch != "" {
		n--
	}
	return n
}

// Devices is how many of the Config's shares are virtio-fs devices: the first
// ones, as many as there is room for.
func Devices(c hypervisor.Config) int { return min(len(c.Shares), MaxShares(c)) }

// Args is QEMU's command line, without the program, for one guest.
//
// The values that contain paths are given as JSON, in which QEMU sees no
// separators of its own.
func Args(c hypervisor.Config, m Machine) []string {
	devices := []map[string]any{
		{"driver": "vhost-user-vsock-device", "chardev": "vsock"},
		blk("root"),
	}
	args := base(c, m)
	args = append(args,
		"-chardev", socket("vsock", m.Vsock),
		"-blockdev", arg(map[string]any{
			"driver": "raw", "node-name": "root", "read-only": true,
			"file": map[string]any{"driver": "file", "filename": c.Root, "read-only": true, "auto-read-only": false, "locking": "on"},
		}),
	)
	if c.Scratch != "" {
		args = append(args, "-blockdev", disk("scratch", c.Scratch))
		devices = append(devices, blk("scratch"))
	}
	for _, v := range c.Volumes {
		args = append(args, "-blockdev", disk(v.Serial, v.Path))
		d := blk(v.Serial)
		d["serial"] = v.Serial
		devices = append(devices, d)
	}
	for i, s := range c.Shares[:Devices(c)] {
		args = append(args, "-chardev", socket(s.Tag, m.Shares[i]))
		devices = append(devices, map[string]any{"driver": "vhost-user-fs-device", "chardev": s.Tag, "tag": s.Tag, "queue-size": 1024})
	}
	// What the guest freed goes back to the host.
	balloon := map[string]any{"driver": "virtio-balloon-device", "free-page-reporting": true}
	// Without it the guest has its processor's RDRAND only.
	rng := map[string]any{"driver": "virtio-rng-device", "rng": "rng"}
	if len(devices) < Slots {
		devices = append(devices, balloon)
	}
	if len(devices) < Slots {
		args = append(args, "-object", arg(map[string]any{"qom-type": "rng-builtin", "id": "rng"}))
		devices = append(devices, rng)
	}
	for i, d := range devices {
		archOf(m.Arch).put(d, fmt.Sprintf("virtio-mmio-bus.%d", buses[i]))
		args = append(args, "-device", arg(d))
	}
	return append(args, "-append", Cmdline(c, m))
}

// base is what a guest and the accelerator's trial boot have in common.
func base(c hypervisor.Config, m Machine) []string {
	a := archOf(m.Arch)
	// memory-merge would let one guest measure another's pages.
	machine := append(slices.Clone(a.machine), "mem-merge=off", "dump-guest-core=off", "memory-backend=ram")
	accel, cpu := "tcg,thread=multi", a.cpu
	if m.Accel == KVM {
		machine = append(machine, a.machineKVM...)
		accel, cpu = "kvm", a.cpuKVM
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-name", "carrel-" + c.Name,
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", strings.Join(machine, ","),
		"-accel", accel,
		"-cpu", cpu,
		"-smp", strconv.Itoa(c.CPUs),
		"-m", strconv.Itoa(c.MemoryMiB) + "M",
		// vhost-user devices need memory that they can map.
		"-object", arg(map[string]any{"qom-type": "memory-backend-memfd", "id": "ram", "size": int64(c.MemoryMiB) << 20, "share": true}),
	}
	for _, g := range a.globals {
		args = append(args, "-global", g)
	}
	return append(args,
		"-chardev", socket("qmp", m.QMP),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", socket("console", m.Console),
		"-serial", "chardev:console",
		"-kernel", c.Kernel,
		"-initrd", c.Initrd,
	)
}

// disk is a raw image that the guest may write. What the guest discards becomes
// a hole in the file.
func disk(node, path string) string {
	return arg(map[string]any{
		"driver": "raw", "node-name": node, "read-only": false, "discard": "unmap",
		"file": map[string]any{"driver": "file", "filename": path, "auto-read-only": false, "discard": "unmap", "locking": "on"},
	})
}

// blk is a disk. Errors go to the guest as I/O errors: with QEMU's default a
// full host disk would pause the whole guest.
func blk(node string) map[string]any {
	return map[string]any{"driver": "virtio-blk-device", "drive": node, "werror": "report", "rerror": "report"}
}

func socket(id string, fd int) string { return fmt.Sprintf("socket,id=%s,fd=%d", id, fd) }

func arg(m map[string]any) string {
	b, err := json.Marshal(m) // keys come out sorted
	if err != nil {
		panic(err) // strings, numbers and bools only
	}
	return string(b)
}

// Cmdline is the guest kernel's command line. QEMU appends where the virtio
// devices are.
func Cmdline(c hypervisor.Config, m Machine) string {
	a := archOf(m.Arch)
	words := slices.Clone(a.words)
	if m.Accel == TCG {
		words = append(words, a.wordsTCG...)
		if a.wordsCounter != "" && m.CounterKHz > 0 {
			words = append(words, fmt.Sprintf(a.wordsCounter, m.CounterKHz))
		}
	}
	if c.Scratch != "" {
		words = append(words, "carrel.scratch=/dev/vdb")
	}
	return strings.Join(append(words, c.Cmdline...), " ")
}

// CheckConfig refuses what this driver cannot honour.
func CheckConfig(c hypervisor.Config) error {
	if err := c.Check(); err != nil {
		return err
	}
	for _, w := range c.Cmdline {
		if w == "" || strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("kernel command line word %q is empty or has spaces or control characters", w)
		}
	}
	return nil
}
