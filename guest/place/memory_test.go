package place

import (
	"errors"
	"testing"
)

// Where the system says how much memory there is, it can be.
func TestMemoryHere(t *testing.T) {
	available, total, err := Memory()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("this system is not asked")
	}
	if err != nil || available <= 0 || total < available || total < 64<<20 {
		t.Errorf("%d of %d: %v", available, total, err)
	}
	t.Logf("%d MiB of %d", available>>20, total>>20)
}
