//go:build unix && (!linux || carrelmac)

package packet

import (
	"fmt"
	"net"
	"os"
)

// Pair returns the two ends of a new socket, close-on-exec, for two processes
// that are to be started.
func Pair() (a, b *os.File, err error) { return framedPair() }

// Conn is one end. One goroutine may receive while others send.
type Conn struct{ *framed }

// New takes an end. f is closed, also on an error.
func New(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("the link: %w", err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok || uc.LocalAddr().Network() != "unix" {
		c.Close()
		return nil, fmt.Errorf("the link is not a socket of streams")
	}
	return From(uc)
}

// From takes a connection to such a socket.
func From(c *net.UnixConn) (*Conn, error) { return &Conn{newFramed(c)}, nil }
