package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/windows"
)

// egressCommand runs a guest's egress process.
func egressCommand(self string) []string { return []string{self, "egress"} }

// shareCommand runs a share process.
func shareCommand(self string) []string { return []string{self, "share"} }

// reviewCommand runs a review process.
func reviewCommand(self string) []string { return []string{self, "review"} }

// unpackCommand starts a process that unpacks layers; it is killed when ctx ends.
func unpackCommand(self string) func(ctx context.Context) *exec.Cmd {
	return func(ctx context.Context) *exec.Cmd {
		cmd := exec.CommandContext(ctx, self, "unpack")
		cmd.Env = []string{} // nothing of the user's: credentials may be in it
		cmd.Dir = filepath.VolumeName(self) + string(filepath.Separator)
		cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NO_WINDOW | windows.CREATE_NEW_PROCESS_GROUP}
		return cmd
	}
}
