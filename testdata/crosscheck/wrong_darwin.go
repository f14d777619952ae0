// Package crosscheck holds mistakes that only show on macOS: TestTypesCatch finds
// each.
package crosscheck

import (
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/seatbelt"
)

var (
	_ hypervisor.VM = seatbelt.New(seatbelt.Options{}) // a driver is no guest
	_               = seatbelt.Options{Kernel: "/"}    // there is none
)

func openat2() (int, error) { return unix.Openat2(0, "x", nil) } // Linux's
