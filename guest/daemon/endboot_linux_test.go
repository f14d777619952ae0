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
		{"control: stopped", api.GuestState_GUEST_STATE_STARTING, guest.StopGrace, guest.StopBound},
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
	e *entry
}

func (k upLater) Stop(ctx context.Context, r *connect.Request[api.StopGuestRequest]) (*connect.Response[api.StopGuestResponse], error) {
	if info, _, _ := k.e.get(); info.State == api.GuestState_GUEST_STATE_STARTING {
		return bootsYet{}.Stop(ctx, r)
	}
	k.e.ended()
	return connect.NewResponse(new(api.StopGuestResponse)), nil
}

// Where its keeper cannot be ended, or is given time, it is stopped as soon as it is up.
func TestEndOfABootThatIsNotKilled(t *testing.T) {
	for _, grace := range []time.Duration{0, guest.StopGrace} {
		guests := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			d, e, dir := alone(t, t.Context(), guests)
			if err := os.WriteFile(filepath.Join(dir, "keeper.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			e.info.State, e.keeper = api.GuestState_GUEST_STATE_STARTING, &keeper{own: upLater{e: e}}
			boots := time.AfterFunc(time.Second, func() {
				e.mu.Lock()
				defer e.mu.Unlock()
				e.info.State = api.GuestState_GUEST_STATE_READY
				e.changedLocked()
			})
			defer boots.Stop()
			begun := time.Now()
			d.end(t.Context(), e, grace)
			if _, k, _ := e.get(); k != nil || time.Since(begun) != time.Second {
				t.Errorf("with a grace of %v its keeper is %v after %v", grace, k, time.Since(begun))
			}
		})
	}
}
