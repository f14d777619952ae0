//go:build linux || darwin

package main

// reviewCommand runs a review process.
func reviewCommand(self string) []string { return []string{self, "review"} }
