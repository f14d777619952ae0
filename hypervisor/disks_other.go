//go:build !windows

package hypervisor

// DiskExt ends the names of disks that a guest writes to.
const DiskExt = ".img"
