//go:build unix

package daemon

import (
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// toldKeeper notes what it is asked for.
type toldKeeper struct {
	apiconnect.UnimplementedKeeperServiceHandler
	told []string
}

func (k *toldKeeper) ImportReview(context.Context, *connect.Request[api.ImportReviewRequest]) (*connect.Response[api.ImportReviewResponse], error) {
	k.told = append(k.told, "import")
	return connect.NewResponse(&api.ImportReviewResponse{}), nil
}

func (k *toldKeeper) DropReview(_ context.Context, r *connect.Request[api.DropReviewRequest]) (*connect.Response[api.DropReviewResponse], error) {
	k.told = append(k.told, strings.Join(append([]string{"drop"}, r.Msg.Names...), " "))
	return connect.NewResponse(&api.DropReviewResponse{}), nil
}

// A guest never forgets by name alone: a change that it made again after the
// apply had read it would be lost. Only who discards all has it forget all.
func TestDropsByStampsOnly(t *testing.T) {
	b := newReviewBench(t, fakeStore{}, false, inReviewMode)
	k := new(toldKeeper)
	mux := http.NewServeMux()
	mux.Handle(apiconnect.NewKeeperServiceHandler(k))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	named := []string{filepath.Join(b.project, "a"), filepath.Join(b.project, "b", "c")}

	b.dropReview(context.Background(), b.e, named) // for its next start
	b.e.mu.Lock()
	b.e.keeper = &keeper{own: apiconnect.NewKeeperServiceClient(srv.Client(), srv.URL)}
	b.e.info.State = api.GuestState_GUEST_STATE_READY
	b.e.mu.Unlock()
	t.Cleanup(func() { b.e.mu.Lock(); b.e.keeper = nil; b.e.mu.Unlock() })
	if err := b.replayDrops(context.Background(), b.e); err != nil {
		t.Fatal(err)
	}
	b.dropReview(context.Background(), b.e, named)
	b.dropReview(context.Background(), b.e, []string{b.project})
	if got := strings.Join(k.told, ", "); got != "import, import, drop" {
		t.Errorf("the keeper was asked for %q", got)
	}
}
