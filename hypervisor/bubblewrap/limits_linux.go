package bubblewrap

import (
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor/wall"
)

// limits refuse to limit other processes, one of which is the agent and may be
// of the same user, and keep everybody's limit of core files, for which see
// package wall. Programs lower that one and end if they cannot, so they are
// told that it is done.
func limits() []wall.Test {
	const done = unix.Errno(0)
	return []wall.Test{
		{Call: "setrlimit", Arg: 0, Body: []bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.RLIMIT_CORE, SkipFalse: 1},
			wall.Errno(done),
			wall.Allow,
		}},
		// prlimit(pid, resource, new, old), where new and old are addresses, or 0.
		{Call: "prlimit64", Arg: 2, Body: []bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 3},
			wall.LoadArgumentHigh(2),
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 1},
			wall.Allow, // it only reads
			wall.LoadArgument(0),
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
			wall.Errno(unix.EPERM), // another's
			wall.LoadArgument(1),
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.RLIMIT_CORE, SkipTrue: 1},
			wall.Allow,
			// Who also reads would read nothing.
			wall.LoadArgument(3),
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 3},
			wall.LoadArgumentHigh(3),
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 1},
			wall.Errno(done),
			wall.Errno(unix.EPERM),
		}},
	}
}

// scarce refuse what no namespace and no group of ours limits: huge pages,
// which somebody has reserved for a purpose, and leases, with which who owns a
// shared file could make the host's programs wait 45 s to open it (fcntl(2)).
func scarce() []wall.Test {
	refuse := func(when bpf.JumpTest, value uint32, e unix.Errno) []bpf.Instruction {
		return []bpf.Instruction{bpf.JumpIf{Cond: when, Val: value, SkipFalse: 1}, wall.Errno(e), wall.Allow}
	}
	return []wall.Test{
		{Call: "mmap", Arg: 3, Body: refuse(bpf.JumpBitsSet, unix.MAP_HUGETLB, unix.ENOMEM)},
		{Call: "memfd_create", Arg: 1, Body: refuse(bpf.JumpBitsSet, unix.MFD_HUGETLB, unix.ENOMEM)},
		{Call: "fcntl", Arg: 1, Body: refuse(bpf.JumpEqual, unix.F_SETLEASE, unix.EACCES)},
	}
}
