package qemu

import (
	"fmt"
	"unsafe"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// deniedCalls are what a confined QEMU has no business with. All its sockets
// are inherited, so it needs none of the calls that make or connect one.
// QEMU's own -sandbox adds execve, fork, set*id and more once it has started.
var deniedCalls = []string{
	// the network, other processes' sockets, the host's vsock
	"socket", "socketpair", "connect", "bind", "listen", "accept", "accept4",
	// other processes
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp",
	"pidfd_open", "pidfd_getfd", "pidfd_send_signal", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
	"migrate_pages", "move_pages",
	"shmget", "shmat", "shmctl", "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semctl", "semtimedop",
	"mq_open", "mq_unlink",
	// mounts and namespaces
	"mount", "umount2", "pivot_root", "chroot", "setns", "unshare", "fsopen", "fsconfig", "fsmount", "fspick",
	"move_mount", "open_tree", "mount_setattr", "swapon", "swapoff", "quotactl", "quotactl_fd",
	// large or rarely needed parts of the kernel
	"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
	"add_key", "request_key", "keyctl", "kexec_load", "kexec_file_load",
	"init_module", "finit_module", "delete_module", "fanotify_init", "fanotify_mark",
	"open_by_handle_at", "name_to_handle_at", "lookup_dcookie", "vmsplice", "memfd_secret",
	// the machine
	"reboot", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "acct", "syslog", "vhangup",
	"sethostname", "setdomainname", "personality",
	// what Landlock does not cover: modes, owners and times of any file
	"chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat", "utime", "utimes", "futimesat", "utimensat",
	"truncate", "link", "linkat", "symlink", "symlinkat", "rename", "renameat", "renameat2", "rmdir", "mkdir", "mkdirat",
	"mknod", "mknodat", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr",
}

// deniedAMD64 exist on amd64 only.
var deniedAMD64 = []string{"iopl", "ioperm", "modify_ldt", "uselib", "ustat", "sysfs", "_sysctl", "create_module", "get_kernel_syms", "query_module", "nfsservctl"}

// namespaceFlags are clone(2)'s flags that make a namespace.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// restrictCalls installs two filters on this thread: one that ends a process
// that calls the kernel in another processor's way (i386 on amd64), and one
// that refuses deniedCalls, and signals and limits for others than pid self.
func restrictCalls(self int) error {
	info, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	names := deniedCalls
	if info.Name == arch.X86_64.Name {
		names = append(append([]string(nil), names...), deniedAMD64...)
	}
	limits := others("prlimit64", self)
	limits.Conditions = append(limits.Conditions, seccomp.Condition{Argument: 0, Operation: seccomp.NotEqual, Value: 0})
	deny := seccomp.ActionErrno | seccomp.Action(unix.EPERM)
	err = seccomp.LoadFilter(seccomp.Filter{
		NoNewPrivs: true,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionAllow,
			Syscalls: []seccomp.SyscallGroup{
				{Action: deny, Names: names},
				// Its flags are in memory, where a filter cannot look; C
				// libraries fall back to clone.
				{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: []string{"clone3"}},
				// Conditions come last: after one that does not hold, the
				// library's program compares the argument, not the call, with
				// what follows, so nothing that matters may follow.
				{Action: deny, NamesWithCondtions: []seccomp.NameWithConditions{
					others("kill", self), others("tgkill", self), limits,
					{Name: "clone", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsSet, Value: namespaceFlags}}},
				}},
			},
		},
	})
	if err != nil {
		return err
	}
	if err := nativeOnly(uint32(info.ID)); err != nil {
		return err
	}
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil || mode != 2 {
		return fmt.Errorf("no filter stands after it was loaded (mode %d): %v", mode, err)
	}
	return nil
}

// others matches a call for another process than self. A pid is an int, of
// which the kernel looks at the lower half: what a caller puts into the upper
// half can only make the filter refuse more.
func others(call string, self int) seccomp.NameWithConditions {
	return seccomp.NameWithConditions{Name: call, Conditions: seccomp.ArgumentConditions{
		{Argument: 0, Operation: seccomp.NotEqual, Value: uint64(self)},
	}}
}

// nativeOnly kills the process on a system call of another architecture, for
// which the numbers of the main filter mean other calls. That filter lets them
// pass (seccomp.Policy.Assemble), and refuses x32 itself.
func nativeOnly(arch uint32) error {
	p := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 4}, // struct seccomp_data.arch
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: arch},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	return nil
}
