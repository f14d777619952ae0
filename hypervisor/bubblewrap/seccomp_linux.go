package bubblewrap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor/wall"
)

// denied are calls that nobody in a guest makes, its agent included: parts of
// the shared kernel that are large, rarely needed, or reach beyond namespaces.
var denied = []string{
	"bpf", "perf_event_open", "userfaultfd", "add_key", "request_key", "keyctl",
	"kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module",
	"open_by_handle_at", "name_to_handle_at", "fanotify_init", "lookup_dcookie",
	"process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd",
	"migrate_pages", "move_pages", "vmsplice",
	"reboot", "swapon", "swapoff", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex",
	"acct", "syslog", "quotactl", "quotactl_fd", "vhangup",
}

// deniedAMD64 exist on amd64 only.
var deniedAMD64 = []string{"iopl", "ioperm", "modify_ldt", "uselib", "ustat", "sysfs", "_sysctl", "create_module", "get_kernel_syms", "query_module", "nfsservctl"}

// absent are calls that answer ENOSYS, as on a kernel without them: programs
// fall back. The mode that openat2 gives to a file lies in memory, where a
// filter cannot look. clone3 stays: the agent needs it, and what it could make
// beyond clone, user namespaces, the agent forbids by the kernel's own limit.
var absent = []string{"io_uring_setup", "io_uring_enter", "io_uring_register", "openat2", "memfd_secret"}

// families are the kinds of socket that a guest may make, each with its
// protocols; nil: all. The kernel loads modules for others (SCTP, L2TP, every
// family of generic netlink), whoever asks. Netlink is for the agent's packet
// rules, getifaddrs(3) and ss(8).
var families = []struct {
	family    uint32
	protocols []uint32
}{
	{unix.AF_UNSPEC, nil}, {unix.AF_UNIX, nil},
	{unix.AF_INET, internet}, {unix.AF_INET6, internet},
	{unix.AF_NETLINK, []uint32{unix.NETLINK_ROUTE, unix.NETLINK_SOCK_DIAG, unix.NETLINK_NETFILTER}},
}

// internet are protocols of the internet that a guest may use; 0 is a type's
// own.
var internet = []uint32{0, unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6, unix.IPPROTO_MPTCP}

// filters returns the programs, each in memory, for bwrap to load.
func filters() ([]*os.File, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	names := denied
	if info.Name == arch.X86_64.Name {
		names = append(append([]string(nil), names...), deniedAMD64...)
	}
	policy := seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls: []seccomp.SyscallGroup{
			{Action: seccomp.ActionErrno | seccomp.Action(unix.EPERM), Names: known(info, names)},
			{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: known(info, absent)},
		},
	}
	calls, err := policy.Assemble()
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, program := range [][]bpf.Instruction{wall.Native(uint32(info.ID)), calls, arguments(info)} {
		f, err := programFile(program)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// known leaves out the calls that this processor's kernels never had.
func known(info *arch.Info, names []string) []string {
	var have []string
	for _, n := range names {
		if _, ok := info.SyscallNames[n]; ok {
			have = append(have, n)
		}
	}
	return have
}

// arguments refuses calls for what their arguments say.
func arguments(info *arch.Info) []bpf.Instruction {
	var family []bpf.Instruction
	for _, f := range families {
		body := []bpf.Instruction{wall.Allow}
		if f.protocols != nil {
			body = []bpf.Instruction{wall.LoadArgument(2)}
			for _, p := range f.protocols {
				body = append(body, bpf.JumpIf{Cond: bpf.JumpEqual, Val: p, SkipFalse: 1}, wall.Allow)
			}
			body = append(body, wall.Errno(unix.EPROTONOSUPPORT))
		}
		family = append(family, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: f.family, SkipTrue: uint8(len(body))})
		family = append(family, body...)
	}
	family = append(family, wall.Errno(unix.EAFNOSUPPORT))
	// TIOCSTI and TIOCLINUX put words into the mouth of who reads a terminal;
	// TIOCSETD loads modules.
	ioctl := []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.TIOCSTI, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.TIOCSETD, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.TIOCLINUX, SkipTrue: 1},
		wall.Errno(unix.EPERM),
		wall.Allow,
	}
	return wall.Arguments(info, slices.Concat(wall.BitTests(), limits(), scarce(), []wall.Test{
		{Call: "socket", Arg: 0, Body: family}, {Call: "socketpair", Arg: 0, Body: family}, {Call: "ioctl", Arg: 1, Body: ioctl},
	}))
}

// programFile holds a program as bwrap reads it: struct sock_filter after
// struct sock_filter, in the processor's byte order.
func programFile(program []bpf.Instruction) (*os.File, error) {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return nil, fmt.Errorf("assemble the filter: %w", err)
	}
	var b bytes.Buffer
	for _, i := range raw {
		if err := binary.Write(&b, binary.NativeEndian, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K}); err != nil {
			return nil, err
		}
	}
	return wall.Memory("filter", b.Bytes())
}
