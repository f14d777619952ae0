package stage

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets into struct seccomp_data (linux/seccomp.h). Arguments are 64 bits
// wide; a socket's family is an int, so the kernel looks at the low half only,
// which comes first on the little-endian processors that we build for.
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16
)

// x32Bit marks calls of amd64's x32 interface (asm/unistd.h): the same calls
// under other numbers, so they are refused as a whole.
const x32Bit = 0x40000000

// absent lists calls that answer ENOSYS to everyone, as they would on a kernel
// without them: programs fall back.
var absent = []uint32{unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER}

// machine lists calls that change the running kernel.
var machine = []uint32{
	unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
}

// userOnly lists calls that a task without root has no use for.
var userOnly = []uint32{
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
}

// program assembles the filter: a chain of tests, each with its answer.
func program(f Filter) []unix.SockFilter {
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		jge  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	errno := func(e unix.Errno) unix.SockFilter {
		return unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(e)}
	}
	arch := uint32(unix.AUDIT_ARCH_X86_64)
	if runtime.GOARCH == "arm64" {
		arch = unix.AUDIT_ARCH_AARCH64
	}
	p := []unix.SockFilter{
		{Code: load, K: dataArch},
		{Code: jeq, Jt: 1, K: arch},
		errno(unix.ENOSYS),
		{Code: load, K: dataNr},
	}
	if runtime.GOARCH == "amd64" {
		p = append(p, unix.SockFilter{Code: jge, Jf: 1, K: x32Bit}, errno(unix.ENOSYS))
	}
	refuse := func(calls []uint32, e unix.Errno) {
		for _, nr := range calls {
			p = append(p, unix.SockFilter{Code: jeq, Jf: 1, K: nr}, errno(e))
		}
	}
	refuse(absent, unix.ENOSYS)
	refuse(machine, unix.EPERM)
	if f == FilterUser {
		refuse(userOnly, unix.EPERM)
	}
	// No vsock: the host's ports are the agent's to use.
	return append(p,
		unix.SockFilter{Code: jeq, Jf: 3, K: unix.SYS_SOCKET},
		unix.SockFilter{Code: load, K: dataArg0},
		unix.SockFilter{Code: jeq, Jf: 1, K: unix.AF_VSOCK},
		errno(unix.EAFNOSUPPORT),
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	)
}

// install puts the filter on this thread, which needs root or no_new_privs.
func install(p []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return os.NewSyscallError("restrict system calls", e)
	}
	return nil
}
