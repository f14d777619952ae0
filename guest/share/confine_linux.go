package share

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Confine gives up, for the whole process and for good, everything that serving root does not need: every other file
// (Landlock, with a rule made from the pinned folder itself), every system call but those on the list below (seccomp), core
// dumps and new privileges. It is called once, after every descriptor that is to be used is open, and before the first byte
// of the guest is read. If any of it fails, or turns out not to hold, the share must not be served.
//
// own are folders of the share's own, beside the one that is served, which stay writable: what is kept of changes.
func Confine(root *Root, readOnly bool, own ...string) error {
	if err := confine([]*Root{root}, readOnly, false, own...); err != nil {
		return fmt.Errorf("confine the share %q: %w", root.path, err)
	}
	return nil
}

// ConfineAll is Confine for a process that has several folders, or none, and works on them itself: if it may change them, it
// may also give a file what another has beside its content (CopyAttributes).
func ConfineAll(roots []*Root, readOnly bool, own ...string) error {
	return confine(roots, readOnly, !readOnly, own...)
}

func confine(roots []*Root, readOnly, attributes bool, own ...string) error {
	var fds []int
	for _, r := range roots {
		b, is := r.back.(*linuxBackend)
		if !is {
			return fmt.Errorf("the folder %q was not opened by OpenRoot", r.path)
		}
		fds = append(fds, b.root)
	}
	// Loaded now or never: log lines carry the local time.
	_ = time.Now().String()
	unix.Umask(0) // modes are the guest's to choose, within 0777; its kernel has applied the task's umask
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"set limits", limitProcess},
		{"restrict files (Landlock)", func() error { return restrictFiles(fds, readOnly, own) }},
		{"restrict system calls (seccomp)", func() error { return restrictCalls(readOnly, attributes, len(own) > 0) }},
		{"verify the confinement", func() error { return probeConfined(fds, own) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// maxOpenFiles leaves room for MaxHandles' default, the runtime's own, the device's memory and event descriptors.
const maxOpenFiles = 8192

func limitProcess() error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	files.Max = min(files.Max, maxOpenFiles)
	files.Cur = files.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

// restrictFiles leaves the folder, for reading or for everything short of making devices, sockets and FIFOs, and of executing;
// and its own folders, for the latter.
func restrictFiles(roots []int, readOnly bool, own []string) error {
	abi, err := ll.LandlockGetABIVersion()
	if err != nil {
		return fmt.Errorf("%w (the kernel needs Landlock: Linux 5.19 or newer, with landlock among its lsm= modules)", err)
	}
	if abi < 2 {
		return fmt.Errorf("the kernel's Landlock has version %d, and moving files between folders needs 2 (Linux 5.19)", abi)
	}
	const reading = landlock.AccessFSSet(ll.AccessFSReadFile | ll.AccessFSReadDir)
	const writing = reading | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSMakeSym |
		ll.AccessFSRemoveFile | ll.AccessFSRemoveDir | ll.AccessFSRefer
	rights := reading
	if !readOnly {
		rights = writing
	}
	var paths []landlock.Rule
	for _, root := range roots { // the magic link leads to the very folder that is pinned, whatever its name has come to mean
		paths = append(paths, landlock.PathAccess(rights, fmt.Sprintf("/proc/self/fd/%d", root)))
	}
	if len(own) > 0 {
		paths = append(paths, landlock.PathAccess(writing, own...))
	}
	return landlock.V8.BestEffort().Restrict(paths...)
}

// allowedCalls is what serving takes. Every other call fails with EPERM: above all socket, connect, execve, ptrace, mount and io_uring.
var allowedCalls = []string{
	// the folder
	"openat2", "close", "fstat", "statx", "newfstatat", "lseek", "pread64", "preadv", "pwrite64", "pwritev", "getdents64", "ftruncate",
	"fallocate", "fsync", "fdatasync", "readlinkat", "mkdirat", "unlinkat", "symlinkat", "linkat",
	"renameat2", "fstatfs", "fcntl",
	// the folder of its review, which os.Root opens beneath its descriptor; Landlock keeps both calls to what they may have
	"openat", "renameat", "flock",
	// the carrier: descriptors that are open already or come with messages
	"read", "write", "readv", "writev", "recvmsg", "sendmsg", "recvfrom", "sendto", "shutdown", "getsockopt", "setsockopt", "getsockname", "getpeername", "eventfd2",
	"epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_create1", "pipe2", "poll", "ppoll",
	// Go's runtime and the C library's threads
	"futex", "mmap", "munmap", "mprotect", "mremap", "madvise", "mincore", "brk", "clone", "exit", "exit_group", "gettid", "getpid", "tgkill",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "sched_yield", "sched_getaffinity", "nanosleep", "clock_nanosleep",
	"clock_gettime", "gettimeofday", "restart_syscall", "getrandom", "set_robust_list", "rseq", "prctl", "setitimer", "timer_create",
	"timer_settime", "timer_delete", "membarrier", "getrlimit", "prlimit64", "arch_prctl",
}

// changingCalls change modes and times, of what is open to this process: a name, or a descriptor that only stands for one
// (O_PATH), is refused (change_linux.go). Who serves for reading does not need them.
var changingCalls = []string{"fchmod", "utimensat"}

// attributeCalls read and set extended attributes, of what is open to this process, too.
var attributeCalls = []string{"flistxattr", "fgetxattr", "fsetxattr"}

// ownCalls is what keeping files in a folder of its own takes beside that.
var ownCalls = []string{"copy_file_range", "sync_file_range"}

// restrictCalls installs one filter for the list and one for each condition on an argument. They are apart because the library's
// program goes on comparing the argument, not the call's number, after a condition that does not hold.
func restrictCalls(readOnly, attributes, own bool) error {
	info, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	var names []string
	list := allowedCalls
	if own {
		list = slices.Concat(list, ownCalls)
	}
	if !readOnly {
		list = slices.Concat(list, changingCalls)
	}
	if attributes {
		list = slices.Concat(list, attributeCalls)
	}
	for _, n := range list {
		if _, exists := info.SyscallNames[n]; exists { // epoll_wait and poll, for two, are not everywhere
			names = append(names, n)
		}
	}
	deny := seccomp.ActionErrno | seccomp.Action(unix.EPERM)
	self := uint64(os.Getpid())
	conditions := []seccomp.NameWithConditions{
		// Threads, but no processes and no namespaces. (clone3's flags are in memory, where a filter cannot look: ENOSYS.)
		{Name: "clone", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsNotSet, Value: unix.CLONE_THREAD}}},
		{Name: "tgkill", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.NotEqual, Value: self}}},
		{Name: "mmap", Conditions: seccomp.ArgumentConditions{{Argument: 2, Operation: seccomp.BitsSet, Value: unix.PROT_EXEC}}},
		{Name: "mprotect", Conditions: seccomp.ArgumentConditions{{Argument: 2, Operation: seccomp.BitsSet, Value: unix.PROT_EXEC}}},
		{Name: "prlimit64", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.NotEqual, Value: 0}}},
		{Name: "prctl", Conditions: seccomp.ArgumentConditions{
			{Argument: 0, Operation: seccomp.NotEqual, Value: unix.PR_SET_NAME}, {Argument: 0, Operation: seccomp.NotEqual, Value: unix.PR_SET_VMA},
		}},
		// futimens(3) and nothing else: the kernel refuses O_PATH descriptors then (fs/utimes.c, do_utimes_fd).
		{Name: "utimensat", Conditions: seccomp.ArgumentConditions{{Argument: 1, Operation: seccomp.NotEqual, Value: 0}}},
		// openat2's flags lie in memory as well; that a path can only lie below the folder is Landlock's part.
	}
	if own { // a copy that shares its blocks, of one file that is open to another
		names = append(names, "ioctl")
		conditions = append(conditions, seccomp.NameWithConditions{
			Name: "ioctl", Conditions: seccomp.ArgumentConditions{{Argument: 1, Operation: seccomp.NotEqual, Value: unix.FICLONE}},
		})
	}
	policies := []seccomp.Policy{{DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{
		{Names: []string{"clone3"}, Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS)},
	}}}
	for _, c := range conditions {
		policies = append(policies, seccomp.Policy{DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{
			{NamesWithCondtions: []seccomp.NameWithConditions{c}, Action: deny},
		}})
	}
	// The list comes last: it does not let prctl and seccomp through that the others are installed with.
	policies = append(policies, seccomp.Policy{DefaultAction: seccomp.ActionErrno, Syscalls: []seccomp.SyscallGroup{
		{Names: append(names, "clone3"), Action: seccomp.ActionAllow},
	}})
	for i, p := range policies {
		f := seccomp.Filter{NoNewPrivs: i == 0, Flag: seccomp.FilterFlagTSync, Policy: p}
		if err := seccomp.LoadFilter(f); err != nil {
			return err
		}
	}
	return nil
}

// probeConfined tries what must not work any more, and what must.
func probeConfined(roots []int, own []string) error {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC})
	if err == nil {
		unix.Close(fd)
		return errors.New("/ can still be read")
	}
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
		unix.Close(fd)
		return errors.New("a socket can still be made")
	}
	for _, root := range roots {
		fd, err := unix.Openat2(root, ".", &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: beneath})
		if err != nil {
			return fmt.Errorf("the folder itself cannot be read: %w", err)
		}
		unix.Close(fd)
	}
	for _, dir := range own {
		probe := filepath.Join(dir, ".probe")
		if err := os.WriteFile(probe, nil, 0o600); err != nil {
			return fmt.Errorf("its own folder cannot be written: %w", err)
		}
		// Another process of the same guest may try at the same moment.
		if err := os.Remove(probe); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("its own folder cannot be written: %w", err)
		}
	}
	return nil
}
