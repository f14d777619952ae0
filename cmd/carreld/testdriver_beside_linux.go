//go:build linux && carreltest && carrelbeside

package main

import (
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/seatbelt"
)

// testDriver runs the agent as macOS would, beside its tasks.
func testDriver(agent string) hypervisor.Driver { return &seatbelt.Bare{Agent: agent} }
