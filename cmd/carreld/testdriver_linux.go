//go:build linux && carreltest && !carrelbeside

package main

import (
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
)

// testDriver runs the agent as the guest of a machine, as far as that goes.
func testDriver(agent string) hypervisor.Driver {
	return hypervisortest.New(hypervisortest.Options{Agent: []string{agent, "serve"}})
}
