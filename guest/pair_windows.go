package guest

import (
	"net"

	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/packet"
)

// socketPair returns two connected ends: a connection of ours, and what is
// handed to another process.
func socketPair() (ours net.Conn, theirs *inherit.End, err error) { return packet.Streams() }
