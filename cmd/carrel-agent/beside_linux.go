//go:build carrelbeside

package main

// Tests run here what macOS's driver starts there. Guests of Linux hosts are
// never such, and what it brings would be set up at each of their boots.
func init() { verbs["beside"] = beside }
