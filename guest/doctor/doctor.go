// Package doctor judges what a guest needs of this host. A small file for each
// system gathers facts; findings are functions of the facts alone, so that what
// is said on a Mac or on Windows is tested everywhere, from facts as those
// systems state them.
package doctor

import (
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
)

// Page is where the documentation says more about each Topic, under a heading
// with the topic's name.
const Page = "docs/doctor.md"

// Topic is a finding that asks for something. What is as it should be has none.
type Topic string

// What is found on any host.
const (
	diskFull     Topic = "disk-full"
	diskUnknown  Topic = "disk-unknown"
	imageMissing Topic = "image-missing"
	imageDamaged Topic = "image-damaged"
	guestDamaged Topic = "guest-damaged"
	agentMissing Topic = "agent-missing"
	keychainNone Topic = "keychain-none"
	keychainNeed Topic = "keychain-required"

	telemetryStalled Topic = "telemetry-stalled"
)

// What is found on Linux.
const (
	qemuMissing    Topic = "qemu-missing"
	kvmFirmware    Topic = "kvm-firmware"
	kvmNested      Topic = "kvm-nested"
	kvmModule      Topic = "kvm-module"
	kvmPermission  Topic = "kvm-permission"
	kvmSession     Topic = "kvm-session"
	kvmOpen        Topic = "kvm-open"
	kvmBroken      Topic = "kvm-broken"
	kvmUntried     Topic = "kvm-untried"
	landlockKernel Topic = "landlock-kernel"
	landlockOff    Topic = "landlock-off"
	landlockOld    Topic = "landlock-old"
	seccompMissing Topic = "seccomp-missing"
	cgroupsNone    Topic = "cgroups-none"
	cgroupsOthers  Topic = "cgroups-not-yours"
	fuseMissing    Topic = "fuse-missing"
	fusePermission Topic = "fuse-permission"
	wallProcess    Topic = "process-wall"
	wallGVisor     Topic = "gvisor-wall"
	toolMissing    Topic = "tool-missing"
	lingerOff      Topic = "linger-off"
)

// What is found on macOS.
const (
	macOld          Topic = "macos-old"
	hvOff           Topic = "hv-off"
	hvNested        Topic = "hv-nested"
	hvUnknown       Topic = "hv-unknown"
	rosetta         Topic = "rosetta"
	vzNotBuilt      Topic = "vz-not-built"
	vzUntried       Topic = "vz-untried"
	entitlement     Topic = "entitlement-missing"
	signature       Topic = "signature-unknown"
	quarantined     Topic = "quarantined"
	seatbeltMissing Topic = "seatbelt"
	seatbeltUntried Topic = "seatbelt-untried"
	macConfinement  Topic = "macos-confinement"
	cltMissing      Topic = "command-line-tools"
)

// What is found on Windows.
const (
	windowsOld         Topic = "windows-old"
	windowsDriver      Topic = "windows-driver"
	windowsUntried     Topic = "windows-untried"
	windowsFirmware    Topic = "windows-firmware"
	platformOff        Topic = "virtual-machine-platform"
	vmcomputeOff       Topic = "vmcompute-disabled"
	hypervisorOff      Topic = "hypervisor-off"
	hypervGroup        Topic = "hyperv-group"
	logonRight         Topic = "logon-right"
	hcsRefused         Topic = "hcs-refused"
	folderCompressed   Topic = "folder-compressed"
	folderEncrypted    Topic = "folder-encrypted"
	volumeKind         Topic = "volume-kind"
	longPaths          Topic = "long-paths"
	windowsConfinement Topic = "windows-confinement"
)

// Topics are all that a finding can have.
var Topics = []Topic{
	diskFull, diskUnknown, imageMissing, imageDamaged, guestDamaged, agentMissing, keychainNone, keychainNeed, telemetryStalled,
	qemuMissing, kvmFirmware, kvmNested, kvmModule, kvmPermission, kvmSession, kvmOpen, kvmBroken, kvmUntried,
	landlockKernel, landlockOff, landlockOld, seccompMissing, cgroupsNone, cgroupsOthers, fuseMissing, fusePermission,
	wallProcess, wallGVisor, toolMissing, lingerOff,
	macOld, hvOff, hvNested, hvUnknown, rosetta, vzNotBuilt, vzUntried, entitlement, signature, quarantined,
	seatbeltMissing, seatbeltUntried, macConfinement, cltMissing,
	windowsOld, windowsDriver, windowsUntried, windowsFirmware, platformOff, vmcomputeOff, hypervisorOff, hypervGroup, logonRight, hcsRefused,
	folderCompressed, folderEncrypted, volumeKind, longPaths, windowsConfinement,
}

// findings collects what one part of the facts says.
type findings []*api.Finding

func (f *findings) good(check, text string) {
	*f = append(*f, &api.Finding{Check: check, Level: api.FindingLevel_FINDING_LEVEL_GOOD, Text: text})
}

// note is something that a person may want to mend: guests run without it.
func (f *findings) note(t Topic, check, text, cause, cure string) {
	*f = append(*f, finding(api.FindingLevel_FINDING_LEVEL_NOTE, t, check, text, cause, cure))
}

// bad is something without which no guest runs, or one will not.
func (f *findings) bad(t Topic, check, text, cause, cure string) {
	*f = append(*f, finding(api.FindingLevel_FINDING_LEVEL_BAD, t, check, text, cause, cure))
}

func finding(l api.FindingLevel, t Topic, check, text, cause, cure string) *api.Finding {
	return &api.Finding{Check: check, Level: l, Text: text, Cause: strings.TrimSpace(cause), Cure: cure, Docs: Page + "#" + string(t)}
}

// Trouble is what kept something from being looked at, or from working.
type Trouble struct {
	// Cause is empty where there was none.
	Cause string `json:",omitempty"`
	Cure  string `json:",omitempty"`
}
