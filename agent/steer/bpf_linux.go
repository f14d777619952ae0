package steer

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The commands of bpf(2) that are needed, each with the head of union bpf_attr
// (linux/bpf.h) that it reads.

func createMap(kind uint32, key, value, entries, flags uint32) (int, error) {
	attr := struct{ kind, key, value, entries, flags uint32 }{kind, key, value, entries, flags}
	fd, err := bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return -1, fmt.Errorf("make a BPF map of type %d: %w", kind, err)
	}
	return fd, nil
}

// elementAttr, like all of them, holds 64 bits for a pointer, which is what one
// takes on the processors that we build for.
type elementAttr struct {
	fd         uint32
	_          uint32
	key, value unsafe.Pointer
	flags      uint64
}

func updateElement(fd int, key, value []byte) error {
	attr := elementAttr{fd: uint32(fd), key: unsafe.Pointer(&key[0]), value: unsafe.Pointer(&value[0])}
	_, err := bpf(unix.BPF_MAP_UPDATE_ELEM, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func deleteElement(fd int, key []byte) error {
	attr := elementAttr{fd: uint32(fd), key: unsafe.Pointer(&key[0])}
	_, err := bpf(unix.BPF_MAP_DELETE_ELEM, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// loadProgram has the kernel check and take an sk_lookup program.
func loadProgram(code []insn) (int, error) {
	license := []byte("MIT\x00")
	attr := struct {
		kind, count          uint32
		insns, license       unsafe.Pointer
		logLevel, logSize    uint32
		log                  uint64
		kernel, flags        uint32
		name                 [16]byte
		ifindex, expectation uint32
	}{
		kind: unix.BPF_PROG_TYPE_SK_LOOKUP, count: uint32(len(code)),
		insns: unsafe.Pointer(&code[0]), license: unsafe.Pointer(&license[0]),
		expectation: unix.BPF_SK_LOOKUP,
	}
	copy(attr.name[:], "carrel_steer")
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return -1, fmt.Errorf("load the BPF program: %w", err)
	}
	return fd, nil
}

// createLink attaches a program until the link's last descriptor is closed.
func createLink(prog, target int, kind uint32) (int, error) {
	attr := struct{ prog, target, kind, flags uint32 }{uint32(prog), uint32(target), kind, 0}
	fd, err := bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return -1, fmt.Errorf("attach the BPF program: %w", err)
	}
	return fd, nil
}

// bpf's descriptors are closed when the process becomes another program
// (kernel/bpf/syscall.c gives all of them O_CLOEXEC).
func bpf(command int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		fd, _, e := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
		switch e {
		case 0:
			return int(fd), nil
		case unix.EINTR, unix.EAGAIN:
			// EAGAIN: a signal came while the program was checked.
			continue
		}
		return -1, e
	}
}
