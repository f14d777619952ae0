package seatbelt

import (
	"fmt"
	"slices"
)

// What a process that runs a machine of Virtualization.framework's needs beside the
// rest. No keeper is given it: one has no sandbox on macOS (docs/platforms.md). It is
// what scripts/verify-host tries, so that a Mac says whether one could have.
//
// The list is what wraithbox found by leaving out each rule in turn (X25-vmd-sandbox
// at cc58d254fb218a9d219579a565ee47f8b591caa6; macOS 27.0.1 on an M2, macOS as the
// guest, not one of Linux'): the framework has each machine in a process of the
// system's, an XPC service, and hands it files and kinds of devices by extensions.
// That process enters its sandbox while it runs, which takes C of our own; ours begins
// in it, so the folder of caches has to be asked for within (dirhelper). agentbox
// has the first two for Lima's Linux guests, in a wider sandbox.
var (
	machineLookups = []string{"xpc-service-name com.apple.Virtualization.VirtualMachine", "global-name com.apple.bsd.dirhelper"}
	machineSysctls = []string{"kern.hv_support"}
	machineDevices = []string{
		"com.apple.virtualization.extension.avp.rtc", "com.apple.virtualization.extension.fp", "com.apple.virtualization.extension.io-surface",
		"com.apple.virtualization.extension.paravirtualized-graphics", "com.apple.virtualization.extension.strong-identity",
		"com.apple.virtualization.extension.usb-hci", "com.apple.virtualization.extension.videotoolbox",
	}
)

// What an extension lets a process do with files.
const (
	extendRead      = "com.apple.app-sandbox.read"
	extendReadWrite = "com.apple.app-sandbox.read-write"
)

func (p Process) machine(w *writer) {
	w.note("A machine: the service that runs it, and what that is handed.")
	w.rule("allow", "sysctl-read", w.strings("sysctl-name", machineSysctls)...)
	w.rule("allow", "mach-lookup", slices.Concat(w.strings("xpc-service-name", []string{"com.apple.Virtualization.VirtualMachine"}),
		w.strings("global-name", []string{"com.apple.bsd.dirhelper"}))...)
	w.rule("allow", "generic-issue-extension", w.strings("extension-class", machineDevices)...)
	for _, at := range slices.Concat(p.Read, p.Write) {
		w.rule("allow", "file-issue-extension", fmt.Sprintf("(require-all %s (extension-class %q))", w.strings("subpath", []string{at})[0], extendRead))
	}
	w.rule("allow", "file-issue-extension", fmt.Sprintf("(require-all %s (extension-class %q))", w.strings("subpath", []string{p.Caches})[0], extendReadWrite))
}

// extends says what is wrong with a rule about extensions.
func (p Process) extends(ops []string, rest []expr) error {
	if !p.Machine || len(ops) != 1 {
		return fmt.Errorf("%q, which it has no use for", ops)
	}
	for _, e := range rest {
		if ops[0] == "generic-issue-extension" {
			if e.head() != "extension-class" || len(e.of) != 2 || !slices.Contains(machineDevices, e.of[1].word) {
				return fmt.Errorf("%s of something that a machine has no use for", ops[0])
			}
			continue
		}
		if e.head() != "require-all" || len(e.of) != 3 || e.of[1].head() != "subpath" || e.of[2].head() != "extension-class" || len(e.of[1].of) != 2 || len(e.of[2].of) != 2 {
			return fmt.Errorf("%s of other than one folder in one way", ops[0])
		}
		at, way := e.of[1].of[1].word, e.of[2].of[1].word
		if !(way == extendRead && slices.Contains(slices.Concat(p.Read, p.Write), at) || way == extendReadWrite && at == p.Caches) {
			return fmt.Errorf("%s of %.200q (%s), which it was not given", ops[0], at, way)
		}
	}
	return nil
}
