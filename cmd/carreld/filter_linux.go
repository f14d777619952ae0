package main

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// Filters that look at arguments, in the kernel's own form (seccomp(2)): the
// library that takes lists of names has no words for some of it.

// Where struct seccomp_data has its fields; of 64 bits the lower half, little
// endian.
const (
	dataNr, dataArch                    = 0, 4
	dataArg0, dataArg1, dataArg2        = 16, 24, 32
	maskKind                            = 0xf // SOCK_TYPE_MASK, linux/net.h
	refused                      uint32 = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
)

func load(at uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
}

// equal jumps over t instructions if the value is k, else over f.
func equal(k uint32, t, f uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: t, Jf: f}
}

func answer(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }

// restrictSockets refuses, on all threads, sockets but those of IPv4, of IPv6
// and of the kernel's routing tables, and pairs but those of streams: a pair of
// datagrams could send to any program's socket.
func restrictSockets() error {
	return loadFilter([]unix.SockFilter{
		0:  equal(unix.SYS_SOCKETPAIR, 7, 0),
		1:  equal(unix.SYS_SOCKET, 0, 9),
		2:  load(dataArg0),
		3:  equal(unix.AF_INET, 7, 0),
		4:  equal(unix.AF_INET6, 6, 0),
		5:  equal(unix.AF_NETLINK, 0, 6),
		6:  load(dataArg2),
		7:  equal(unix.NETLINK_ROUTE, 3, 4),
		8:  load(dataArg1),
		9:  {Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: maskKind},
		10: equal(unix.SOCK_STREAM, 0, 1),
		11: answer(unix.SECCOMP_RET_ALLOW),
		12: answer(refused),
	})
}

// restrictProcesses refuses, on all threads, new processes (threads are good),
// and signals to the threads of others. clone3(2) hides its flags in memory, so
// it is not there at all: the C library then takes clone(2).
func restrictProcesses() error {
	return loadFilter([]unix.SockFilter{
		0: equal(unix.SYS_CLONE3, 0, 1),
		1: answer(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)),
		2: equal(unix.SYS_CLONE, 0, 2),
		3: load(dataArg0),
		4: {Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.CLONE_THREAD, Jt: 4, Jf: 3},
		5: equal(unix.SYS_TGKILL, 0, 3),
		6: load(dataArg0),
		7: equal(uint32(os.Getpid()), 1, 0),
		8: answer(refused),
		9: answer(unix.SECCOMP_RET_ALLOW),
	})
}

// loadFilter puts a filter on all threads, with the call's number loaded. A call
// of another architecture, whose numbers mean other calls, ends the process.
func loadFilter(rest []unix.SockFilter) error {
	info, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	p := append([]unix.SockFilter{
		load(dataArch),
		equal(uint32(info.ID), 1, 0),
		answer(unix.SECCOMP_RET_KILL_PROCESS),
		load(dataNr),
	}, rest...)
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	tid, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(p)
	switch {
	case e != 0:
		return e
	case tid != 0:
		return fmt.Errorf("thread %d could not be restricted", tid)
	}
	// TSYNC put it on all threads or on none; that it stands at all is looked at.
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil || mode != unix.SECCOMP_MODE_FILTER {
		return fmt.Errorf("no filter stands after it was loaded (mode %d): %w", mode, err)
	}
	return nil
}
