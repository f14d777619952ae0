package hcs

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/Microsoft/hcsshim/osversion"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Architectures of hosts, as GOARCH calls them. A guest has its host's.
const (
	AMD64 = "amd64"
	ARM64 = "arm64"
)

// MinBuild is the oldest Windows that this driver starts on: Windows 10 2004, as
// for WSL 2, whose calls are ours.
const MinBuild = osversion.V20H1

// Units of a guest's disks on its only SCSI controller, by which the agent knows
// them (agent/disks_linux.go): HCS gives a disk no serial number of ours. Volume n
// is unit firstVolume + n.
const (
	rootLUN     = "0"
	scratchLUN  = "1"
	firstVolume = 2
)

// Machine is what Document needs to know besides the guest's Config.
type Machine struct {
	// ID is the system's: a GUID in lower case, without braces.
	ID string
	// Arch is AMD64 or ARM64.
	Arch string
	// Build is Windows' build number.
	Build uint16
	// User is the SID of who runs the keeper, in its text form.
	User string
	// Console is the pipe to which the guest's serial port writes. The keeper
	// made it before the guest starts.
	Console string
	// Root and Scratch are the disks as VHD files; no Scratch where the Config
	// has none.
	Root, Scratch string
	// Volumes are the Config's, as VHD files too.
	Volumes []string
	// Boot is a folder with the two files BootKernel and BootInitrd and nothing
	// else: the firmware of an ARM64 guest reads it. Empty on AMD64.
	Boot string
}

// Names of the files in Machine.Boot.
const (
	BootKernel = "kernel"
	BootInitrd = "initrd"
)

// SchemaVersion is the one that a Windows understands all of what Document says
// in, as WSL chooses it: 2.7 on Windows 11, 2.3 before.
func SchemaVersion(build uint16) Version {
	if build >= osversion.V21H2Win11 {
		return Version{2, 7}
	}
	return Version{2, 3}
}

// Descriptor is the access list of everything that a guest has on the host: its
// sockets and its console. SYSTEM, because HCS is; and this user. Nobody else, an
// administrator's processes included, unless they take it.
func Descriptor(user string) string { return "D:P(A;;FA;;;SY)(A;;FA;;;" + user + ")" }

// ConsolePipe is the name of a guest's console. The id is random, so that nobody
// else has made it before.
func ConsolePipe(id string) string { return `\\.\pipe\carrel-` + id + `-console` }

// Document is the description, in schema 2 of HCS, of one guest. It has no network
// card, no screen, no keyboard, no guest service of Windows, and no nested
// virtualisation: what is not named, a guest does not have.
func Document(c hypervisor.Config, m Machine) ([]byte, error) {
	if err := CheckConfig(c); err != nil {
		return nil, err
	}
	if err := m.check(c); err != nil {
		return nil, err
	}
	attachments := map[string]attachment{rootLUN: {Type: "VirtualDisk", Path: m.Root, ReadOnly: true}}
	if c.Scratch != "" {
		attachments[scratchLUN] = attachment{Type: "VirtualDisk", Path: m.Scratch}
	}
	for i, path := range m.Volumes {
		attachments[strconv.Itoa(firstVolume+i)] = attachment{Type: "VirtualDisk", Path: path}
	}
	d := computeSystem{
		Owner:         "carrel",
		SchemaVersion: SchemaVersion(m.Build),
		// A keeper that dies takes its guest with it, and nothing else does.
		ShouldTerminateOnLastHandleClosed: true,
		VirtualMachine: virtualMachine{
			// A panic and an orderly end are both a reset.
			StopOnReset: true,
			Chipset:     bootFrom(c, m),
			ComputeTopology: topology{
				// HCS gives memory in pieces of 2 MiB. It is the host's to page out and comes when it is touched.
				Memory: memory{
					SizeInMB: uint64(c.MemoryMiB+1) &^ 1, AllowOvercommit: true, EnableDeferredCommit: true, EnableColdDiscardHint: true,
				},
				Processor: processor{Count: uint32(c.CPUs)},
			},
			Devices: devices{
				Scsi:     map[string]scsi{"0": {Attachments: attachments}},
				ComPorts: map[string]comPort{"0": {NamedPipe: m.Console}},
				HvSocket: hvSocket{HvSocketConfig: hvSocketConfig{
					DefaultBindSecurityDescriptor:    Descriptor(m.User),
					DefaultConnectSecurityDescriptor: Descriptor(m.User),
				}},
			},
		},
	}
	return json.Marshal(d)
}

// bootFrom is how the guest finds its kernel. HCS has no direct boot on ARM64:
// the firmware starts the kernel as a program, out of a folder of the host that
// it is shown read-only for that, and the kernel's EFI stub finds the initrd.
func bootFrom(c hypervisor.Config, m Machine) chipset {
	if m.Arch == ARM64 {
		return chipset{Uefi: &uefi{BootThis: uefiBoot{
			DeviceType: "VmbFs", VmbFsRootPath: m.Boot, DevicePath: `\` + BootKernel,
			OptionalData: `initrd=\` + BootInitrd + " " + Cmdline(c, m.Arch),
		}}}
	}
	return chipset{LinuxKernelDirect: &linuxKernel{KernelFilePath: c.Kernel, InitRdPath: c.Initrd, KernelCmdLine: Cmdline(c, m.Arch)}}
}

// Cmdline is the guest kernel's command line.
func Cmdline(c hypervisor.Config, arch string) string {
	words := []string{"quiet", "console=ttyS0", "panic=-1"}
	if arch == ARM64 {
		words[1] = "console=ttyAMA0"
	}
	if c.Scratch != "" {
		words = append(words, "carrel.scratch=/dev/sdb")
	}
	return strings.Join(append(words, c.Cmdline...), " ")
}

// CheckConfig refuses what this driver cannot honour.
func CheckConfig(c hypervisor.Config) error {
	if err := c.Check(); err != nil {
		return err
	}
	for _, w := range c.Cmdline {
		if w == "" || strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }) {
			return fmt.Errorf("kernel command line word %q is empty or has quotes, spaces or control characters", w)
		}
	}
	return nil
}

// maxPath is the longest path that Windows takes, in bytes and well below its
// 32,767 UTF-16 units.
const maxPath = 8 << 10

func (m Machine) check(c hypervisor.Config) error {
	if m.Arch != AMD64 && m.Arch != ARM64 {
		return fmt.Errorf("there is no guest for processors of the kind %q", m.Arch)
	}
	if m.Build < MinBuild {
		return fmt.Errorf("build %d of Windows is older than %d (Windows 10 2004)", m.Build, MinBuild)
	}
	// The text goes into an access list, where a ")" would begin another entry.
	if !strings.HasPrefix(m.User, "S-1-") || strings.Trim(m.User[1:], "-0123456789") != "" {
		return fmt.Errorf("%q is not the SID of a user", m.User)
	}
	if m.ID == "" || strings.Trim(m.ID, "-0123456789abcdef") != "" {
		return fmt.Errorf("%q is not the GUID of a system", m.ID)
	}
	if m.Console != ConsolePipe(m.ID) {
		return fmt.Errorf("%q is not the console of this guest", m.Console)
	}
	if (m.Scratch == "") != (c.Scratch == "") {
		return errors.New("a scratch disk and its VHD come together")
	}
	if len(m.Volumes) != len(c.Volumes) {
		return fmt.Errorf("%d virtual disks for %d volumes", len(m.Volumes), len(c.Volumes))
	}
	paths := append([]string{m.Root}, m.Volumes...)
	if m.Arch == ARM64 {
		paths = append(paths, m.Boot)
	} else {
		paths = append(paths, c.Kernel, c.Initrd)
	}
	if m.Scratch != "" {
		paths = append(paths, m.Scratch)
	}
	for _, p := range paths {
		if len(p) < 3 || p[1] != ':' || p[2] != '\\' || len(p) > maxPath || strings.ContainsFunc(p, func(r rune) bool { return r < ' ' }) {
			return fmt.Errorf("path %.200q is not one on a drive of this host, or too long", p)
		}
	}
	return nil
}
