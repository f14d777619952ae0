//go:build !linux

package daemon

// residentBytes is not known on this host: 0.
func residentBytes() int64 { return 0 }
