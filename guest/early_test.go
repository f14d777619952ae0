package guest

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/share/control"
	"github.com/carrel-vm/carrel/hypervisor"
)

// stillborn is a machine with a share that dies as it starts.
type stillborn struct{ *hostile }

func (d stillborn) Create(ctx context.Context, cfg hypervisor.Config, h hypervisor.Handlers) (hypervisor.VM, error) {
	vm, err := d.hostile.Create(ctx, cfg, h)
	return stillbornVM{vm}, err
}

type stillbornVM struct{ hypervisor.VM }

func (v stillbornVM) Mounts() []hypervisor.Mount {
	return []hypervisor.Mount{{Tag: "share0", Type: "fuse", GuestPath: "/x"}}
}

func (v stillbornVM) Start(ctx context.Context) error {
	err := v.VM.Start(ctx)
	v.Kill()
	return err
}

// A machine that dies at once ends its start at once, however long the process takes
// that is to serve its share.
func TestDiesBesideSlowShare(t *testing.T) {
	o := testOptions(t, new(hostile))
	o.Driver = stillborn{&hostile{boot: wellBehaved}}
	slow := func(ctx context.Context, _ ShareSpec) (*control.Conn, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	o.Shares = newShares([]*sharing{{share: &api.Share{Path: "/x"}}}, slow, slog.New(slog.DiscardHandler), func() {})
	defer o.Shares.close()
	if _, err := Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), errEarly.Error()) {
		t.Errorf("it ended by %v", err)
	}
}
