//go:build !windows

package daemon

import "github.com/carrel-vm/carrel/hypervisor"

// mkfsProgram makes disks.
func mkfsProgram() (string, error) {
	program, err := lookTool("mkfs.ext4")
	if err != nil {
		return "", &hypervisor.Error{Op: "make the guest's disk", Err: err, Cure: "sudo apt-get install e2fsprogs"}
	}
	return program, nil
}
