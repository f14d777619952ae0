//go:build bench

package main

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const residentHow = "resident pages, as the kernel says; a machine's memory lies in a process of the system's"

// taskInfo is struct proc_taskinfo of sys/proc_info.h, what PROC_PIDTASKINFO of
// proc_info(2) says of a process. That call is the one behind libproc's
// proc_pidinfo, for which there would have to be C of our own.
type taskInfo struct {
	Virtual, Resident                                                                                    uint64
	_                                                                                                    [4]uint64 // times
	Policy, Faults, Pageins, CowFaults, Sent, Received, Mach, Unix, Switches, Threads, Running, Priority int32
}

const (
	procInfoPID     = 2 // PROC_INFO_CALL_PIDINFO
	procPIDTaskInfo = 4 // PROC_PIDTASKINFO
)

// usage is what a process holds, in MB, and how often its threads were put on a
// processor since it began.
func usage(pid int) (mb, switches float64, err error) {
	var t taskInfo
	n, _, errno := syscall.Syscall6(syscall.SYS_PROC_INFO, procInfoPID, uintptr(pid), procPIDTaskInfo, 0, uintptr(unsafe.Pointer(&t)), unsafe.Sizeof(t))
	if errno != 0 || n != unsafe.Sizeof(t) {
		return 0, 0, fmt.Errorf("proc_info of process %d: %d bytes of %d: %w", pid, n, unsafe.Sizeof(t), errno)
	}
	return float64(t.Resident) / 1e6, float64(t.Switches), nil
}

func hostFacts() string {
	model, _ := unix.Sysctl("machdep.cpu.brand_string") // empty where there is none
	version, _ := unix.Sysctl("kern.osproductversion")
	return fmt.Sprintf("%s, %d cores, macOS %s", model, runtime.NumCPU(), version)
}

func echoListen(path string) (net.Listener, error) { return net.Listen("unix", path) }

func echoDial(ctx context.Context, path string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", path)
}
