//go:build bench

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/guest/place"
)

const residentHow = "its working set"

// threadInfo is SYSTEM_THREAD_INFORMATION, of which as many as it has threads
// follow a process's SYSTEM_PROCESS_INFORMATION.
type threadInfo struct {
	_                 [3]int64 // times
	_                 uint32
	_                 uintptr
	_                 [2]uintptr // numbers
	_, _              int32
	Switches          uint32
	State, WaitReason uint32
}

// usage is what a process holds, in MB, and how often its threads were put on a
// processor, as far as they live.
func usage(pid int) (mb, switches float64, err error) {
	for size := uint32(1 << 20); ; size *= 2 {
		b := make([]byte, size)
		err := windows.NtQuerySystemInformation(windows.SystemProcessInformation, unsafe.Pointer(&b[0]), size, &size)
		if err == windows.STATUS_INFO_LENGTH_MISMATCH && size < 1<<28 {
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		for {
			p := (*windows.SYSTEM_PROCESS_INFORMATION)(unsafe.Pointer(&b[0]))
			if p.UniqueProcessID == uintptr(pid) {
				for i := range uintptr(p.NumberOfThreads) {
					t := (*threadInfo)(unsafe.Pointer(&b[unsafe.Sizeof(*p)+i*unsafe.Sizeof(threadInfo{})]))
					switches += float64(t.Switches)
				}
				return float64(p.WorkingSetSize) / 1e6, switches, nil
			}
			if p.NextEntryOffset == 0 {
				return 0, 0, fmt.Errorf("there is no process %d", pid)
			}
			b = b[p.NextEntryOffset:]
		}
	}
}

func hostFacts() string {
	major, minor, build := windows.RtlGetNtVersionNumbers()
	return fmt.Sprintf("%s, %d cores, Windows %d.%d.%d", os.Getenv("PROCESSOR_IDENTIFIER"), runtime.NumCPU(), major, minor, build)
}

func echoListen(path string) (net.Listener, error) { return place.Listen(path) }

func echoDial(ctx context.Context, path string) (net.Conn, error) { return place.Dial(ctx, path) }
