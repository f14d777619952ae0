//go:build bench

package agent

import (
	"context"
	"net"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// BenchMount mounts a share as attach does, for the guest of make bench, and
// returns what unmounts it.
func BenchMount(ctx context.Context, dial func(context.Context, uint32) (net.Conn, error), tag, at string) (unmount func() error, err error) {
	r, err := mountFuse(ctx, dial, &wire.Mount{Tag: tag, Type: "fuse", Path: at}, at, fromHost)
	if err != nil {
		return nil, err
	}
	return func() error {
		err := unix.Unmount(at, 0)
		<-r.done // by itself: the kernel lets go of the device
		r.close()
		return err
	}, nil
}
