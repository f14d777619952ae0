//go:build carreltest

package main

// notEnforced is what Wine 8 accepts and does not enforce. A program that was
// built for tests goes on without; no other has this list (docs/hcs.md).
var notEnforced = map[string]bool{"a job's number of processes": true, "integrity": true}
