package hypervisor

// DiskExt ends the names of disks that a guest writes to: HCS knows a virtual
// disk by its name.
const DiskExt = ".vhdx"
