//go:build !windows

package inherit

import (
	"os"
	"os/exec"
)

// Start starts cmd with files as its descriptors 3, 4 and so on. They stay the
// caller's.
func Start(cmd *exec.Cmd, files ...*os.File) error {
	cmd.ExtraFiles = files
	return cmd.Start()
}

// File returns descriptor n of those that this process was started with.
func File(n int, name string) *os.File { return os.NewFile(uintptr(n), name) }
