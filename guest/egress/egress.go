// Package egress lets a guest reach the hosts it was granted, and no others. It
// runs in a process of its own, one for each guest (carreld egress), because it
// is the one part of the host that parses what a guest and what the world's
// servers say, and that may dial.
package egress

import (
	"context"
	"log/slog"
	"net"
	"net/netip"

	"github.com/carrel-vm/carrel/guest/api"
)

// Options are what a Server is made from.
type Options struct {
	// Guest is the guest's name, for reasons and cures.
	Guest string
	Log   *slog.Logger
	// Record takes every event, in order, before watchers see it. It must not
	// block for long: it writes the audit log.
	Record func(*api.EgressEvent)
	// Refused is told of each refusal, for the task's transcript: the guest's
	// word for the task (may be empty) and one line.
	Refused func(task, line string)
	// Lookup resolves a name on the host; nil: the host's own resolver.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)
	// Own lists the host's own addresses, which are never dialled unless a rule
	// names them; nil: those of its interfaces.
	Own func() ([]netip.Addr, error)
	// Dial opens the TCP connection to a checked address; nil: net.Dialer.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Roots are certificates in PEM by which servers are verified; nil: the
	// host's own.
	Roots []byte
}
