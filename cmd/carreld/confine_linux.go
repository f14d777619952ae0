package main

import (
	"fmt"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// keeperDenied are calls that a keeper with a running guest has no business
// with: it starts nothing any more, and every socket that it needs is open, but
// for pairs (socketpair), whose other ends it hands to the egress process: they
// are connected for good, and lead nowhere else.
var keeperDenied = []string{
	"execve", "execveat", "socket", "connect", "bind", "listen",
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd",
	"mount", "umount2", "pivot_root", "chroot", "setns", "unshare", "fsopen", "fsconfig", "fsmount", "fspick",
	"move_mount", "open_tree", "mount_setattr", "swapon", "swapoff", "quotactl", "quotactl_fd",
	"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
	"add_key", "request_key", "keyctl", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module",
	"open_by_handle_at", "name_to_handle_at", "fanotify_init", "fanotify_mark", "vmsplice", "memfd_secret",
	"reboot", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "acct", "syslog", "sethostname", "setdomainname",
	"fork", "vfork", "pidfd_open", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
	"shmget", "shmat", "shmctl", "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semtimedop", "semctl",
	"mq_open", "mq_unlink", "setpriority", "ioprio_set",
	"chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes", "futimesat", "utimensat",
	"personality", "mknod", "mknodat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat",
	"removexattr", "lremovexattr", "fremovexattr", "removexattrat",
	"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid", "capset",
}

// confineKeeper leaves a keeper whose guest runs its guest's folder, no new
// process, no new socket and no capability: what a hostile guest
// could make of a fault in the keeper's parsers reaches no further. It holds for
// all threads and cannot be undone.
func confineKeeper(dirs ...string) error {
	abi, err := llsyscall.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return fmt.Errorf("this kernel has no Landlock: %v (Linux 5.13 or newer, with landlock in its lsm= list)", err)
	}
	// Newer kernels restrict more; each gives all that it has.
	if err := landlock.V5.BestEffort().RestrictPaths(landlock.RWDirs(dirs...)); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if abi >= 4 {
		if err := landlock.V5.BestEffort().RestrictNet(); err != nil {
			return fmt.Errorf("landlock: %w", err)
		}
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	err = seccomp.LoadFilter(seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionAllow,
			Syscalls:      []seccomp.SyscallGroup{{Action: seccomp.ActionErrno | seccomp.Action(unix.EPERM), Names: keeperDenied}},
		},
	})
	if err == nil {
		err = restrictSockets()
	}
	if err == nil {
		err = restrictProcesses()
	}
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}
