package wall

import (
	"fmt"
	"runtime"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets into struct seccomp_data (linux/seccomp.h). Only the low half of an
// argument is looked at: the kernel takes modes, families and ioctl requests
// as 32 bits. It comes first on little-endian processors.
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

// x32Bit marks the numbers of x32 (asm/unistd.h).
const x32Bit = 0x40000000

// special are the permission bits that give a file's rights to who runs it.
const special = unix.S_ISUID | unix.S_ISGID

// A Test refuses a call for what one of its arguments says.
type Test struct {
	// Call is the call's name, Arg counts from 0.
	Call string
	Arg  uint32
	// Body looks at the argument, which is loaded, and returns; the program
	// goes on behind it if the call is another.
	Body []bpf.Instruction
}

// Errno answers a call with an error.
func Errno(e unix.Errno) bpf.Instruction {
	return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(e)}
}

// Allow lets a call through.
var Allow = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}

// LoadArgument loads the low half of an argument, LoadArgumentHigh the other.
func LoadArgument(n uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: dataArgs + 8*n, Size: 4} }

// LoadArgumentHigh is for arguments that are addresses.
func LoadArgumentHigh(n uint32) bpf.Instruction {
	return bpf.LoadAbsolute{Off: dataArgs + 8*n + 4, Size: 4}
}

// BitTests refuse every call that would give a file a set-uid or set-gid bit. The
// mode that openat2 gives to a file lies in memory, where no filter can look:
// it must be absent.
func BitTests() []Test {
	mode := []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: special, SkipFalse: 1},
		Errno(unix.EPERM),
		Allow,
	}
	// create looks at the mode only where the call makes a file: otherwise it
	// is whatever was in that register.
	create := func(arg uint32) []bpf.Instruction {
		return append([]bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.O_CREAT | unix.O_TMPFILE&^unix.O_DIRECTORY, SkipTrue: 1},
			Allow,
			bpf.LoadAbsolute{Off: dataArgs + 8*arg, Size: 4},
		}, mode...)
	}
	return []Test{
		{"chmod", 1, mode}, {"fchmod", 1, mode}, {"fchmodat", 2, mode}, {"fchmodat2", 2, mode},
		{"mknod", 1, mode}, {"mknodat", 2, mode},
		{"creat", 1, mode}, {"open", 1, create(2)}, {"openat", 2, create(3)},
	}
}

// Arguments is a program of tests: what none of them refuses is allowed.
func Arguments(info *arch.Info, tests []Test) []bpf.Instruction {
	p := []bpf.Instruction{bpf.LoadAbsolute{Off: dataNr, Size: 4}}
	for _, t := range tests {
		nr, ok := info.SyscallNames[t.Call]
		if !ok {
			// Newer than the table, with one number on every processor.
			if t.Call != "fchmodat2" {
				continue
			}
			nr = 452
		}
		p = append(p,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(nr), SkipTrue: uint8(len(t.Body) + 1)},
			bpf.LoadAbsolute{Off: dataArgs + 8*t.Arg, Size: 4},
		)
		p = append(p, t.Body...)
	}
	return append(p, Allow)
}

// Native kills a process that calls the kernel in another processor's way
// (i386 on amd64), for which the numbers mean other calls. Those of x32, the
// same calls of amd64 under other numbers, are absent.
func Native(id uint32) []bpf.Instruction {
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: id, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
	}
	if id == uint32(arch.X86_64.ID) {
		p = append(p,
			bpf.LoadAbsolute{Off: dataNr, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32Bit, SkipTrue: 1},
			Errno(unix.ENOSYS),
		)
	}
	return append(p, Allow)
}

// NoSpecialBits puts BitTests on the calling thread, and so on all that it
// starts, for good. The thread must be locked.
func NoSpecialBits() error {
	info, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	absent := Test{"openat2", 0, []bpf.Instruction{Errno(unix.ENOSYS)}}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	for _, program := range [][]bpf.Instruction{Native(uint32(info.ID)), Arguments(info, append(BitTests(), absent))} {
		raw, err := bpf.Assemble(program)
		if err != nil {
			return fmt.Errorf("assemble the filter: %w", err)
		}
		filters := make([]unix.SockFilter, len(raw))
		for i, r := range raw {
			filters[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
		}
		prog := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
		_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
		runtime.KeepAlive(filters)
		if e != 0 {
			return fmt.Errorf("restrict system calls: %w", e)
		}
	}
	return nil
}
