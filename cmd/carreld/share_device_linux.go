package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/carrel-vm/carrel/guest/share/control"
	"github.com/carrel-vm/carrel/hypervisor/qemu/vhostuser"
)

// carryDevice serves an open /dev/fuse, or the virtio-fs device of a QEMU on a
// socket.
func (p *shareServer) carryDevice(kind control.Kind, f *os.File) (func() error, error) {
	if kind == control.Device {
		return func() error { return p.srv.ServeDevice(p.ctx, f) }, nil
	}
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("a device's socket is a %T", c)
	}
	// A device that lost its server hangs its guest: it outlives the folder, and
	// gets EIO.
	return func() error {
		return vhostuser.Serve(context.Background(), uc, vhostuser.NewFS(p.spec.Tag, gated{p}))
	}, nil
}

// gated is the server as a device sees it: no request is under way when the
// folder is let go of.
type gated struct{ p *shareServer }

func (g gated) ServeSegments(in, out [][]byte) int {
	g.p.gate.RLock()
	defer g.p.gate.RUnlock()
	return g.p.srv.ServeSegments(in, out)
}

func (g gated) ServeUrgent(in [][]byte) { g.p.srv.ServeUrgent(in) }

func (g gated) Reset() {
	g.p.gate.RLock()
	defer g.p.gate.RUnlock()
	g.p.srv.Reset()
}
