package daemon

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// bootsYet is the keeper of a guest that boots.
type bootsYet struct{ apiconnect.KeeperServiceClient }

func (bootsYet) Stop(context.Context, *connect.Request[api.StopGuestRequest]) (*connect.Response[api.StopGuestResponse], error) {
	return nil, api.NewError(connect.CodeFailedPrecondition, "not_running", "the guest is not running", "")
}

// A boot that nobody waits for any more is ended at once, with its keeper. The
// controls, whose keeper is waited for: a stop that leaves time, and a guest that ends
// by itself.
func TestEndOfABoot(t *testing.T) {
	for _, tc := range []struct {
		name  string
		state api.GuestState
		grace time.Duration
		took  time.Duration
	}{
		{"given up", api.GuestState_GUEST_STATE_STARTING, 0, 0},
		{"control: stopped", api.GuestState_GUEST_STATE_STARTING, guest.StopGrace, guest.BootTimeout},
		{"control: ends", api.GuestState_GUEST_STATE_STOPPING, 0, guest.StopBound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			guests, id := t.TempDir(), t.TempDir()
			over := keeps(t, id, func() {})
			synctest.Test(t, func(t *testing.T) {
				d, e, dir := alone(t, t.Context(), guests)
				if err := os.Rename(filepath.Join(id, "keeper.json"), filepath.Join(dir, "keeper.json")); err != nil {
					t.Fatal(err)
				}
				e.info.State, e.keeper = tc.state, &keeper{own: bootsYet{}}
				begun := time.Now()
				d.end(t.Context(), e, tc.grace)
				if took := time.Since(begun); took != tc.took {
					t.Errorf("it took %v", took)
				}
			})
			<-over
		})
	}
}

// upLater is the keeper of a guest that boots, and can be stopped when it is up.
type upLater struct {
	apiconnect.KeeperServiceClient
	e     *entry
	stops time.Duration
}

func (k upLater) Stop(ctx context.Context, r *connect.Request[api.StopGuestRequest]) (*connect.Response[api.StopGuestResponse], error) {
	if info, _, _ := k.e.get(); info.State == api.GuestState_GUEST_STATE_STARTING {
		return bootsYet{}.Stop(ctx, r)
	}
	select {
	case <-time.After(k.stops):
	case <-ctx.Done():
		return nil, connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
	}
	k.e.ended()
	return connect.NewResponse(new(api.StopGuestResponse)), nil
}

// Where its keeper cannot be ended, or is given time, it is stopped as soon as it is up,
// and has its time for that then.
func TestEndOfABootThatIsNotKilled(t *testing.T) {
	for _, c := range []struct{ grace, boots, stops time.Duration }{
		{0, time.Second, 0},
		{guest.StopGrace, guest.StopBound - time.Second, 2 * time.Second},
		{guest.StopGrace, guest.BootTimeout - time.Second, guest.StopBound - time.Second},
	} {
		guests := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			d, e, dir := alone(t, t.Context(), guests)
			if err := os.WriteFile(filepath.Join(dir, "keeper.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			e.info.State, e.keeper = api.GuestState_GUEST_STATE_STARTING, &keeper{own: upLater{e: e, stops: c.stops}}
			defer time.AfterFunc(c.boots, func() {
				e.mu.Lock()
				defer e.mu.Unlock()
				e.info.State = api.GuestState_GUEST_STATE_READY
				e.changedLocked()
			}).Stop()
			begun := time.Now()
			d.end(t.Context(), e, c.grace)
			if _, k, _ := e.get(); k != nil || time.Since(begun) != c.boots+c.stops {
				t.Errorf("with a grace of %v its keeper is %v after %v", c.grace, k, time.Since(begun))
			}
		})
	}
}

// A boot that fails while its guest is to be stopped is all there is to end: who starts
// it again meanwhile has another keeper.
func TestEndOfABootThatFails(t *testing.T) {
	guests, id := t.TempDir(), t.TempDir()
	over := keeps(t, id, func() {})
	synctest.Test(t, func(t *testing.T) {
		d, e, dir := alone(t, t.Context(), guests)
		e.info.State, e.keeper = api.GuestState_GUEST_STATE_STARTING, &keeper{own: bootsYet{}}
		defer time.AfterFunc(time.Second, func() {
			if err := os.Rename(filepath.Join(id, "keeper.json"), filepath.Join(dir, "keeper.json")); err != nil {
				t.Error(err)
			}
			e.mu.Lock()
			defer e.mu.Unlock()
			e.keeper = &keeper{}
			e.changedLocked()
		}).Stop()
		d.end(t.Context(), e, guest.StopGrace)
	})
	select {
	case <-over:
		t.Error("the next keeper was ended")
	case <-time.After(50 * time.Millisecond): // for who ends it
	}
}
