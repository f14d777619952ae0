//go:build !unix

package egress

import (
	"net"
	"testing"
)

// socketPair stands for what the keeper and this process have between them.
func socketPair(t *testing.T) (a, b halfConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return d.(halfConn), c.(halfConn)
}
