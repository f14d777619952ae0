//go:build carreltest

package main

import (
	"fmt"
	"os"
)

// hostMemory is what a file says, "AVAILABLE TOTAL" in MiB, whose path is in
// CARREL_TEST_MEMORY. Without it there is enough: a guest of the test driver is a
// process, and takes nothing of what it was given.
func hostMemory() (available, total int64, err error) {
	path := os.Getenv("CARREL_TEST_MEMORY")
	if path == "" {
		return 1 << 42, 1 << 42, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscan(string(b), &available, &total); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", path, err)
	}
	return available << 20, total << 20, nil
}
