package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An attempt is one thing that a taken-over QEMU would try.
type attempt struct {
	name string
	// rootOnly: without privileges the host refuses it to everybody, so only
	// root has a positive control.
	rootOnly bool
	do       func(a *arena) error
}

// arena is what the attempts work on, made by the test.
type arena struct {
	Dir     string // the test's own folder
	Victim  int    // an innocent process
	Unix    string // a listening unix socket
	TCP     string // a listening TCP socket
	Leaked  int    // a descriptor that was open and not listed
	Allowed string // a file that the spec lists read-only
	Disk    string // a file that the spec lists writable
}

func call(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	r, _, e := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if e != 0 {
		return e
	}
	if nr == unix.SYS_CLONE && r == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	return nil
}

func trySocket(family, kind int) func(*arena) error {
	return func(*arena) error {
		fd, err := unix.Socket(family, kind, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
}

var attempts = []attempt{
	{"read /etc/passwd", false, func(*arena) error { _, err := os.ReadFile("/etc/passwd"); return err }},
	{"read a secret", false, func(a *arena) error { _, err := os.ReadFile(a.Dir + "/secret"); return err }},
	{"list a folder", false, func(a *arena) error { _, err := os.ReadDir(a.Dir); return err }},
	{"create a file", false, func(a *arena) error { return os.WriteFile(a.Dir+"/new", nil, 0o600) }},
	{"overwrite a secret", false, func(a *arena) error {
		f, err := os.OpenFile(a.Dir+"/secret", os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		return err
	}},
	{"truncate a secret", false, func(a *arena) error { return os.Truncate(a.Dir+"/truncated", 0) }},
	{"write the read-only file", false, func(a *arena) error {
		f, err := os.OpenFile(a.Allowed, os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		return err
	}},
	{"remove a file", false, func(a *arena) error { return os.Remove(a.Dir + "/removed") }},
	{"rename the disk", false, func(a *arena) error { return os.Rename(a.Dir+"/renamed", a.Dir+"/elsewhere") }},
	{"make a link", false, func(a *arena) error { return os.Symlink("/", a.Dir+"/link") }},
	{"execute /bin/true", false, func(*arena) error {
		pid, err := syscall.ForkExec("/bin/true", []string{"true"}, nil)
		if err == nil {
			_, err = syscall.Wait4(pid, nil, 0, nil)
		}
		return err
	}},
	{"inet socket", false, trySocket(unix.AF_INET, unix.SOCK_STREAM)},
	{"inet6 socket", false, trySocket(unix.AF_INET6, unix.SOCK_DGRAM)},
	{"unix socket", false, trySocket(unix.AF_UNIX, unix.SOCK_STREAM)},
	{"netlink socket", false, trySocket(unix.AF_NETLINK, unix.SOCK_RAW)},
	{"packet socket", true, trySocket(unix.AF_PACKET, unix.SOCK_RAW)},
	{"socket pair", false, func(*arena) error {
		_, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		return err
	}},
	{"connect to a unix socket", false, func(a *arena) error {
		c, err := net.Dial("unix", a.Unix)
		if err == nil {
			c.Close()
		}
		return err
	}},
	{"connect to a TCP port", false, func(a *arena) error {
		c, err := net.Dial("tcp", a.TCP)
		if err == nil {
			c.Close()
		}
		return err
	}},
	{"signal another process", false, func(a *arena) error { return unix.Kill(a.Victim, 0) }},
	{"signal another thread", false, func(a *arena) error { return unix.Tgkill(a.Victim, a.Victim, 0) }},
	{"open another process", false, func(a *arena) error { _, err := unix.PidfdOpen(a.Victim, 0); return err }},
	{"limit another process", false, func(a *arena) error {
		return unix.Prlimit(a.Victim, unix.RLIMIT_CORE, nil, &unix.Rlimit{})
	}},
	{"read another's environment", false, func(a *arena) error {
		_, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", a.Victim))
		return err
	}},
	{"trace another process", true, func(a *arena) error {
		return call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(a.Victim))
	}},
	{"read another's memory", false, func(a *arena) error {
		_, err := unix.ProcessVMReadv(a.Victim, nil, nil, 0)
		return err
	}},
	{"new user namespace", false, func(*arena) error {
		return call(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD))
	}},
	{"unshare", true, func(*arena) error { return call(unix.SYS_UNSHARE, unix.CLONE_NEWUTS) }},
	{"mount", true, func(a *arena) error { return unix.Mount("none", a.Dir+"/mnt", "tmpfs", 0, "") }},
	{"chroot", true, func(a *arena) error { return unix.Chroot("/") }},
	{"new mount context", true, func(*arena) error { fd, err := unix.Fsopen("tmpfs", 0); unix.Close(fd); return err }},
	{"set the host's name", true, func(*arena) error {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return err
		}
		return unix.Sethostname(bytes.TrimRight(u.Nodename[:], "\x00"))
	}},
	{"add a key", false, func(*arena) error { _, err := unix.AddKey("user", "carrel-test", []byte("x"), -1); return err }},
	{"System V memory", false, func(*arena) error {
		id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, 0o600)
		if err == nil {
			unix.SysvShmCtl(id, unix.IPC_RMID, nil)
		}
		return err
	}},
	{"make a device", true, func(a *arena) error {
		return unix.Mknod(a.Dir+"/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
	}},
	{"read from a leaked descriptor", false, func(a *arena) error {
		b := make([]byte, 6)
		if n, err := unix.Pread(a.Leaked, b, 0); err != nil || string(b[:n]) != "canary" {
			return fmt.Errorf("it is closed or another: %v", err)
		}
		return nil
	}},
	{"find an environment", false, func(*arena) error {
		if len(os.Environ()) == 0 {
			return errors.New("it is empty")
		}
		return nil
	}},
	{"have a capability", true, func(*arena) error {
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&hdr, &data[0]); err != nil {
			return err
		}
		if data[0].Effective|data[0].Permitted|data[1].Effective|data[1].Permitted == 0 {
			return errors.New("it has none")
		}
		return nil
	}},
	{"gain privileges", false, func(*arena) error {
		if n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || n == 1 {
			return errors.New("no_new_privs")
		}
		return nil
	}},
	{"outlive the parent", false, func(*arena) error {
		var sig int32
		if err := call(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&sig))); err != nil || sig == int32(unix.SIGKILL) {
			return errors.New("it dies with it")
		}
		return nil
	}},
	{"write a large file", false, func(a *arena) error {
		// SIGXFSZ is ignored by the Go runtime's default for it.
		return os.Truncate(a.Disk, 2<<20)
	}},
	{"dump core", false, func(*arena) error {
		var l unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil || l.Max == 0 {
			return errors.New("limited to 0 bytes")
		}
		return nil
	}},
}

// mustWork is what the confined program needs, tried in the same place.
var mustWork = []attempt{
	{"read its own file", false, func(a *arena) error { _, err := os.ReadFile(a.Allowed); return err }},
	{"write its disk", false, func(a *arena) error { return os.WriteFile(a.Disk, []byte("guest"), 0o600) }},
	{"signal itself", false, func(*arena) error { return unix.Kill(os.Getpid(), 0) }},
	{"wake its threads", false, func(*arena) error { return unix.Tgkill(os.Getpid(), os.Getpid(), 0) }},
	{"see its limits", false, func(*arena) error {
		var l unix.Rlimit
		return unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &l)
	}},
	{"share memory with us", false, func(*arena) error {
		fd, err := unix.MemfdCreate("ram", 0)
		if err == nil {
			err = unix.Ftruncate(fd, 1<<20)
		}
		return err
	}},
	{"start a thread", false, func(*arena) error {
		done := make(chan struct{})
		go func() { time.Sleep(time.Millisecond); close(done) }() // a blocked system call gets a thread
		<-done
		return nil
	}},
}

// attack tries everything and writes the outcomes, name to error, as JSON to
// descriptor 4; args[0] is the arena.
func attack(args []string) {
	var a arena
	if err := json.Unmarshal([]byte(args[0]), &a); err != nil {
		panic(err)
	}
	out := map[string]string{}
	for _, t := range slices.Concat(mustWork, attempts) {
		out[t.name] = ""
		if err := t.do(&a); err != nil {
			out[t.name] = err.Error()
		}
	}
	if err := json.NewEncoder(os.NewFile(4, "result")).Encode(out); err != nil {
		panic(err)
	}
}
