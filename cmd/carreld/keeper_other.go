//go:build !darwin

package main

// keeperProgram is what keeps guests.
func keeperProgram(self string) string { return self }

// ownProgram is what the processes that a keeper starts run.
func ownProgram(self string) string { return self }
