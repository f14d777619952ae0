package place

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Memory returns how much memory programs can get before this Mac compresses or
// swaps, and how much it has, in bytes: pages that are free, purgeable, or of
// files, which is what Activity Monitor calls cached (xnu, bsd/vm/vm_unix.c).
func Memory() (available, total int64, err error) {
	size, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return 0, 0, fmt.Errorf("sysctl hw.memsize: %w", err)
	}
	var pages uint64
	for _, name := range []string{"vm.page_free_count", "vm.page_purgeable_count", "vm.page_pageable_external_count"} {
		n, err := unix.SysctlUint32(name)
		if err != nil {
			return 0, 0, fmt.Errorf("sysctl %s: %w", name, err)
		}
		pages += uint64(n)
	}
	available, total = int64(pages)*int64(unix.Getpagesize()), int64(size)
	if available <= 0 || total < available {
		return 0, 0, errors.New("sysctl does not say how much memory there is")
	}
	return available, total, nil
}

// Touched is not known here: a virtual machine's memory is that of a process of
// the system's. 0: a guest is taken to have touched nothing.
func Touched(int) int64 { return 0 }
