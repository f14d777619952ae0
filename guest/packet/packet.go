// Package packet is a socket between two processes of ours on which each packet
// may bring one open file (SCM_RIGHTS, unix(7)). What the packets say is for
// those who use it.
package packet

import (
	"errors"
	"fmt"
	"time"
)

// Max is the largest packet, in bytes: less than what a socket holds at once.
const Max = 64 << 10

// SendTimeout bounds a packet to an end that does not read: that end is broken,
// and nobody may wait for it.
const SendTimeout = 2 * time.Second

// ErrPacket is returned for a packet that cannot have been sent by Send.
var ErrPacket = errors.New("bad packet")

func bad(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrPacket, fmt.Sprintf(format, a...))
}
