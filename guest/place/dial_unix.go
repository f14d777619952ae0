//go:build !windows

package place

import (
	"context"
	"net"
)

// Dial connects to a socket of ours, and says nothing to a process of another
// user (a Stranger).
func Dial(ctx context.Context, path string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := CheckPeer(c.(*net.UnixConn)); err != nil {
		c.Close()
		return nil, &Stranger{err}
	}
	return c, nil
}
