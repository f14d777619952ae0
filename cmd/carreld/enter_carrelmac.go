//go:build linux && carrelmac

package main

import "path/filepath"

// Built with the tag carrelmac, a carreld for Linux has the processes that one
// for macOS has: the portable backend of shares, packets over streams, and a
// sandbox that they enter by a sandbox-exec. That is a stand-in beside this
// program (testdata/sandboxexec), which reads the profile and enforces it with
// what Linux has.

func sandboxExec(self string) string { return filepath.Join(filepath.Dir(self), "sandbox-exec") }
