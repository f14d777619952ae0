//go:build !windows

package review

// settable are the bits of a mode that this host keeps.
const settable = 0o777
