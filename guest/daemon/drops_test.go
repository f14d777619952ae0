//go:build unix

package daemon

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// toldKeeper notes what it is asked for.
type toldKeeper struct {
	apiconnect.UnimplementedKeeperServiceHandler
	told   []string
	failed error // what an import fails with

	dropFailed error
}

func (k *toldKeeper) ImportReview(context.Context, *connect.Request[api.ImportReviewRequest]) (*connect.Response[api.ImportReviewResponse], error) {
	k.told = append(k.told, "import")
	return connect.NewResponse(&api.ImportReviewResponse{}), k.failed
}

func (k *toldKeeper) DropReview(_ context.Context, r *connect.Request[api.DropReviewRequest]) (*connect.Response[api.DropReviewResponse], error) {
	k.told = append(k.told, strings.Join(append([]string{"drop"}, r.Msg.Names...), " "))
	return connect.NewResponse(&api.DropReviewResponse{}), k.dropFailed
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
	b.forgets(t)
	b.dropReview(context.Background(), b.e, named)
	b.dropReview(context.Background(), b.e, []string{b.project})
	if got := strings.Join(k.told, ", "); got != "import, import, drop" {
		t.Errorf("the keeper was asked for %q", got)
	}
}

// forgets hands the bench's guest over.
func (b *reviewBench) forgets(t *testing.T) {
	t.Helper()
	if said, err := b.forget(t.Context(), b.e); said != nil || err != nil {
		t.Fatal(said, err)
	}
}

// What was thrown away is taken from a guest once, before anybody has it: what is
// done in it afterwards stays, whatever a discard or a start meets.
func TestDropsOnlyWhatWas(t *testing.T) {
	b := newReviewBench(t, fakeStore{}, false, inReviewMode)
	all := []string{b.project}
	b.dropReview(t.Context(), b.e, all)
	k := new(toldKeeper)
	b.runs(t, k)
	// It starts still, so that this is for its next moment, too.
	b.dropReview(t.Context(), b.e, all)
	if len(k.told) > 0 {
		t.Fatalf("a guest that nobody has was asked for %q", k.told)
	}
	b.forgets(t)
	if got := strings.Join(k.told, ", "); got != "drop, drop" {
		t.Errorf("the keeper was asked for %q", got)
	}
	b.forgets(t) // there is nothing left to forget
	// Somebody has it. What it does not take now it is not asked for later.
	k.told, k.dropFailed = nil, errors.New("no")
	b.dropReview(t.Context(), b.e, all)
	k.dropFailed = nil
	again := new(toldKeeper)
	b.runs(t, again)
	b.forgets(t)
	if len(k.told) != 1 || len(again.told) > 0 {
		t.Errorf("asked for %q, and at its next start for %q", k.told, again.told)
	}
	// Nor what it does not take as it starts.
	b.e.mu.Lock()
	b.e.keeper = nil
	b.e.mu.Unlock()
	b.dropReview(t.Context(), b.e, all)
	k.told, k.dropFailed = nil, errors.New("no")
	b.runs(t, k)
	if said, err := b.forget(t.Context(), b.e); said == nil || err != nil || len(k.told) != 1 {
		t.Errorf("asked for %q: %v, %v", k.told, said, err)
	}
	b.runs(t, again)
	b.forgets(t)
	if len(again.told) > 0 {
		t.Errorf("at its next start it was asked for %q", again.told)
	}
}

// A guest is nobody's where it cannot be written down that it has forgotten: its next
// start would take what was done in it.
func TestHandsOverOnlyWhatForgot(t *testing.T) {
	b := newReviewBench(t, fakeStore{}, false, inReviewMode)
	path := filepath.Join(b.dir(b.e), fileDrops)
	if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil { // no file, which cannot be emptied
		t.Fatal(err)
	}
	k := new(toldKeeper)
	b.runs(t, k)
	if _, err := b.forget(t.Context(), b.e); codeOf(err) != "disk" {
		t.Errorf("it is handed over: %v", err)
	}
	if had, _ := b.e.noted(func() error { return nil }); had != nil {
		t.Error("somebody has it")
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	b.forgets(t)
	if had, _ := b.e.noted(func() error { return nil }); had == nil {
		t.Error("control: nobody has it")
	}
}

// What was noted is behind what is whole, wherever a crash or a full disk ended the one
// before it.
func TestDropsBehindWhatIsWhole(t *testing.T) {
	note := func(dir, name string) {
		t.Helper()
		if err := noteDrops(dir, []*api.DropReviewRequest{{Share: "/s", Names: []string{name}}}); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("torn", 40)
	for cut := int64(1); ; cut++ {
		dir := t.TempDir()
		path := filepath.Join(dir, fileDrops)
		note(dir, "first")
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		note(dir, long)
		after, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if before.Size()+cut == after.Size() {
			return
		}
		if err := os.Truncate(path, before.Size()+cut); err != nil {
			t.Fatal(err)
		}
		note(dir, "last")
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for in := bufio.NewReader(f); ; {
			m := new(api.DropReviewRequest)
			if (protodelim.UnmarshalOptions{MaxSize: maxDrop}).UnmarshalFrom(in, m) != nil {
				break
			}
			got = append(got, m.Names...)
		}
		f.Close()
		if strings.Join(got, " ") != "first last" {
			t.Fatalf("cut after %d bytes: %.60q", cut, got)
		}
	}
}
