//go:build unix

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
)

// forwardWait bounds a connection to the guest's own loopback.
const forwardWait = 5 * time.Second

// forward connects the host's call to a TCP port of the guest's loopback:
//
//  1. 127.0.0.1, else [::1]
//  2. Forwarded says whether that worked
//  3. bytes both ways, until both ends have ended
func (a *Agent) forward(ctx context.Context, conn net.Conn, f *wire.Forward) {
	to, err := dialLoopback(ctx, f.Port)
	answer := &wire.Forwarded{}
	if err != nil {
		answer.Error = text(err.Error(), wire.MaxText)
	}
	if e := wire.Write(conn, answer); e != nil || err != nil {
		if to != nil {
			reset(to)
		}
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = to.Close() })
	defer stop()
	carry(to, conn, false)
}

func dialLoopback(ctx context.Context, port uint32) (*net.TCPConn, error) {
	if port < 1 || port > 1<<16-1 {
		return nil, fmt.Errorf("port %d is none: ports are 1 to 65535", port)
	}
	var d net.Dialer
	ctx, cancel := context.WithTimeout(ctx, forwardWait)
	defer cancel()
	p := strconv.FormatUint(uint64(port), 10)
	c, err := d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", p))
	if err != nil {
		var six error
		if c, six = d.DialContext(ctx, "tcp6", net.JoinHostPort("::1", p)); six != nil {
			return nil, fmt.Errorf("connect to port %s in the guest: %w (is a server running there?)", p, err)
		}
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		_ = c.Close()
		return nil, errors.New("connect in the guest: no TCP connection")
	}
	return t, nil
}
