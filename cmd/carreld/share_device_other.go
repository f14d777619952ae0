//go:build !linux

package main

import (
	"fmt"

	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/share/control"
)

// carryDevice refuses: /dev/fuse and QEMU's devices, which speak vhost-user, are
// Linux's.
func (p *shareServer) carryDevice(kind control.Kind, f *inherit.End) (func() error, error) {
	f.Close()
	return nil, fmt.Errorf("%s cannot be served on this host", kind)
}
