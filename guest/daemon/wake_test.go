//go:build unix

package daemon

import (
	"context"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/place"
)

// startingKeeper has a guest that is ready when it is told so. It notes what it is
// asked for.
type startingKeeper struct {
	apiconnect.UnimplementedKeeperServiceHandler
	ready chan struct{}
	ends  chan struct{} // it has stopped when this is closed; nil: never
	stops func()        // what a stop does; may be nil
	mu    sync.Mutex
	told  []string
	goOn  chan struct{} // an import waits for it
}

func (k *startingKeeper) note(what string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.told = append(k.told, what)
}

func (k *startingKeeper) asked() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.told)
}

func (k *startingKeeper) Watch(ctx context.Context, _ *connect.Request[api.WatchRequest], st *connect.ServerStream[api.Guest]) error {
	ready := k.ready
	for state := api.GuestState_GUEST_STATE_STARTING; ; state, ready = api.GuestState_GUEST_STATE_READY, nil {
		if err := st.Send(&api.Guest{Name: "g", State: state}); err != nil {
			return err
		}
		select {
		case <-ready:
		case <-k.ends:
			return st.Send(&api.Guest{Name: "g", State: api.GuestState_GUEST_STATE_STOPPED})
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (k *startingKeeper) Stop(context.Context, *connect.Request[api.StopGuestRequest]) (*connect.Response[api.StopGuestResponse], error) {
	k.note("stop")
	if k.stops != nil {
		go k.stops()
	}
	return connect.NewResponse(&api.StopGuestResponse{}), nil
}

func (k *startingKeeper) ImportReview(ctx context.Context, _ *connect.Request[api.ImportReviewRequest]) (*connect.Response[api.ImportReviewResponse], error) {
	k.note("import")
	select {
	case <-k.goOn:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	k.note("imported")
	return connect.NewResponse(&api.ImportReviewResponse{}), nil
}

// serve gives the bench's guest this keeper, which has its folder, and has a daemon
// adopt it.
func (k *startingKeeper) serve(t *testing.T, b *reviewBench, journal string) (leaves func()) {
	t.Helper()
	if err := place.MakePrivate(b.opts.Place.Run); err != nil {
		t.Fatal(err)
	}
	dir := b.dir(b.e)
	line := fmt.Sprintf(`{"time":"2026-01-01T00:00:00Z","guest":{"state":%q}}`, journal)
	if err := os.WriteFile(filepath.Join(dir, "journal"), fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE([]byte(line)), line), 0o600); err != nil {
		t.Fatal(err)
	}
	unlock, free, err := guest.Lock(dir)
	if err != nil || !free {
		t.Fatal(free, err)
	}
	ln, err := guest.ListenPrivate(guest.SocketPath(b.opts.Place.Run, "g"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(apiconnect.NewKeeperServiceHandler(k))
	srv := guest.NewServer(api.Socket_SOCKET_KEEPER, mux)
	go srv.Serve(ln)
	leaves = sync.OnceFunc(func() { unlock(); srv.Close() })
	t.Cleanup(leaves)
	b.reload(t)
	return leaves
}

// A guest is shown as stopped when its keeper has left its folder, a moment after the
// keeper's word: who sees that can remove it.
func TestStoppedIsRemovable(t *testing.T) {
	b := newReviewBench(t, fakeStore{}, false, inReviewMode)
	k := &startingKeeper{ready: make(chan struct{}), ends: make(chan struct{})}
	leaves := k.serve(t, b, "ready")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	close(k.ready)
	is := func(s api.GuestState) (*api.Guest, *keeper) {
		t.Helper()
		if _, err := b.e.wait(ctx, func(i *api.Guest, _ *keeper) bool { return i.State == s }); err != nil {
			t.Fatalf("it is never %s: %v", s, err)
		}
		info, now, _ := b.e.get()
		return info, now
	}
	is(api.GuestState_GUEST_STATE_READY)
	close(k.ends)
	if info, now := is(api.GuestState_GUEST_STATE_STOPPING); now == nil || info.State != api.GuestState_GUEST_STATE_STOPPING {
		t.Errorf("its keeper is there, and it is %s", info.State)
	}
	leaves()
	if _, now := is(api.GuestState_GUEST_STATE_STOPPED); now != nil {
		t.Error("it is stopped, and its keeper is there")
	}
	if _, err := (&guestService{b.Daemon}).Remove(ctx, connect.NewRequest(&api.RemoveGuestRequest{Name: "g"})); err != nil {
		t.Error(err)
	}
}

// deafKeeper takes no calls; what happens when one is tried, then does.
type deafKeeper struct {
	apiconnect.KeeperServiceClient
	then func()
}

func (k deafKeeper) Watch(context.Context, *connect.Request[api.WatchRequest]) (*connect.ServerStreamForClient[api.Guest], error) {
	k.then()
	return nil, connect.NewError(connect.CodeUnavailable, os.ErrNotExist)
}

// A keeper that takes no calls yet, as a daemon that died a moment ago has started it, is
// none whose guest ends: who starts that hears that it runs. The control is one that ends.
func TestStartOfAYoungGuest(t *testing.T) {
	for _, lives := range []bool{true, false} {
		d := newDaemon(t)
		e := newEntry("g", &api.Guest{Name: "g", Spec: &api.GuestSpec{Name: "g"}, State: api.GuestState_GUEST_STATE_STARTING})
		e.keeper = &keeper{own: deafKeeper{then: func() {
			if lives {
				e.heard(&api.Guest{Name: "g", State: api.GuestState_GUEST_STATE_READY})
				return
			}
			e.mu.Lock()
			defer e.mu.Unlock()
			e.info.State, e.keeper = api.GuestState_GUEST_STATE_STOPPED, nil
			e.changedLocked()
		}}}
		err := d.restartable(t.Context(), e, &api.GuestSpec{Name: "g"})
		if lives && codeOf(err) != "running" || !lives && err != nil {
			t.Errorf("it lives %v: who starts it hears %v", lives, err)
		}
	}
}

// A start that the daemon before this one did not see to its end is finished: the
// guest has forgotten what it is to forget before anybody gets it, whether it was
// ready already or not.
func TestAdoptedStart(t *testing.T) {
	for _, was := range []string{"starting", "ready"} {
		b := newReviewBench(t, fakeStore{}, false, inReviewMode)
		b.dropReview(t.Context(), b.e, []string{filepath.Join(b.project, "a")})
		k := &startingKeeper{ready: make(chan struct{}), goOn: make(chan struct{})}
		k.serve(t, b, was)
		up := make(chan error, 1)
		go func() {
			_, _, err := b.up(t.Context(), "g")
			k.note("up")
			up <- err
		}()
		// Who asks to start it or to remove it did so at the same time as nobody else.
		asked := make(chan error, 1)
		go func() {
			s := &guestService{b.Daemon}
			var err error
			if was == "starting" {
				_, err = s.begin(t.Context(), &api.GuestSpec{Name: "g"}, false, guest.Making{}, nil, nil)
			} else {
				_, err = s.Remove(t.Context(), connect.NewRequest(&api.RemoveGuestRequest{Name: "g"}))
			}
			asked <- err
		}()
		close(k.ready)
		for end := time.Now().Add(patience); len(k.asked()) == 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Millisecond) // for who does not wait
		close(k.goOn)
		if err := <-up; err != nil {
			t.Fatal(err)
		}
		if got := codeOf(<-asked); got != "running" {
			t.Errorf("%s: who wants to start or to remove it hears %s", was, got)
		}
		if told := k.asked(); !slices.Equal(told, []string{"import", "imported", "up"}) {
			t.Errorf("%s: in this order: %q", was, told)
		}
		// The control: it is somebody's now, and the next daemon takes nothing from it.
		b.reload(t)
		if _, _, err := b.up(t.Context(), "g"); err != nil || len(k.asked()) != 3 {
			t.Errorf("%s: then it was asked for %q: %v", was, k.asked(), err)
		}
		if had, _ := b.e.noted(func() error { return nil }); had == nil && was == "ready" {
			t.Error("it is not known that somebody has it")
		}
	}
}

// Who removes a guest by force does not wait for what it does at the end of a start
// that this daemon finishes, which is as long as the guest likes.
func TestForcedRemovalOfAnAdoptedStart(t *testing.T) {
	b := newReviewBench(t, fakeStore{}, false, inReviewMode)
	k := &startingKeeper{ready: make(chan struct{})} // it never is
	k.stops = k.serve(t, b, "starting")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if !b.e.resumes() {
		t.Fatal("its start is not finished by this daemon")
	}
	if _, err := (&guestService{b.Daemon}).Remove(ctx, connect.NewRequest(&api.RemoveGuestRequest{Name: "g", Force: true})); err != nil {
		t.Error(err)
	}
}

// A guest that starts ends without its caller, and not with its daemon: the next one
// adopts it.
func TestStartOutlivesDaemon(t *testing.T) {
	for name, c := range map[string]struct {
		daemon bool // ends, not the caller
		want   string
	}{"its daemon ends": {true, ""}, "the control, its caller leaves": {false, "stop"}} {
		t.Run(name, func(t *testing.T) {
			k := &startingKeeper{}
			mux := http.NewServeMux()
			mux.Handle(apiconnect.NewKeeperServiceHandler(k))
			srv := httptest.NewServer(mux)
			defer srv.Close()
			d := newDaemon(t)
			var end context.CancelFunc
			d.ctx, end = context.WithCancel(t.Context())
			defer end()
			e := newEntry("box", &api.Guest{Name: "box", State: api.GuestState_GUEST_STATE_STARTING})
			e.keeper = &keeper{own: apiconnect.NewKeeperServiceClient(srv.Client(), srv.URL)}
			ctx, leave := context.WithCancel(d.ctx)
			defer leave()
			if c.daemon {
				end()
			} else {
				leave()
				time.AfterFunc(10*time.Millisecond, func() { // as when its keeper has ended
					for len(k.asked()) == 0 {
						time.Sleep(time.Millisecond)
					}
					e.mu.Lock()
					defer e.mu.Unlock()
					e.keeper = nil
					e.changedLocked()
				})
			}
			if _, err := d.becomesReady(ctx, e); err == nil {
				t.Error("it is ready")
			}
			if got := strings.Join(k.asked(), " "); got != c.want {
				t.Errorf("its keeper was told %q", got)
			}
		})
	}
}

// What has begun to be forgotten is, when the caller leaves, and for a moment also
// when the daemon ends.
func TestForgetsToItsEnd(t *testing.T) {
	b := newReviewBench(t, fakeStore{}, false, inReviewMode)
	b.dropReview(t.Context(), b.e, []string{filepath.Join(b.project, "a")})
	k := &toldKeeper{}
	b.runs(t, k)
	end, cancel := context.WithCancel(context.Background())
	b.ctx = end
	cancel()
	if said, err := b.forget(end, b.e); said != nil || err != nil || !slices.Equal(k.told, []string{"import"}) {
		t.Errorf("it was asked for %q: %v, %v", k.told, said, err)
	}
}
