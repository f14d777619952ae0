package daemon

import (
	"errors"

	"github.com/carrel-vm/carrel/hypervisor"
)

// mkfsProgram is not there: what has that name in a Windows' PATH is no program of Windows.
func mkfsProgram() (string, error) {
	return "", &hypervisor.Error{
		Op: "make the guest's disk", Err: errors.New("a guest that stays or has a share in review has one, and nothing makes disks on Windows yet"),
		Cure: "use carrel run without --name and --keep, and share folders read-only or to be written (--share PATH:ro, or :rw): such a guest needs none",
	}
}
