package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
)

// Linux are facts of a Linux host.
type Linux struct {
	Kernel       string // uname -r
	Distribution Distribution
	KVM          KVM
	QEMU         Program
	Landlock     Landlock
	// Seccomp says that the kernel has filters.
	Seccomp bool
	Cgroups Cgroups
	FUSE    Device
	Service Service
	// Process and GVisor are the walls weaker than a machine.
	Process, GVisor Program
	Missing         []Tool `json:",omitempty"`
}

// Distribution is what /etc/os-release says.
type Distribution struct{ ID, Like, Name string }

// Program is one that we use, and what it says of itself.
type Program struct {
	Version string
	Notes   []string `json:",omitempty"`
	Trouble Trouble
}

// Device is a file in /dev.
type Device struct {
	Exists, Opens bool
	Denied        bool   `json:",omitempty"` // for want of a permission
	Trouble       string `json:",omitempty"`
}

// KVM is /dev/kvm, and what it takes to have one.
type KVM struct {
	Device
	// Extension is the processor's: vmx or svm; empty where it shows none.
	Extension string
	// Virtual says that this machine is itself a guest.
	Virtual bool
	// Group may open the device; empty: no group may. Member says that the
	// account is in it, InSession that this process is.
	Group             string
	Member, InSession bool
	// Accelerator is "kvm" or "tcg" after a guest was booted; empty before.
	Accelerator, Reason string
	// ProbeTrouble is why that boot could not be tried.
	ProbeTrouble string `json:",omitempty"`
}

// Landlock is how the kernel answers for it.
type Landlock struct {
	ABI int
	// BuiltIn says that the kernel has it, on or off.
	BuiltIn bool
	// LSMs is the list in /sys/kernel/security/lsm.
	LSMs string
}

// Cgroups are the control groups that this process may write to.
type Cgroups struct {
	Version     string // "2", "1", "1 and 2", or empty
	Controllers []string
}

// Service is the systemd user unit.
type Service struct {
	// Unit is its file; empty: not installed.
	Unit string
	// Linger says that the user's services outlive the last session.
	Linger bool
	User   string
}

// Tool is a program that one of our commands needs, and that is not here.
type Tool struct{ Name, Package, For string }

// Tools are those that are looked for.
var Tools = []Tool{
	{"mkfs.ext4", "e2fsprogs", "disks of named guests"},
	{"mmdebstrap", "mmdebstrap", "carrel image build"},
	{"mkfs.erofs", "erofs-utils", "carrel image build"},
}

// Host is what can be said before anything was started.
func (l Linux) Host() []*api.Finding {
	var f findings
	f.good("system", fmt.Sprintf("Linux %s, %s", l.Kernel, or(l.Distribution.Name, "of an unknown distribution")))
	if l.QEMU.Trouble.Cause != "" {
		f.bad(qemuMissing, "qemu", "no machine can be started: QEMU is not here, or is not one that will do", l.QEMU.Trouble.Cause, l.Distribution.installs("qemu-system-x86", l.QEMU.Trouble.Cure))
	} else {
		f.good("qemu", l.QEMU.Version)
	}
	l.Landlock.findings(&f, l.Kernel)
	if l.Seccomp {
		f.good("seccomp", "seccomp filters")
	} else {
		f.bad(seccompMissing, "seccomp", "no guest is started: this kernel has no seccomp filters, which every process of a guest is put under", "Linux "+l.Kernel+" was built without CONFIG_SECCOMP_FILTER, or runs inside of something that hides it",
			"boot a kernel of the distribution, or run Carrel outside of the container")
	}
	l.Cgroups.findings(&f)
	l.FUSE.findings(&f)
	for _, t := range l.Missing {
		f.note(toolMissing, t.Name, t.Name+" is missing, which is needed for "+t.For, "no program of that name is in PATH", l.Distribution.installs(t.Package, ""))
	}
	if l.Service.Unit != "" && !l.Service.Linger {
		f.note(lingerOff, "service", "guests end when "+or(l.Service.User, "you")+" logs out", "the daemon is a systemd user service ("+l.Service.Unit+"), and systemd ends all of a user's services with the last session",
			"loginctl enable-linger")
	}
	return f
}

// Walls is what is said of the walls weaker than a machine; machines work
// without.
func (l Linux) Walls() []*api.Finding {
	var f findings
	wall := func(check, flag string, t Topic, p Program) {
		if p.Trouble.Cause != "" {
			f.note(t, check, "--boundary "+flag+" does not work", p.Trouble.Cause, or(p.Trouble.Cure, "docs/boundaries.md says what it needs"))
			return
		}
		f.good(check, strings.Join(append([]string{p.Version}, p.Notes...), "; "))
	}
	wall("process wall", "process", wallProcess, l.Process)
	wall("gvisor wall", "gvisor", wallGVisor, l.GVisor)
	return f
}

// Findings say what a guest's processor is, which only a boot can tell.
func (k KVM) Findings() []*api.Finding {
	const (
		check = "accelerator"
		slow  = "guests run under software emulation, several times slower"
	)
	var f findings
	switch {
	case k.Accelerator == "kvm":
		f.good(check, "KVM works: a guest of ours boots on it")
	case k.ProbeTrouble != "":
		f.bad(kvmBroken, check, "what runs a guest's code could not be found out", k.ProbeTrouble, "try again; if it stays: carrel daemon stop, and look at the daemon's log")
	case k.Opens && k.Accelerator == "":
		f.note(kvmUntried, check, "/dev/kvm opens; whether a guest runs on it is not known", "a guest is booted to find out, and there is no image or no QEMU yet", "carrel image build, then carrel doctor again")
	case k.Opens:
		f.note(kvmBroken, check, slow, k.Reason, "none on this machine where its KVM is itself emulated; else update the kernel and QEMU, and end other hypervisors")
	case k.Exists && k.Denied && k.Member && !k.InSession:
		f.note(kvmSession, check, slow, "/dev/kvm is there and you may not open it: you are in the group "+k.Group+", and this session began before you were", "log out and in again")
	case k.Exists && k.Denied && k.Group != "":
		f.note(kvmPermission, check, slow, "/dev/kvm is there and you may not open it: it is for the group "+k.Group, "sudo usermod -aG "+k.Group+" $USER, then log out and in again")
	case k.Exists && k.Denied:
		f.note(kvmPermission, check, slow, "/dev/kvm is there and you may not open it, and no group may", "sudo groupadd -f kvm && sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm && sudo usermod -aG kvm $USER, then log out and in again; udev's rules for kvm make it last")
	case k.Exists:
		f.note(kvmOpen, check, slow, "/dev/kvm is there and does not open: "+k.Trouble, "end the hypervisor that holds it (VirtualBox, VMware), or load the module again: sudo modprobe -r kvm_intel kvm_amd; sudo modprobe kvm")
	case k.Extension == "" && k.Virtual:
		f.note(kvmNested, check, slow, "there is no /dev/kvm: this machine is itself virtual, and its host does not lend it the processor's virtualization",
			"have the host allow nested virtualization (docs/doctor.md says how in some clouds), or run Carrel on the host")
	case k.Extension == "":
		f.note(kvmFirmware, check, slow, "there is no /dev/kvm: the processor shows no virtualization, which the firmware switches off on many machines", "switch on VT-x (Intel) or SVM (AMD) in the firmware's settings, and boot")
	default:
		f.note(kvmModule, check, slow, "there is no /dev/kvm, though the processor has "+k.Extension+": the module is not loaded", "sudo modprobe "+map[string]string{"svm": "kvm_amd", "vmx": "kvm_intel"}[k.Extension])
	}
	return f
}

func (l Landlock) findings(f *findings, kernel string) {
	const check, none = "landlock", "no guest is started: this kernel has no Landlock, by which every process of a guest gives up the host's files"
	switch {
	case l.ABI >= 4:
		f.good(check, fmt.Sprintf("Landlock ABI %d", l.ABI))
	case l.ABI >= 1:
		f.note(landlockOld, check, fmt.Sprintf("Landlock ABI %d holds files; network ports are held by seccomp alone", l.ABI), "Linux "+kernel+" is older than 6.7", "Linux 6.7 or newer")
	case l.BuiltIn:
		on := "landlock"
		if l.LSMs != "" {
			on += "," + l.LSMs
		}
		f.bad(landlockOff, check, none, "the kernel has it and it is switched off: landlock is not in its list ("+or(l.LSMs, "unknown")+")", "add lsm="+on+" to the kernel's command line (GRUB_CMDLINE_LINUX in /etc/default/grub, then sudo update-grub), and boot")
	default:
		f.bad(landlockKernel, check, none, "Linux "+kernel+" is older than 5.13, or was built without CONFIG_SECURITY_LANDLOCK", "boot Linux 5.13 or newer, with landlock in its lsm= list")
	}
}

func (c Cgroups) findings(f *findings) {
	const check = "cgroups"
	var missing []string
	for _, want := range []string{"memory", "pids", "cpu"} {
		if !slices.Contains(c.Controllers, want) {
			missing = append(missing, want)
		}
	}
	switch {
	case c.Version == "":
		f.note(cgroupsNone, check, "guests behind the weaker walls have no limits; a machine has them in itself", "no control groups are mounted at /sys/fs/cgroup", "run Carrel under systemd, or with control groups mounted")
	case len(missing) > 0:
		f.note(cgroupsOthers, check, "guests behind the weaker walls have no limit of "+strings.Join(missing, ", ")+"; a machine has them in itself", "control groups, version "+c.Version+": this process may not write to those controllers",
			"have systemd start the daemon, which gives it a part of its own: carrel daemon install")
	default:
		f.good(check, "control groups, version "+c.Version+": "+strings.Join(c.Controllers, ", "))
	}
}

func (d Device) findings(f *findings) {
	const check, text = "fuse", "--boundary process and gvisor share no folders; a machine does not need it"
	switch {
	case d.Opens:
	case !d.Exists:
		f.note(fuseMissing, check, text, "there is no /dev/fuse", "sudo modprobe fuse")
	case d.Denied:
		f.note(fusePermission, check, text, "/dev/fuse is there and you may not open it", "sudo chmod 0666 /dev/fuse, as udev does")
	default:
		f.note(fuseMissing, check, text, "/dev/fuse does not open: "+d.Trouble, "sudo modprobe fuse")
	}
}

// installs says how a package comes to this distribution; its name is Debian's.
func (d Distribution) installs(pkg, otherwise string) string {
	names := map[string]map[string]string{
		"fedora": {"qemu-system-x86": "qemu-system-x86-core"},
		"arch":   {"qemu-system-x86": "qemu-system-x86"},
		"suse":   {"qemu-system-x86": "qemu-x86"},
		"alpine": {"qemu-system-x86": "qemu-system-x86_64"},
	}
	for _, id := range append([]string{d.ID}, strings.Fields(d.Like)...) {
		family, command := "", ""
		switch id {
		case "debian", "ubuntu":
			family, command = "debian", "sudo apt-get install "
		case "fedora", "rhel", "centos":
			family, command = "fedora", "sudo dnf install "
		case "arch":
			family, command = "arch", "sudo pacman -S "
		case "suse", "opensuse":
			family, command = "suse", "sudo zypper install "
		case "alpine":
			family, command = "alpine", "sudo apk add "
		default:
			continue
		}
		return command + or(names[family][pkg], pkg)
	}
	return or(otherwise, "install what Debian's package "+pkg+" holds")
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
