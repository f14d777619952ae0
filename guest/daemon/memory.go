package daemon

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/dustin/go-humanize"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
)

// memory refuses what needs more memory than this machine has left: all that the
// guest may touch, and what has to stay for everything else. Where the system
// does not say how much there is nothing is refused.
func (d *Daemon) memory(what string, mib uint32, rules policy.Rules) error {
	available, total, err := place.Memory()
	if err != nil {
		return nil
	}
	need := int64(mib) << 20
	if least := place.Floor(total); available-need < least {
		size := func(n int64) string { return humanize.IBytes(uint64(n)) }
		return api.NewError(connect.CodeResourceExhausted, "host_memory",
			fmt.Sprintf("%s: it may use %s of memory, of which %s are available on this machine, and %s have to stay so", what, size(need), size(available), size(least)),
			"end a guest (carrel ls, carrel stop), close other programs, or ask for less: --memory")
	}
	return nil
}
