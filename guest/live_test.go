package guest

import (
	"errors"
	"fmt"
	"testing"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/hypervisor"
)

// What fails because the guest ends is told apart from what fails in a guest
// that runs.
func TestFailsAsTheGuestEnds(t *testing.T) {
	broken := errors.New("the stream broke")
	for _, c := range []struct {
		name           string
		finished, gone bool
		err            error
		want           connect.Code
	}{
		{"it runs", false, false, broken, connect.CodeInternal},
		{"its task is over", true, false, broken, connect.CodeFailedPrecondition},
		{"it has ended", false, true, broken, connect.CodeFailedPrecondition},
		{"its machine has", false, false, fmt.Errorf("call: %w", hypervisor.ErrGone), connect.CodeFailedPrecondition},
	} {
		g := &Guest{gone: make(chan struct{})}
		k := &Keeper{info: &api.Guest{Name: "box"}, g: g, shares: new(shares), finished: make(chan struct{})}
		if c.finished {
			k.finish()
		}
		if c.gone {
			close(g.gone)
		}
		err := k.with(t.Context(), "import", "not read", func(*Guest, *shares) error { return c.err })
		if got := connect.CodeOf(err); got != c.want {
			t.Errorf("%s: %v, wanted %v", c.name, err, c.want)
		}
	}
}
