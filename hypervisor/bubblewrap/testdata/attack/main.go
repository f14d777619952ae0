// Attack tries, from inside a guest, what a process sandbox must refuse. It
// prints a line for each try: its name and "ok" or the error's name.
package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	tries := map[string]func(args []string){"calls": calls, "setuid": setuid, "connect": connect, "forks": forks, "memory": memory, "mounts": mounts, "shared": shared}
	if len(os.Args) < 2 || tries[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "attack: unknown try")
		os.Exit(2)
	}
	tries[os.Args[1]](os.Args[2:])
}

func say(name string, err error) {
	what := "ok"
	if e, ok := err.(unix.Errno); ok {
		what = unix.ErrnoName(e)
	} else if err != nil {
		what = err.Error()
	}
	fmt.Println(name, what)
}

func raw(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, e := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
		return e
	}
	return nil
}

// calls makes system calls that reach parts of the shared kernel.
func calls([]string) {
	var params [256]byte
	p := uintptr(unsafe.Pointer(&params[0]))
	for _, c := range []struct {
		name string
		nr   uintptr
		args []uintptr
	}{
		{"getpid", unix.SYS_GETPID, nil}, // the control
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, []uintptr{1, p}},
		{"bpf", unix.SYS_BPF, []uintptr{0, p, 64}},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, []uintptr{p, 0, ^uintptr(0), ^uintptr(0), 0}},
		{"userfaultfd", unix.SYS_USERFAULTFD, []uintptr{1}},
		{"keyctl", unix.SYS_KEYCTL, []uintptr{0, 1}},
		{"add_key", unix.SYS_ADD_KEY, []uintptr{p, p, p, 1, 1}},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, []uintptr{0, p, 0}},
		{"name_to_handle_at", unix.SYS_NAME_TO_HANDLE_AT, []uintptr{0, p, p, p, 0}},
		{"kexec_load", unix.SYS_KEXEC_LOAD, []uintptr{0, 0, 0, 0}},
		{"init_module", unix.SYS_INIT_MODULE, []uintptr{p, 1, p}},
		{"process_vm_readv", unix.SYS_PROCESS_VM_READV, []uintptr{1, p, 1, p, 1, 0}},
		{"openat2", unix.SYS_OPENAT2, []uintptr{^uintptr(99), p, p, 24}},
		{"mount", unix.SYS_MOUNT, []uintptr{p, p, p, 0, 0}},
		{"unshare-user", unix.SYS_UNSHARE, []uintptr{unix.CLONE_NEWUSER}},
		{"unshare-net", unix.SYS_UNSHARE, []uintptr{unix.CLONE_NEWNET}},
		{"unshare-mount", unix.SYS_UNSHARE, []uintptr{unix.CLONE_NEWNS}},
		{"chroot", unix.SYS_CHROOT, []uintptr{uintptr(unsafe.Pointer(&[]byte("/\x00")[0]))}},
		{"ptrace-agent", unix.SYS_PTRACE, []uintptr{unix.PTRACE_ATTACH, 1}},
		{"settimeofday", unix.SYS_SETTIMEOFDAY, []uintptr{p, 0}},
		{"reboot", unix.SYS_REBOOT, []uintptr{unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_CAD_OFF}},
	} {
		say(c.name, raw(c.nr, c.args...))
	}
	for _, s := range []struct {
		name             string
		domain, kind, at int
	}{
		{"unix", unix.AF_UNIX, unix.SOCK_STREAM, 0}, {"inet", unix.AF_INET, unix.SOCK_STREAM, 0}, // the controls
		{"vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0}, {"packet", unix.AF_PACKET, unix.SOCK_RAW, 0}, {"raw", unix.AF_INET, unix.SOCK_RAW, 1},
		{"alg", unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, {"xdp", unix.AF_XDP, unix.SOCK_RAW, 0}, {"bluetooth", unix.AF_BLUETOOTH, unix.SOCK_RAW, 0},
		{"tipc", unix.AF_TIPC, unix.SOCK_RDM, 0}, {"can", unix.AF_CAN, unix.SOCK_RAW, 1},
	} {
		_, err := unix.Socket(s.domain, s.kind, s.at)
		say("socket-"+s.name, err)
	}
	c := byte('x')
	say("tiocsti", raw(unix.SYS_IOCTL, 0, unix.TIOCSTI, uintptr(unsafe.Pointer(&c))))
}

// setuid makes files with special permission bits in a folder, in each way.
func setuid(args []string) {
	name := func(s string) string { return filepath.Join(args[0], s) }
	for _, mode := range []uint32{0o755, unix.S_ISUID | 0o755, unix.S_ISGID | 0o755} { // the first: the control
		at := func(s string) string { return fmt.Sprintf("%s-%o", s, mode) }
		if err := os.WriteFile(name(at("chmod")), nil, 0o700); err != nil {
			say(at("write"), err)
		}
		say(at("chmod"), unix.Chmod(name(at("chmod")), mode))
		fd, err := unix.Open(name(at("chmod")), unix.O_RDWR, 0)
		if err == nil {
			err = unix.Fchmod(fd, mode)
		}
		say(at("fchmod"), err)
		say(at("fchmodat"), unix.Fchmodat(unix.AT_FDCWD, name(at("chmod")), mode, 0))
		b := append([]byte(name(at("chmod"))), 0)
		const fchmodat2 = 452
		say(at("fchmodat2"), raw(fchmodat2, ^uintptr(99), uintptr(unsafe.Pointer(&b[0])), uintptr(mode), 0))
		_, err = unix.Open(name(at("open")), unix.O_CREAT|unix.O_WRONLY, mode)
		say(at("open"), err)
		_, err = unix.Openat(unix.AT_FDCWD, name(at("openat")), unix.O_CREAT|unix.O_WRONLY, mode)
		say(at("openat"), err)
		_, err = unix.Open(args[0], unix.O_TMPFILE|unix.O_WRONLY, mode)
		say(at("tmpfile"), err)
		say(at("mknod"), unix.Mknod(name(at("mknod")), unix.S_IFREG|mode, 0))
		_, err = unix.Openat2(unix.AT_FDCWD, name(at("openat2")), &unix.OpenHow{Flags: unix.O_CREAT | unix.O_WRONLY, Mode: uint64(mode)})
		say(at("openat2"), err)
	}
	say("setxattr", unix.Setxattr(name("chmod-755"), "security.capability", []byte{1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	say("mknod-char", unix.Mknod(name("char"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	say("mknod-block", unix.Mknod(name("block"), unix.S_IFBLK|0o666, int(unix.Mkdev(254, 0))))
	say("mknod-fifo", unix.Mknod(name("fifo"), unix.S_IFIFO|0o600, 0))
}

// connect dials network and address pairs.
func connect(args []string) {
	for ; len(args) > 1; args = args[2:] {
		c, err := net.DialTimeout(args[0], args[1], time.Minute)
		if err == nil {
			c.Close()
		}
		if e, ok := err.(*net.OpError); ok {
			if s, ok := e.Err.(*os.SyscallError); ok {
				err = s.Err
			}
		}
		say(args[0]+"-"+args[1], err)
	}
}

// forks starts processes until there are no more, and says how many there were.
func forks([]string) {
	n := 0
	for ; n < 20_000; n++ {
		p, err := os.StartProcess("/bin/sleep", []string{"sleep", "600"}, &os.ProcAttr{})
		if err != nil {
			break
		}
		p.Release()
	}
	fmt.Println("forks", n)
}

// memory touches memory without an end.
func memory([]string) {
	var all [][]byte
	for {
		b := make([]byte, 16<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
		if len(all) > 1<<12 { // 64 GiB
			fmt.Println("memory ok", len(all))
			return
		}
	}
}

// shared takes what the kernel counts for the host's user too, and says how
// much there was.
func shared([]string) {
	// Not by the standard library, which raises this limit.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	var core, signals unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_CORE, &core)
	_ = unix.Getrlimit(unix.RLIMIT_SIGPENDING, &signals)
	fmt.Println("core", core.Cur, core.Max)
	fmt.Println("signals", signals.Max)
	say("limit-self", unix.Prlimit(0, unix.RLIMIT_STACK, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 30}, nil))
	say("limit-agent", unix.Prlimit(1, unix.RLIMIT_STACK, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 30}, nil))
	_, err := unix.Mmap(-1, 0, 2<<20, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB)
	say("huge-pages", err)
	_, err = unix.FcntlInt(0, unix.F_SETLEASE, unix.F_RDLCK)
	say("lease", err)
	n := 0
	for ; n < 1<<16; n++ {
		if _, err := unix.InotifyInit1(0); err != nil {
			break
		}
	}
	fmt.Println("watchers", n)
	for n = 0; n < 1<<16; n++ {
		if unix.Mkdir(fmt.Sprint("/sys/fs/cgroup/tasks/try", n), 0o755) != nil {
			break
		}
	}
	fmt.Println("groups", n)
	for ; n > 0; n-- {
		_ = unix.Rmdir(fmt.Sprint("/sys/fs/cgroup/tasks/try", n-1))
	}
}

// mounts tries to get a read-only folder writable.
func mounts(args []string) {
	say("remount", unix.Mount("", args[0], "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	say("bind", unix.Mount(args[0], "/tmp", "", unix.MS_BIND, ""))
	say("unmount", unix.Unmount(args[0], unix.MNT_DETACH))
	_, err := unix.OpenTree(unix.AT_FDCWD, args[0], unix.OPEN_TREE_CLONE)
	say("open_tree", err)
	say("write", os.WriteFile(filepath.Join(args[0], "written"), nil, 0o600))
}
