//go:build unix

package daemon

import (
	"context"
	"errors"
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
	told   []string
	failed error // what an import fails with
}

func (k *toldKeeper) ImportReview(context.Context, *connect.Request[api.ImportReviewRequest]) (*connect.Response[api.ImportReviewResponse], error) {
	k.told = append(k.told, "import")
	return connect.NewResponse(&api.ImportReviewResponse{}), k.failed
}

func (k *toldKeeper) DropReview(_ context.Context, r *connect.Request[api.DropReviewRequest]) (*connect.Response[api.DropReviewResponse], error) {
	k.told = append(k.told, strings.Join(append([]string{"drop"}, r.Msg.Names...), " "))
	return connect.NewResponse(&api.DropReviewResponse{}), nil
}

// runs gives the bench's guest a keeper.
func (b *reviewBench) runs(t *testing.T, k *toldKeeper) {
	mux := http.NewServeMux()
	mux.Handle(apiconnect.NewKeeperServiceHandler(k))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	b.e.mu.Lock()
	b.e.keeper = &keeper{own: apiconnect.NewKeeperServiceClient(srv.Client(), srv.URL)}
	b.e.info.State = api.GuestState_GUEST_STATE_READY
	b.e.mu.Unlock()
	t.Cleanup(func() { b.e.mu.Lock(); b.e.keeper = nil; b.e.mu.Unlock() })
}

// A guest that ends while it is asked has told what it had to: that is no
// failure to look at its changes. One that runs and does not tell, is.
func TestImportOfAGuestThatEnds(t *testing.T) {
	b := newReviewBench(t, fakeStore{}, false, inReviewMode)
	k := new(toldKeeper)
	b.runs(t, k)
	for code, fails := range map[connect.Code]bool{
		connect.CodeFailedPrecondition: false, connect.CodeUnavailable: false, connect.CodeInternal: true,
	} {
		k.failed = connect.NewError(code, errors.New("no"))
		if err := b.importReview(t.Context(), b.e, false); (err != nil) != fails {
			t.Errorf("%v: %v", code, err)
		}
	}
}

// A guest never forgets by name alone: a change that it made again after the
// apply had read it would be lost. Only who discards all has it forget all.
func TestDropsByStampsOnly(t *testing.T) {
	b := newReviewBench(t, fakeStore{}, false, inReviewMode)
	named := []string{filepath.Join(b.project, "a"), filepath.Join(b.project, "b", "c")}

	b.dropReview(context.Background(), b.e, named) // for its next start
	k := new(toldKeeper)
	b.runs(t, k)
	if err := b.replayDrops(context.Background(), b.e); err != nil {
		t.Fatal(err)
	}
	b.dropReview(context.Background(), b.e, named)
	b.dropReview(context.Background(), b.e, []string{b.project})
	if got := strings.Join(k.told, ", "); got != "import, import, drop" {
		t.Errorf("the keeper was asked for %q", got)
	}
}
