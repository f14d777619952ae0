//go:build unix

package main

import (
	"fmt"
	"os"
	"syscall"
)

// becomeDaemon replaces this process, so that whoever supervises it supervises
// the daemon. It returns only if that fails.
func becomeDaemon(path string) error {
	err := syscall.Exec(path, []string{path, "daemon"}, os.Environ())
	return fmt.Errorf("run %s: %w", path, err)
}
