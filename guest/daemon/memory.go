package daemon

import (
	"fmt"

	"github.com/dustin/go-humanize"

	"github.com/carrel-vm/carrel/guest/place"
)

// spare refuses what needs more memory than this machine has left: all that the
// guest may touch, and what has to stay for everything else. Where the system
// does not say how much there is nothing is refused.
func spare(mib uint32) error {
	available, total, err := place.Memory()
	if err != nil {
		return nil
	}
	need, least := int64(mib)<<20, place.Floor(total)
	if available-need >= least {
		return nil
	}
	size := func(n int64) string { return humanize.IBytes(uint64(n)) }
	return fmt.Errorf("it may use %s of memory, of which %s are available on this machine, and %s have to stay so (end a guest, close other programs, or give pool.memory less)", size(need), size(available), size(least))
}
