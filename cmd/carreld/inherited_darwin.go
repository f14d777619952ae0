package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// closeInherited keeps every descriptor from first on from those that we start.
// They are not closed: which of them Go's runtime has opened by now cannot be
// told here.
func closeInherited(first int) error {
	dir, err := os.ReadDir("/dev/fd")
	if err != nil {
		return fmt.Errorf("find out what was inherited: %w", err)
	}
	for _, e := range dir {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}
