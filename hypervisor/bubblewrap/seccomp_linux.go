package bubblewrap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

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

// families are the kinds of socket that a guest may make. AF_NETLINK is for
// the agent's packet rules and for getifaddrs(3).
var families = []uint32{unix.AF_UNSPEC, unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// special are the permission bits that no file gets: a guest writes to folders
// of the host, where a program with one of them would run as its owner.
const special = unix.S_ISUID | unix.S_ISGID

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
	for _, program := range [][]bpf.Instruction{native(uint32(info.ID)), calls, arguments(info)} {
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

// Offsets into struct seccomp_data (linux/seccomp.h). Only the low half of an
// argument is looked at: the kernel takes modes, families and ioctl requests
// as 32 bits. It comes first on little-endian processors.
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

// native kills a process that calls the kernel in another processor's way
// (i386 on amd64), for which the numbers mean other calls.
func native(id uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: id, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	}
}

// test is a call that is refused for what one of its arguments says.
type test struct {
	call string
	arg  uint32
	// body looks at the argument, which is loaded, and returns; the program
	// goes on behind it if the call is another.
	body []bpf.Instruction
}

// arguments refuses calls for what their arguments say.
func arguments(info *arch.Info) []bpf.Instruction {
	allow := bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	errno := func(e unix.Errno) bpf.Instruction {
		return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(e)}
	}
	mode := []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: special, SkipFalse: 1},
		errno(unix.EPERM),
		allow,
	}
	// create looks at the mode only where the call makes a file: otherwise it
	// is whatever was in that register.
	create := func(arg uint32) []bpf.Instruction {
		return append([]bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.O_CREAT | unix.O_TMPFILE&^unix.O_DIRECTORY, SkipTrue: 1},
			allow,
			bpf.LoadAbsolute{Off: dataArgs + 8*arg, Size: 4},
		}, mode...)
	}
	var family []bpf.Instruction
	for _, f := range families {
		family = append(family, bpf.JumpIf{Cond: bpf.JumpEqual, Val: f, SkipFalse: 1}, allow)
	}
	family = append(family, errno(unix.EAFNOSUPPORT))
	// TIOCSTI and TIOCLINUX put words into the mouth of who reads a terminal.
	ioctl := []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.TIOCSTI, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.TIOCLINUX, SkipTrue: 1},
		errno(unix.EPERM),
		allow,
	}
	tests := []test{
		{"chmod", 1, mode}, {"fchmod", 1, mode}, {"fchmodat", 2, mode}, {"fchmodat2", 2, mode},
		{"mknod", 1, mode}, {"mknodat", 2, mode},
		{"creat", 1, mode}, {"open", 1, create(2)}, {"openat", 2, create(3)},
		{"socket", 0, family}, {"socketpair", 0, family},
		{"ioctl", 1, ioctl},
	}
	p := []bpf.Instruction{bpf.LoadAbsolute{Off: dataNr, Size: 4}}
	for _, t := range tests {
		nr, ok := info.SyscallNames[t.call]
		if !ok {
			// Newer than the table, with one number on every processor.
			if t.call != "fchmodat2" {
				continue
			}
			nr = 452
		}
		p = append(p,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(nr), SkipTrue: uint8(len(t.body) + 1)},
			bpf.LoadAbsolute{Off: dataArgs + 8*t.arg, Size: 4},
		)
		p = append(p, t.body...)
	}
	return append(p, allow)
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
