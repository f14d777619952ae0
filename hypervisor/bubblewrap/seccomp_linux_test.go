package bubblewrap

import (
	"encoding/binary"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor/wall"
)

// TestArgumentFilter runs the filter of arguments on calls, in x/net's machine.
func TestArgumentFilter(t *testing.T) {
	info, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(arguments(info))
	if err != nil {
		t.Fatal(err)
	}
	const (
		allow = unix.SECCOMP_RET_ALLOW
		perm  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		done  = unix.SECCOMP_RET_ERRNO
		noPro = unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)
		noMem = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOMEM)
		noFam = unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)
	)
	for _, c := range []struct {
		call string
		args [6]uint64
		want uint32
	}{
		{"getpid", [6]uint64{}, allow},
		{"chmod", [6]uint64{0, 0o755}, allow}, {"chmod", [6]uint64{0, 0o4755}, perm}, {"chmod", [6]uint64{0, 0o2755}, perm}, {"chmod", [6]uint64{0, 0o1777}, allow},
		{"fchmod", [6]uint64{3, 0o6755}, perm}, {"fchmodat", [6]uint64{3, 0, 0o4755}, perm}, {"fchmodat", [6]uint64{0o4000, 0o4000, 0o755}, allow},
		{"open", [6]uint64{0, unix.O_RDONLY, 0o4755}, allow}, // no file is made: the mode is not one
		{"open", [6]uint64{0, unix.O_CREAT | unix.O_WRONLY, 0o4755}, perm}, {"open", [6]uint64{0, unix.O_CREAT, 0o755}, allow},
		{"openat", [6]uint64{0, 0, unix.O_TMPFILE | unix.O_RDWR, 0o2700}, perm}, {"openat", [6]uint64{0, 0, unix.O_DIRECTORY, 0o2700}, allow},
		{"creat", [6]uint64{0, 0o4755}, perm}, {"mknod", [6]uint64{0, unix.S_IFREG | 0o4755}, perm}, {"mknodat", [6]uint64{0, 0, unix.S_IFIFO | 0o600}, allow},
		{"socket", [6]uint64{unix.AF_UNIX}, allow}, {"socket", [6]uint64{unix.AF_INET6}, allow}, {"socket", [6]uint64{unix.AF_NETLINK}, allow},
		{"socket", [6]uint64{unix.AF_VSOCK}, noFam}, {"socket", [6]uint64{unix.AF_PACKET}, noFam}, {"socket", [6]uint64{unix.AF_ALG}, noFam},
		{"socket", [6]uint64{1<<32 | unix.AF_VSOCK}, noFam}, // the kernel looks at the low half only
		{"socketpair", [6]uint64{unix.AF_TIPC}, noFam}, {"socketpair", [6]uint64{unix.AF_UNIX}, allow},
		{"ioctl", [6]uint64{0, unix.TIOCSTI}, perm}, {"ioctl", [6]uint64{0, 1<<32 | unix.TIOCSTI}, perm}, {"ioctl", [6]uint64{0, unix.TIOCLINUX}, perm},
		{"ioctl", [6]uint64{0, unix.TCGETS}, allow}, {"ioctl", [6]uint64{0, unix.TIOCSETD}, perm},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP}, allow}, {"socket", [6]uint64{unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, allow},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, noPro}, {"socket", [6]uint64{unix.AF_INET6, unix.SOCK_DGRAM, 115}, noPro},
		{"socket", [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, allow}, {"socket", [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC}, noPro},
		{"socket", [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW, 1<<32 | unix.NETLINK_CRYPTO}, noPro},
		{"mmap", [6]uint64{0, 4096, 3, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS}, allow}, {"mmap", [6]uint64{0, 4096, 3, unix.MAP_PRIVATE | unix.MAP_HUGETLB}, noMem},
		{"memfd_create", [6]uint64{4096, unix.MFD_CLOEXEC}, allow}, {"memfd_create", [6]uint64{4096, unix.MFD_HUGETLB}, noMem},
		{"fcntl", [6]uint64{3, unix.F_SETLK}, allow}, {"fcntl", [6]uint64{3, unix.F_SETLEASE}, unix.SECCOMP_RET_ERRNO | uint32(unix.EACCES)},
		{"setrlimit", [6]uint64{unix.RLIMIT_NOFILE, 4096}, allow}, {"setrlimit", [6]uint64{unix.RLIMIT_CORE, 4096}, done},
		{"prlimit64", [6]uint64{0, unix.RLIMIT_NOFILE, 4096}, allow}, {"prlimit64", [6]uint64{0, unix.RLIMIT_CORE, 4096}, done},
		{"prlimit64", [6]uint64{0, unix.RLIMIT_CORE, 1 << 32}, done},               // an address whose low half is 0
		{"prlimit64", [6]uint64{0, unix.RLIMIT_CORE, 4096, 4096}, perm},            // it would read nothing
		{"prlimit64", [6]uint64{0, unix.RLIMIT_CORE, 4096, 1 << 32}, perm},         //
		{"prlimit64", [6]uint64{0, unix.RLIMIT_CORE, 0, 4096}, allow},              // it only reads
		{"prlimit64", [6]uint64{1, unix.RLIMIT_NOFILE, 4096}, perm},                // another's
		{"prlimit64", [6]uint64{1, unix.RLIMIT_NOFILE, 1 << 32}, perm},             //
		{"prlimit64", [6]uint64{1, unix.RLIMIT_NOFILE, 0, 4096}, allow},            //
		{"prlimit64", [6]uint64{1 << 32, 1<<32 | unix.RLIMIT_CORE, 4096, 0}, done}, // the kernel takes 32 bits of these
	} {
		nr, ok := info.SyscallNames[c.call]
		if !ok {
			continue // arm64 has none of the elder calls
		}
		// struct seccomp_data, each word in the byte order that x/net reads;
		// the low half of an argument comes first.
		data := make([]byte, 64)
		binary.BigEndian.PutUint32(data[0:], uint32(nr))
		for i, a := range c.args {
			binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
			binary.BigEndian.PutUint32(data[16+8*i+4:], uint32(a>>32))
		}
		got, err := vm.Run(data)
		if err != nil {
			t.Fatal(err)
		}
		if uint32(got) != c.want {
			t.Errorf("%s%v: %#x, want %#x", c.call, c.args, got, c.want)
		}
	}
}

// TestNative: calls in another processor's way are not this one's.
func TestNative(t *testing.T) {
	info, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(wall.Native(uint32(info.ID)))
	if err != nil {
		t.Fatal(err)
	}
	const x32, kill = 0x40000000, uint32(unix.SECCOMP_RET_KILL_PROCESS)
	other := uint32(unix.SECCOMP_RET_ERRNO | unix.ENOSYS)
	if info.Name != arch.X86_64.Name {
		other = unix.SECCOMP_RET_ALLOW // the kernel knows no such call
	}
	for _, c := range []struct{ nr, arch, want uint32 }{
		{unix.SYS_GETPID, uint32(info.ID), unix.SECCOMP_RET_ALLOW},
		{unix.SYS_GETPID, unix.AUDIT_ARCH_I386, kill},
		{x32 | unix.SYS_GETPID, uint32(info.ID), other},
	} {
		data := make([]byte, 64)
		binary.BigEndian.PutUint32(data[0:], c.nr)
		binary.BigEndian.PutUint32(data[4:], c.arch)
		got, err := vm.Run(data)
		if err != nil {
			t.Fatal(err)
		}
		if uint32(got) != c.want {
			t.Errorf("call %#x of architecture %#x: %#x, want %#x", c.nr, c.arch, got, c.want)
		}
	}
}

// TestFilterNames: a call that is misspelled would be let through.
func TestFilterNames(t *testing.T) {
	info, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	names := append(append([]string(nil), denied...), absent...)
	if info.Name == arch.X86_64.Name {
		names = append(names, deniedAMD64...)
	}
	for _, n := range names {
		if _, ok := info.SyscallNames[n]; !ok {
			t.Errorf("no call is named %s", n)
		}
	}
	files, err := filters()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	if len(files) != 3 {
		t.Errorf("%d filters", len(files))
	}
}
