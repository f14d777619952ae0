package qemu

import "strings"

// Architectures of guests, as GOARCH calls them.
const (
	AMD64 = "amd64"
	ARM64 = "arm64"
)

// architecture is what differs between the machines of two architectures.
type architecture struct {
	program string // QEMU's
	cure    string // what installs it
	// machine are the words of -machine, without what all machines share. Under emulation and with KVM:
	machine, machineKVM []string
	cpu, cpuKVM         string
	globals             []string
	// words begin the kernel's command line.
	words []string
	// wordsTCG are added under emulation.
	wordsTCG []string
	// wordsCounter are added then, too, with the Machine's CounterKHz.
	wordsCounter string
}

// archOf returns that of a Machine or of Options: empty means amd64.
func archOf(name string) architecture {
	if name == ARM64 {
		return arm64
	}
	return amd64
}

var amd64 = architecture{
	program: "qemu-system-x86_64",
	cure:    "sudo apt-get install qemu-system-x86, or scripts/setup",
	machine: []string{"microvm", "acpi=off", "rtc=on", "pcie=off", "usb=off", "graphics=off", "x-option-roms=off"},
	// Under emulation the kernel spins for ever without these two.
	machineKVM: []string{"pit=off", "pic=off"},
	// Nested virtualisation is a large attack surface that no task needs.
	cpu: "max,svm=off", cpuKVM: "host,vmx=off,svm=off",
	globals: []string{"virtio-mmio.force-legacy=false"},
	words: []string{
		"quiet", "console=ttyS0",
		// The machine has neither, and looking for them takes time.
		"acpi=off", "pci=off",
		// A panic and a reboot both end QEMU at once: triple fault, -no-reboot.
		"reboot=t", "panic=-1",
		"random.trust_cpu=on",
		// Whoever waits until no processor reads what was replaced (RCU) has the
		// few processors told rather than waits for their ticks: netfilter, BPF
		// and control groups do, while the agent sets them up.
		"rcupdate.rcu_expedited=1",
	},
	// The kernel tries whether its timer interrupts, too soon for an emulated
	// processor on a busy host, and may give up. With KVM it knows better by
	// itself.
	//
	// An emulated processor does not say that all count alike, so the kernel
	// measures each but the first, for five times three or four ticks
	// (calibrate_delay_direct, init/calibrate.c). lpj is what one counts in a
	// tick of 4 ms: this much at 5 GHz. On a slower processor the kernel's few
	// busy waits are longer than they need to be, never shorter. With KVM it is
	// told (kvm_get_preset_lpj).
	wordsTCG: []string{"no_timer_check", "lpj=20000000"},
	// Reliable: QEMU sees to it that all processors count alike, and nothing in
	// this machine could judge the counter.
	wordsCounter: "tsc_early_khz=%d tsc=reliable",
}

// arm64 is QEMU's virt with the devices on its PCI bus: as Virtualization.framework
// shows them, so that what boots here has what it needs there.
var arm64 = architecture{
	program: "qemu-system-aarch64",
	cure:    "sudo apt-get install qemu-system-arm, or scripts/setup",
	machine: []string{"virt", "gic-version=3", "usb=off", "graphics=off"},
	// Emulating the architecture's own pointer signatures takes half of the time.
	cpu: "max,pauth-impdef=on", cpuKVM: "host",
	words: []string{"quiet", "console=ttyAMA0", "panic=-1", "random.trust_cpu=on"},
}

// put gives a virtio device its place: one of microvm's slots, or the PCI bus.
func (a architecture) put(device map[string]any, slot string) {
	if a.program == amd64.program {
		device["bus"] = slot
		return
	}
	device["driver"] = strings.TrimSuffix(device["driver"].(string), "-device") + "-pci"
}
