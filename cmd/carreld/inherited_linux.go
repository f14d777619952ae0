package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// closeInherited closes every descriptor from first on. Whoever started us may
// have left open what we, and those that we start, must not hold for as long as
// we live: files that no Landlock domain covers, and pipes that somebody waits
// for. What Go's runtime has opened by now stays: its poller, and the files by
// which it follows the processor's limits.
func closeInherited(first int) error {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("find out what was inherited: %w", err)
	}
	for _, e := range dir {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < first {
			continue
		}
		what, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err != nil || strings.HasPrefix(what, "anon_inode:[event") || strings.HasPrefix(what, "/sys/fs/cgroup/") || strings.HasPrefix(what, "/proc/") {
			continue // the first: the listing's own
		}
		if err := unix.Close(fd); err != nil {
			return fmt.Errorf("close inherited descriptor %d: %w", fd, err)
		}
	}
	return nil
}
