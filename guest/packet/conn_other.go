//go:build !unix

package packet

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

var errNotHere = errors.New("this host has no sockets of packets that bring files")

// Pair is for Unix so far.
func Pair() (a, b *os.File, err error) { return nil, nil, errNotHere }

// Conn is one end.
type Conn struct{}

// New is for Unix so far.
func New(f *os.File) (*Conn, error) {
	f.Close()
	return nil, errNotHere
}

// From is for Unix so far.
func From(*net.UnixConn) (*Conn, error) { return nil, errNotHere }

// Close ends it.
func (c *Conn) Close() error { return nil }

// CloseWrite is for Unix so far.
func (c *Conn) CloseWrite() error { return errNotHere }

// SetReadDeadline is for Unix so far.
func (c *Conn) SetReadDeadline(time.Time) error { return errNotHere }

// Send is for Unix so far.
func (c *Conn) Send([]byte, syscall.Conn) error { return errNotHere }

// Receive is for Unix so far.
func (c *Conn) Receive() ([]byte, *os.File, error) { return nil, nil, errNotHere }

// Stream is for Unix so far.
func Stream(f *os.File) (net.Conn, error) {
	f.Close()
	return nil, errNotHere
}
