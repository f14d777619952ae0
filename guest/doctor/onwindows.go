package doctor

import (
	"fmt"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
)

// oldestWindows is the build with which the schema of machines that we use came:
// Windows 10, version 2004.
const oldestWindows = 19041

// Windows are facts of a Windows host.
type Windows struct {
	Build, Revision uint32
	// Edition is EditionID in the registry: Core (Home), Professional, ...
	Edition, Arch string
	// Firmware says that the processor's virtualization is switched on, as far
	// as Windows can see it: under a hypervisor it cannot.
	Firmware bool
	// Hypervisor says that Windows runs on a hypervisor, which on a machine of
	// its own is Hyper-V's; nil: not known.
	Hypervisor *bool
	// ComputeCore says that computecore.dll is there.
	ComputeCore bool
	// Compute is the service vmcompute.
	Compute Compute
	// Elevated and HypervAdmin say what this process's token has.
	Elevated, HypervAdmin bool
	// HCS is what listing the host's machines ended with, an HRESULT; nil: it
	// was not tried.
	HCS *uint32
	// Driver says that this program can drive machines.
	Driver bool
	// Folders are those that hold disks.
	Folders []Folder
	// LongPaths is LongPathsEnabled in the registry.
	LongPaths bool
}

// Compute is how the service control manager knows vmcompute.
type Compute struct {
	Exists   bool
	Disabled bool   `json:",omitempty"`
	Trouble  string `json:",omitempty"`
}

// Folder is one that holds disks of machines.
type Folder struct {
	Dir, Volume           string // Volume is the file system's name
	Compressed, Encrypted bool   `json:",omitempty"`
	Trouble               string `json:",omitempty"`
}

// HRESULTs that listing machines ends with.
const (
	hrAccessDenied  = 0x80070005 // E_ACCESSDENIED
	hrNoHypervisor  = 0x80370102 // HCS_E_HYPERV_NOT_INSTALLED
	hrLogonRight    = 0x80070569 // ERROR_LOGON_TYPE_NOT_GRANTED
	hrServiceAbsent = 0x80370114 // HCS_E_SERVICE_NOT_AVAILABLE
)

// enablePlatform switches on the feature that HCS is part of; Home has it, too.
const enablePlatform = "in a PowerShell of an administrator: Enable-WindowsOptionalFeature -Online -FeatureName VirtualMachinePlatform -All; then restart Windows"

// Findings of a Windows host.
func (w Windows) Findings() []*api.Finding {
	var f findings
	name := fmt.Sprintf("Windows, build %d.%d, %s, %s", w.Build, w.Revision, or(w.Edition, "of an unknown edition"), w.Arch)
	if w.Build < oldestWindows {
		f.bad(windowsOld, "system", "no machine can be started: "+name+" is too old", fmt.Sprintf("the Host Compute Service has what a guest needs from build %d on (Windows 10, version 2004)", oldestWindows), "Settings, Windows Update; or in a command prompt: usoclient StartInteractiveScan")
	} else {
		f.good("system", name)
	}
	w.hcs(&f)
	if !w.Driver {
		f.bad(windowsDriver, "driver", "no machine can be started: this carreld has not all that one needs on Windows", "the driver for the Host Compute Service is there; the processes for egress and shares are not written for Windows yet", "use Linux")
	} else {
		f.note(windowsUntried, "driver", "machines on Windows were made without Windows: what drives them was compiled, and ran against a stand-in at most", "nobody has run it on Windows yet", "scripts/verify-host tries it, and says what holds")
	}
	for _, d := range w.Folders {
		d.findings(&f)
	}
	if w.LongPaths {
		f.good("paths", "paths longer than 260 characters")
	} else {
		f.note(longPaths, "paths", "programs other than ours may not open paths longer than 260 characters", "LongPathsEnabled is 0; Carrel itself asks for long paths in another way", `in a command prompt of an administrator: reg add HKLM\SYSTEM\CurrentControlSet\Control\FileSystem /v LongPathsEnabled /t REG_DWORD /d 1 /f`)
	}
	f.note(windowsConfinement, "confinement", "a guest's keeper has no sandbox of its own, as it has on Linux", "Windows has neither Landlock nor seccomp, and an AppContainer for them is not written yet", "none yet")
	return f
}

// hcs names the one thing that keeps the Host Compute Service from making a
// machine: what comes first hides what comes after.
func (w Windows) hcs(f *findings) {
	const check, none = "virtualization", "no machine can be started"
	hr, hypervisor := uint32(0), w.Hypervisor == nil || *w.Hypervisor
	if w.HCS != nil {
		hr = *w.HCS
	}
	switch {
	case !hypervisor && !w.Firmware:
		f.bad(windowsFirmware, check, none+": the processor's virtualization is switched off", "the firmware switches it off on many machines; in a virtual machine its host does", "switch on VT-x (Intel) or SVM (AMD) in the firmware's settings; in a virtual machine, on its host: Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true")
	case !w.ComputeCore, !w.Compute.Exists && w.Compute.Trouble == "":
		f.bad(platformOff, check, none+": the Virtual Machine Platform is switched off", "the Host Compute Service (computecore.dll, vmcompute) is not installed", enablePlatform)
	case w.Compute.Disabled:
		f.bad(vmcomputeOff, check, none+": the Host Compute Service is disabled", "the service vmcompute is not allowed to start", "in a command prompt of an administrator: sc.exe config vmcompute start= demand")
	case !hypervisor, hr == hrNoHypervisor:
		f.bad(hypervisorOff, check, none+": Windows does not run on its hypervisor", "the Virtual Machine Platform is installed, and the hypervisor was not started with Windows (0x80370102)", "in a command prompt of an administrator: bcdedit /set hypervisorlaunchtype auto; then restart Windows")
	case hr == hrServiceAbsent:
		f.bad(platformOff, check, none+": the Host Compute Service does not answer", "HCS_E_SERVICE_NOT_AVAILABLE (0x80370114)", enablePlatform)
	case hr == hrAccessDenied, w.HCS == nil && !w.Elevated && !w.HypervAdmin:
		f.bad(hypervGroup, check, none+": you may not make one", "the Host Compute Service takes orders from administrators and from the group Hyper-V Administrators, and you are in neither here (0x80070005)",
			"in a PowerShell of an administrator: Add-LocalGroupMember -SID S-1-5-32-578 -Member $env:USERNAME (with your name, if the administrator is another); then sign out and in again")
	case hr == hrLogonRight:
		f.bad(logonRight, check, none+": Windows refuses its machines the right to log on", "a policy has taken \"Log on as a service\" from NT VIRTUAL MACHINE\\Virtual Machines (0x80070569)", "give it back in secpol.msc, Local Policies, User Rights Assignment; then: gpupdate /force")
	case hr != 0:
		f.bad(hcsRefused, check, none+": the Host Compute Service refuses", fmt.Sprintf("listing the machines of this host ended with 0x%08x", hr), fmt.Sprintf("certutil -error 0x%08x says what it means; then carrel doctor again", hr))
	case w.Compute.Trouble != "" && w.HCS == nil:
		f.bad(hcsRefused, check, none+": the Host Compute Service could not be asked", w.Compute.Trouble, "sc.exe query vmcompute")
	default:
		f.good(check, "the Host Compute Service answers")
	}
}

func (d Folder) findings(f *findings) {
	const check = "folder"
	switch {
	case d.Trouble != "":
		f.note(volumeKind, check, "what kind of folder "+d.Dir+" is could not be found out", d.Trouble, "fsutil fsinfo volumeinfo "+d.Dir)
	case d.Compressed:
		f.bad(folderCompressed, check, "no machine can be started: "+d.Dir+" is compressed", "Windows attaches no disk that lies compressed (0xc03a001a)", `compact /U /S:"`+d.Dir+`"`)
	case d.Encrypted:
		f.bad(folderEncrypted, check, "no machine can be started: "+d.Dir+" is encrypted with EFS", "the Host Compute Service, which is another user, cannot read your encrypted files (0xc03a001a)", `cipher /D /S:"`+d.Dir+`"`)
	case !strings.EqualFold(d.Volume, "NTFS") && !strings.EqualFold(d.Volume, "ReFS"):
		f.note(volumeKind, check, d.Dir+" lies on "+or(d.Volume, "an unknown file system"), "disks of machines, their access lists and the marks of files from guests need NTFS or ReFS", "set CARREL_HOME to a folder on an NTFS volume")
	default:
		f.good(check, d.Dir+" lies on "+d.Volume)
	}
}
