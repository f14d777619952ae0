//go:build cgo

// Package wrong misuses Code-Hex/vz in ways that only show where it is compiled:
// TestTypesCatchModule finds each.
package wrong

import (
	"context"
	"net"

	"github.com/Code-Hex/vz/v3"
)

func wrong(ctx context.Context, vm *vz.VirtualMachine, fs *vz.VirtioFileSystemDeviceConfiguration) {
	dir, _ := vz.NewSharedDirectory("/")       // it wants to know whether it is read-only
	_ = vm.Stop(ctx)                           // it knows no context
	fs.SetDirectoryShare(dir)                  // a directory is no share
	_ = vz.DiskImageCachingModeWriteback       // there is none
	var l net.Listener = vm.SocketDevices()[0] // a device is no listener
	_ = vz.WithCommandLine([]string{"quiet"})  // it is one string
	_ = vm.SaveMachineStateToPath("/state")    // on Apple's own processors only
	_ = l
}
