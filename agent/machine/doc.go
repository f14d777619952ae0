// Package machine makes the file system and the control groups of a guest that is
// a machine of its own.
//
// In such a guest's first process that begins in this package's init function,
// while the rest of the program is still being set up: under software emulation
// that takes 60 ms, and the guest's second processor has nothing else to do. For
// the same reason the package imports little.
package machine
