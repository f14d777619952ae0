//go:build !windows

package main

import (
	"net"
	"os"
)

// forwardPair makes a connection whose other end can be handed to a keeper.
func forwardPair() (ours net.Conn, theirs *os.File, err error) {
	f, theirs, err := streamPair()
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if ours, err = net.FileConn(f); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}
