//go:build linux && carrelmac

package main

// As on a Mac: see probe_darwin.go.
var (
	foreignFolders  = []string{"/etc", "/usr"}
	writableFolders = []string{"/tmp", "/var/tmp", "/dev/shm"}
)

const someProgram = "/usr/bin/true"
