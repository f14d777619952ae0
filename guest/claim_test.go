package guest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/audit"
	"github.com/carrel-vm/carrel/guest/policy"
)

// What cannot change in a guest that runs is each a reason, and what can is none.
func TestFixed(t *testing.T) {
	is := &api.GuestSpec{Name: "a", Image: "default", Cpus: 2, MemoryMib: 512, DiskMib: 64, Ephemeral: true}
	for _, c := range []struct {
		change func(*api.GuestSpec)
		fits   bool
	}{
		{func(*api.GuestSpec) {}, true},
		{func(s *api.GuestSpec) { s.Ephemeral = false }, true},
		{func(s *api.GuestSpec) { s.Shares = []*api.Share{{Path: "/x"}} }, true},
		{func(s *api.GuestSpec) { s.Egress = &api.EgressSpec{Presets: []string{"packages"}} }, true},
		{func(s *api.GuestSpec) { s.Name = "b" }, false},
		{func(s *api.GuestSpec) { s.Image = "other" }, false},
		{func(s *api.GuestSpec) { s.Cpus = 1 }, false},
		{func(s *api.GuestSpec) { s.MemoryMib = 256 }, false},
		{func(s *api.GuestSpec) { s.DiskMib = 0 }, false},
		{func(s *api.GuestSpec) { s.Boundary = "process" }, false},
		{func(s *api.GuestSpec) { s.Volumes = []*api.VolumeMount{{Name: "v"}} }, false},
	} {
		s := proto.Clone(is).(*api.GuestSpec)
		c.change(s)
		if why := Fixed(is, s); (why == "") != c.fits {
			t.Errorf("%v: %q", s, why)
		}
	}
	// A setting that this does not know may be one that is fixed.
	const known = 10
	if n := is.ProtoReflect().Descriptor().Fields().Len(); n != known {
		t.Errorf("a guest's request has %d settings, and Fixed was written for %d: what of the new one?", n, known)
	}
}

// A guest whose claim was cut off ends when no daemon comes back for it, also one
// that would stay. The control is a guest of which it is written down whose it is.
func TestClaimCutOff(t *testing.T) {
	for what, written := range map[string]bool{"cut off": false, "control": true} {
		t.Run(what, func(t *testing.T) {
			guests := t.TempDir()
			dir := filepath.Join(guests, "a")
			spec := &api.GuestSpec{Name: "a", Image: "default", Cpus: 2, MemoryMib: 512, DiskMib: 64, Ephemeral: true}
			if err := Create(guests, "a", spec, Making{Warm: true}); err != nil {
				t.Fatal(err)
			}
			log, err := audit.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			mine := proto.Clone(spec).(*api.GuestSpec)
			mine.Ephemeral = false
			synctest.Test(t, func(t *testing.T) {
				k := &Keeper{
					req: KeepRequest{Spec: spec, Warm: true}, warm: true, g: new(Guest), info: &api.Guest{Name: "a"}, dir: dir,
					changed: make(chan struct{}), finished: make(chan struct{}), audit: log, log: slog.New(slog.NewTextHandler(io.Discard, nil)),
				}
				over := func() bool {
					synctest.Wait()
					select {
					case <-k.finished:
						return true
					default:
						return false
					}
				}
				k.away = time.AfterFunc(k.absence(), k.finish)
				gone := k.watched()
				_, err := k.ClaimGuest(t.Context(), connect.NewRequest(&api.ClaimGuestRequest{Spec: mine, Rules: []byte(`{"MaxCPUs":2,"MaxMemoryMiB":1024,"MaxDiskMiB":1024}`)}))
				if err != nil {
					t.Fatal(err)
				}
				if time.Sleep(time.Hour); over() {
					t.Fatal("it ended while its daemon was there")
				}
				if written {
					if err := Claimed(dir, mine, Making{}); err != nil {
						t.Fatal(err)
					}
				}
				gone()
				if time.Sleep(k.absence() - 1); over() {
					t.Fatal("it ended before its daemon could come back")
				}
				if time.Sleep(time.Hour); over() == written {
					t.Errorf("it has ended: %v", written)
				}
			})
		})
	}
}

// stuck is a machine that stands still for good.
type stuck struct{ g *Guest }

func (stuck) pause(context.Context) error  { return nil }
func (stuck) resume(context.Context) error { return errors.New("it does not") }
func (m stuck) lost(err error)             { m.g.fail(err.Error()) }

// Nobody gets a guest of the pool that stood still and does not go on.
func TestClaimOfAGuestThatIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(Guest)
		g.rest = newRest(slog.New(slog.DiscardHandler), policy.Idle{Pause: time.Second}, func(time.Time) {}, func() {})
		g.rest.begin(stuck{g})
		defer g.rest.end()
		time.Sleep(time.Minute)
		spec := &api.GuestSpec{Name: "a", Image: "default", Cpus: 2, MemoryMib: 512, DiskMib: 64, Ephemeral: true}
		k := &Keeper{req: KeepRequest{Spec: spec, Warm: true}, warm: true, g: g, rest: g.rest, info: &api.Guest{Name: "a"}, log: slog.New(slog.DiscardHandler)}
		_, err := k.ClaimGuest(t.Context(), connect.NewRequest(&api.ClaimGuestRequest{Spec: spec, Rules: []byte(`{"MaxCPUs":2,"MaxMemoryMiB":1024,"MaxDiskMiB":1024}`)}))
		if connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "does not go on") || !k.warm {
			t.Errorf("it is claimed: %v", err)
		}
	})
}
