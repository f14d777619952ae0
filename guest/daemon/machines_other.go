//go:build !darwin

package daemon

// noMachines says that a guest's disk is a folder, which its driver makes.
const noMachines = false
