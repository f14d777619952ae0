//go:build !carreltest

package main

// notEnforced is for tests alone: Windows enforces all that is asked of it.
var notEnforced map[string]bool
