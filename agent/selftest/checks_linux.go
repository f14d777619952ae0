package selftest

import "github.com/carrel-vm/carrel/agent/steer"

// All is every feature that images/kernel asks for and that can be tried without the hypervisor that has it.
func All() []Check {
	return []Check{
		// Devices and the way to the host.
		{Name: "vsock", Need: "the host and the agent speak by it", Try: protocol("AF_VSOCK")},
		{Name: "virtio-vsock", Need: "QEMU's and the Mac's vsock", Try: exists("/sys/bus/virtio/drivers/vmw_vsock_virtio_transport")},
		{Name: "virtio-blk", Need: "the root file system and the scratch disk", Try: exists("/sys/bus/virtio/drivers/virtio_blk")},
		{Name: "virtio-console", Need: "the Mac's console", Try: exists("/sys/bus/virtio/drivers/virtio_console")},
		{Name: "virtio-balloon", Need: "freed memory goes back to the host", Try: exists("/sys/bus/virtio/drivers/virtio_balloon")},
		{Name: "virtio-rng", Need: "random numbers from the host", Try: exists("/sys/bus/virtio/drivers/virtio_rng")},
		{Name: "virtio-mmio", Need: "QEMU's devices", Try: exists("/sys/bus/platform/drivers/virtio-mmio")},
		{Name: "virtio-pci", Need: "the Mac's devices", Try: exists("/sys/bus/pci/drivers/virtio-pci")},
		{Name: "hyperv", Need: "Windows' devices", Arch: "amd64", Try: exists("/sys/module/hv_balloon")},
		{Name: "hyperv-disk", Need: "Windows' disks", Arch: "amd64", Try: exists("/sys/module/hv_storvsc")},
		{Name: "device-events", Need: "disks that are found late, as Windows' are", Try: deviceEvents},
		{Name: "clock", Need: "the time before the host has told it", Try: exists("/sys/class/rtc/rtc0")},

		// Files.
		{Name: "fuse", Need: "shares over vsock, and the user's own FUSE", Try: fuse},
		{Name: "virtiofs", Need: "shares as devices", Try: filesystem("virtiofs")},
		{Name: "erofs", Need: "the root file system", Try: filesystem("erofs")},
		{Name: "erofs-lz4", Need: "the root file system is packed", Try: exists("/sys/fs/erofs/features/zero_padding")},
		{Name: "ext4", Need: "the scratch disk", Try: filesystem("ext4")},
		{Name: "tmpfs-xattr", Need: "a layer in memory keeps overlayfs' marks", Try: tmpfsXattr},
		{Name: "overlay", Need: "changes over the root and over reviewed shares", Try: overlay},
		{Name: "mqueue", Need: "POSIX message queues", Try: filesystem("mqueue")},
		{Name: "file-handles", Need: "name_to_handle_at(2)", Try: fileHandles},
		{Name: "inotify", Need: "programs that watch files", Try: inotify},

		// Limits and separation.
		{Name: "cgroup-cpu", Need: "a task's processor time", Try: controller("cpu")},
		{Name: "cgroup-memory", Need: "a task's memory", Try: controller("memory")},
		{Name: "cgroup-pids", Need: "a task's processes", Try: controller("pids")},
		{Name: "cgroup-cpuset", Need: "container engines", Try: controller("cpuset")},
		{Name: "cgroup-kill", Need: "a task's end", Try: groupFile("cgroup.kill")},
		{Name: "cgroup-freeze", Need: "a task's pause", Try: groupFile("cgroup.freeze")},
		{Name: "namespaces", Need: "sandboxes inside the guest", Try: namespaces},
		{Name: "user-namespaces", Need: "sandboxes of browsers and agents, started by any user", Try: userNamespaces},
		{Name: "seccomp", Need: "the filter of every task", Try: seccomp},
		{Name: "landlock", Need: "sandboxes that programs make for themselves", Try: landlock},

		// The network that is none.
		{Name: "ipv6", Need: "programs that ask for ::1", Try: ipv6},
		{Name: "unix", Need: "local sockets", Try: protocol("UNIX")},
		{Name: "packet", Need: "container engines' address checks", Try: protocol("PACKET")},
		{Name: "tun", Need: "containers' and users' own networks", Try: exists("/dev/net/tun")},
		{Name: "links", Need: "the networks of containers: veth, bridge, dummy", Try: links},
		{Name: "inet-diag", Need: "whose a connection is", Try: inetDiag},
		{Name: "nftables", Need: "the way out without BPF, and containers", Try: nftables},
		{Name: "sk-lookup", Need: "the way out", Try: func() (string, error) { return "", steer.TryLookup() }},

		// What programs expect.
		{Name: "memfd", Need: "memfd_create(2)", Try: memfd},
		{Name: "aio", Need: "databases", Try: aio},
		{Name: "sysv-ipc", Need: "databases", Try: sysv},
		{Name: "events", Need: "epoll, eventfd, timerfd, signalfd", Try: events},
		{Name: "pidfd", Need: "pidfd_open(2)", Try: pidfd},
		{Name: "rseq", Need: "the C library's thread caches", Try: rseq},
		{Name: "process-vm", Need: "debuggers", Try: processVM},
		{Name: "random", Need: "getrandom(2) that does not wait", Try: random},
		{Name: "pty", Need: "terminals", Try: exists("/dev/ptmx")},

		// What must not be there: each has led out of sandboxes, or into a running kernel.
		{Name: "no-io-uring", Need: "the way out of too many sandboxes", Try: absent("/proc/sys/kernel/io_uring_disabled")},
		{Name: "no-modules", Need: "no code comes later", Try: absent("/proc/modules")},
		{Name: "no-kexec", Need: "no other kernel comes later", Try: absent("/sys/kernel/kexec_loaded")},
		{Name: "no-kallsyms", Need: "no addresses for attackers", Try: absent("/proc/kallsyms")},
		{Name: "no-dev-mem", Need: "no memory by address", Try: absent("/dev/mem")},
		{Name: "no-userfaultfd", Need: "a tool for winning races against the kernel", Try: absent("/proc/sys/vm/unprivileged_userfaultfd")},
		{Name: "no-debugfs", Need: "an interface that nobody hardens", Try: noFilesystem("debugfs")},
		{Name: "no-bpf-for-users", Need: "only root loads programs", Try: noBPF},
		{Name: "panic-on-oops", Need: "nothing goes on half broken", Try: holds("/proc/sys/kernel/panic_on_oops", "1")},
	}
}
