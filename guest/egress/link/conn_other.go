//go:build !linux

package link

import (
	"errors"
	"net"
	"os"
	"syscall"
)

var errNotHere = errors.New("this host has no egress process yet")

// Pair is for Linux so far.
func Pair() (keeper, edge *os.File, err error) { return nil, nil, errNotHere }

// Conn is one end of a link.
type Conn struct{}

// New is for Linux so far.
func New(f *os.File) (*Conn, error) {
	f.Close()
	return nil, errNotHere
}

// Close ends the link.
func (c *Conn) Close() error { return nil }

// Send is for Linux so far.
func (c *Conn) Send(*Message, syscall.Conn) error { return errNotHere }

// SendTrust is for Linux so far.
func (c *Conn) SendTrust([]byte) error { return errNotHere }

// Receive is for Linux so far.
func (c *Conn) Receive() (*Message, net.Conn, error) { return nil, nil, errNotHere }
