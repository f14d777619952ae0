//go:build linux && carrelmac

package main

import (
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Built with the tag carrelmac, a carreld for Linux has the processes that one
// for macOS has: the portable backend of shares, packets over streams, and a
// sandbox that they enter by a sandbox-exec. That is a stand-in beside this
// program (testdata/sandboxexec), which reads the profile and enforces it with
// what Linux has.

func sandboxExec(self string) string { return filepath.Join(filepath.Dir(self), "sandbox-exec") }

// inheritAs duplicates own to fd, which is not closed on exec.
func inheritAs(own, fd int) error { return unix.Dup3(own, fd, 0) }
