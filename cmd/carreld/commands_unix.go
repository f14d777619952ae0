//go:build linux || darwin

package main

import (
	"context"
	"os/exec"
	"syscall"
)

// reviewCommand runs a review process.
func reviewCommand(self string) []string { return []string{self, "review"} }

// unpackCommand starts a process that unpacks layers; it is killed when ctx ends.
func unpackCommand(self string) func(ctx context.Context) *exec.Cmd {
	return func(ctx context.Context) *exec.Cmd {
		cmd := exec.CommandContext(ctx, self, "unpack")
		cmd.Env = []string{"LANG=C.UTF-8"} // nothing of the user's: credentials may be in it
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C at the daemon's terminal is the daemon's to judge
		return cmd
	}
}

// maxUnpacked bounds a file that the process writes: the limit of contents, and as much again for a root of which
// half is metadata.
const maxUnpacked = 64 << 30
