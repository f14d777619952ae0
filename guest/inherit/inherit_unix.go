//go:build !windows

package inherit

import (
	"os"
	"os/exec"
)

// Handed is what a process can be started with.
type Handed = *os.File

// Start starts cmd with files as its descriptors 3, 4 and so on. They stay the
// caller's.
func Start(cmd *exec.Cmd, files ...Handed) error {
	cmd.ExtraFiles = files
	return cmd.Start()
}

// File returns descriptor n of those that this process was started with.
func File(n int, name string) *os.File { return os.NewFile(uintptr(n), name) }

// Hold does nothing: a process on Unix enters by itself what holds it.
func Hold(*exec.Cmd, Limits) (ended func(), err error) { return func() {}, nil }
