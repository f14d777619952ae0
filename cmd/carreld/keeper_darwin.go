package main

import (
	"os"
	"path/filepath"
)

// keeperName is a copy of this program beside it that is signed for running
// machines (com.apple.security.virtualization), which this one need not be: then
// neither the daemon nor a share or egress process could make one.
const keeperName = "carrel-keeper"

// keeperProgram is what keeps guests: that copy where there is one, else this
// program.
func keeperProgram(self string) string {
	p := filepath.Join(filepath.Dir(self), keeperName)
	if fi, err := os.Lstat(p); err == nil && fi.Mode().IsRegular() {
		return p
	}
	return self
}

// ownProgram is what the processes that a keeper starts run: this program, and
// not its copy, which alone may make machines.
func ownProgram(self string) string {
	if filepath.Base(self) == keeperName {
		return filepath.Join(filepath.Dir(self), "carreld")
	}
	return self
}
