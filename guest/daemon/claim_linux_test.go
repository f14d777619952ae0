package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/audit"
	"github.com/carrel-vm/carrel/guest/packet"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/share/control"
	"github.com/carrel-vm/carrel/images"
)

// init makes this program also the share process of these tests.
func init() {
	if len(os.Args) == 2 && os.Args[1] == "share" {
		os.Exit(fakeShare())
	}
}

// fakeShare is a share process that says that it is ready, and serves nothing.
func fakeShare() int {
	c, err := control.New(os.NewFile(3, "control"))
	if err != nil {
		return 1
	}
	if _, err := c.Told(); err != nil {
		return 1
	}
	if err := c.Send(&control.Message{Kind: control.Ready}, nil); err != nil {
		return 1
	}
	c.Receive()
	return 0
}

// fakeKeeper is that of a warm guest.
type fakeKeeper struct {
	apiconnect.KeeperServiceClient
	claim   func() error
	mu      sync.Mutex
	mounted []string
	stopped func()
}

func (k *fakeKeeper) ClaimGuest(context.Context, *connect.Request[api.ClaimGuestRequest]) (*connect.Response[api.ClaimGuestResponse], error) {
	if err := k.claim(); err != nil {
		return nil, err
	}
	return connect.NewResponse(new(api.ClaimGuestResponse)), nil
}

func (k *fakeKeeper) AttachShare(_ context.Context, r *connect.Request[api.AttachShareRequest]) (*connect.Response[api.AttachShareResponse], error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mounted = append(k.mounted, r.Msg.Share.GuestPath)
	return connect.NewResponse(new(api.AttachShareResponse)), nil
}

func (k *fakeKeeper) Stop(ctx context.Context, _ *connect.Request[api.StopGuestRequest]) (*connect.Response[api.StopGuestResponse], error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	k.stopped()
	return connect.NewResponse(new(api.StopGuestResponse)), nil
}

// fakeEdge is an egress process that keeps what it was told.
type fakeEdge struct {
	apiconnect.EdgeServiceClient
	mu   sync.Mutex
	told []*api.ConfigureEdgeRequest
}

func (x *fakeEdge) Configure(_ context.Context, r *connect.Request[api.ConfigureEdgeRequest]) (*connect.Response[api.ConfigureEdgeResponse], error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.told = append(x.told, proto.Clone(r.Msg).(*api.ConfigureEdgeRequest))
	return connect.NewResponse(new(api.ConfigureEdgeResponse)), nil
}

func (x *fakeEdge) last(t *testing.T) *api.ConfigureEdgeRequest {
	t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.told) == 0 {
		t.Fatal("the egress process was told nothing")
	}
	return x.told[len(x.told)-1]
}

// poolBench is a daemon with one warm guest.
type poolBench struct {
	*Daemon
	e    *entry
	k    *fakeKeeper
	edge *fakeEdge
}

func newPoolBench(t *testing.T) *poolBench {
	t.Helper()
	d := newDaemon(t)
	for _, dir := range []string{d.guests, d.opts.Place.Run} {
		if err := place.MakePrivate(dir); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(t.TempDir(), "kernel")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(image, "k")
	write(filepath.Join(d.opts.Place.Config, policyFile), "version: 1\npool: {size: 1, memory: 128MiB, disk: 64MiB}\n")
	parts := policy.Parts{Kernel: image}
	d.opts.Edge, d.opts.Images = []string{"edge"}, images.Open(t.TempDir())
	d.opts.Parts = func(context.Context, string) (policy.Parts, func(), error) { return parts, func() {}, nil }
	ctx, cancel := context.WithCancel(t.Context())
	d.ctx = ctx
	t.Cleanup(func() { cancel(); d.owned.Wait() })
	want, err := d.wanted()
	if err != nil || want.Size != 1 {
		t.Fatalf("the pool is %+v: %v", want, err)
	}
	g, err := policy.Decide(want.Spec("swift-otter"), d.opts.Rules)
	if err != nil {
		t.Fatal(err)
	}
	b := &poolBench{Daemon: d, k: &fakeKeeper{claim: func() error { return nil }}, edge: new(fakeEdge)}
	b.e = newEntry("swift-otter", &api.Guest{Name: "swift-otter", Spec: g.Spec(), State: api.GuestState_GUEST_STATE_READY})
	b.e.by, b.e.keeper, b.e.edge = guest.Making{Warm: true}, &keeper{own: b.k, close: func() {}}, &edge{own: b.edge, close: func() {}}
	made := make(chan struct{})
	close(made)
	b.e.warm = &warm{pool: want, stop: func() {}, made: made, gone: make(chan struct{}), parts: filesOf(parts), walls: g.Boundaries()}
	b.k.stopped = func() { // as follow would see it
		b.e.mu.Lock()
		b.e.keeper, b.e.edge, b.e.info.State = nil, nil, api.GuestState_GUEST_STATE_STOPPED
		b.e.changedLocked()
		b.e.mu.Unlock()
	}
	d.table[b.e.name] = b.e
	if err := guest.Create(d.guests, b.e.name, g.Spec(), b.e.by); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(d.auditDir(b.e.name), 0o700); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *poolBench) ask(t *testing.T, change func(*api.GuestSpec)) (*api.Guest, string) {
	t.Helper()
	spec := &api.GuestSpec{MemoryMib: 128, DiskMib: 64}
	change(spec)
	g, cold, err := b.claim(t.Context(), spec, guest.Making{Key: "k"}, func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return g, cold
}

// waits returns when somebody waits for a guest's rules in order to apply the
// policy to it, or when over is closed, and says which.
func waits(over <-chan struct{}) bool {
	buf := make([]byte, 1<<20)
	for {
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "(*Daemon).reapply(") && strings.Contains(g, "(*Mutex).Lock") {
				return true
			}
		}
		select {
		case <-over:
			return false
		default:
			runtime.Gosched()
		}
	}
}

// A secret that is removed while a guest is claimed is not in the guest when that
// is answered. The control is the claim's own word to the egress process.
func TestSecretRemovedInAClaim(t *testing.T) {
	b := newPoolBench(t)
	if _, err := b.secrets.Set(t.Context(), "anthropic", nil, []byte("a value that is long enough")); err != nil {
		t.Fatal(err)
	}
	parts := b.opts.Parts
	b.opts.Parts = func(ctx context.Context, image string) (policy.Parts, func(), error) {
		if b.e.rules.TryLock() { // what is read before could be stale when the guest gets it
			b.e.rules.Unlock()
			t.Error("the request is decided on while others may change what it is decided by")
		}
		return parts(ctx, image)
	}
	over := make(chan struct{})
	b.k.claim = func() error {
		if err := b.secrets.Remove(t.Context(), "anthropic"); err != nil {
			t.Error(err)
		}
		go func() {
			defer close(over)
			b.secretChanged(context.Background(), "anthropic")
		}()
		if !waits(over) {
			t.Error("the removal did not wait for the claim")
		}
		return nil
	}
	g, cold := b.ask(t, func(s *api.GuestSpec) { s.Egress = &api.EgressSpec{Secrets: []string{"anthropic"}} })
	if g == nil {
		t.Fatalf("no claim: %s", cold)
	}
	<-over
	if first := b.edge.told[0]; len(first.Secrets) != 1 {
		t.Errorf("control: the claim told of %d secrets", len(first.Secrets))
	}
	if last := b.edge.last(t); len(last.Secrets) != 0 || len(last.Rules) != 0 {
		t.Errorf("a secret that was removed is in the guest: %v", words(last.Rules))
	}
}

// The same of a guest that is started and has no egress process yet.
func TestSecretRemovedInAStart(t *testing.T) {
	b := newPoolBench(t)
	e := newEntry("cold", &api.Guest{Name: "cold", Spec: &api.GuestSpec{Name: "cold"}})
	b.table["cold"] = e
	e.rules.Lock() // as start does
	over := make(chan struct{})
	go func() {
		defer close(over)
		b.secretChanged(context.Background(), "anthropic")
	}()
	waited := waits(over)
	e.mu.Lock()
	e.edge = &edge{own: b.edge, close: func() {}}
	e.mu.Unlock()
	e.rules.Unlock()
	<-over
	if !waited || len(b.edge.told) != 1 { // the warm guest is told nothing
		t.Errorf("waited for the start: %v; told %d times", waited, len(b.edge.told))
	}
}

// A guest gets its shares in the order in which they were granted: one inside
// another would be covered by it.
func TestClaimMountsInOrder(t *testing.T) {
	b := newPoolBench(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b.opts.Share = []string{self, "share"}
	ln, err := net.Listen("unixpacket", guest.ShareSocketPath(b.opts.Place.Run, b.e.name))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p, err := packet.From(c.(*net.UnixConn))
			if err != nil {
				t.Error(err)
				return
			}
			if _, f, err := p.Receive(); err != nil || f == nil {
				t.Errorf("no share was handed over: %v", err)
			} else {
				f.Close()
			}
			p.Send([]byte("{}"), nil)
			p.Close()
		}
	}()
	var want []string
	g, cold := b.ask(t, func(s *api.GuestSpec) {
		host, in := t.TempDir(), "/src"
		for range 7 {
			host, in = filepath.Join(host, "a"), in+"/a"
			if err := os.Mkdir(host, 0o700); err != nil {
				t.Fatal(err)
			}
			s.Shares = append(s.Shares, &api.Share{Path: host, GuestPath: in, Mode: api.ShareMode_SHARE_MODE_RO})
			want = append(want, in)
		}
	})
	if g == nil {
		t.Fatalf("no claim: %s", cold)
	}
	if !slices.Equal(b.k.mounted, want) {
		t.Errorf("mounted: %q", b.k.mounted)
	}
}

// A guest that is somebody's has the record of its start, whenever the daemon dies.
func TestClaimIsRecordedFirst(t *testing.T) {
	b := newPoolBench(t)
	spec := filepath.Join(b.dir(b.e), "guest.json")
	if _, err := os.Lstat(spec); err != nil {
		t.Fatal(err)
	}
	b.k.claim = func() error { return os.Remove(spec) } // so that it cannot be written down
	started, end := false, b.k.stopped
	b.k.stopped = func() {
		err := audit.Show(b.auditDir(b.e.name), 0, func(line []byte) error {
			started = started || bytes.Contains(line, []byte(`"guest.started"`))
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		end()
	}
	if g, cold := b.ask(t, func(*api.GuestSpec) {}); g != nil || cold != "the claim failed" {
		t.Fatalf("%v %s", g, cold)
	}
	b.owned.Wait()
	if !started {
		t.Error("the guest could have been somebody's without that record")
	}
}

// A guest that the pool would make otherwise by now is given up by the first
// request that it is not for. The control is a request that it does not fit.
func TestStalePool(t *testing.T) {
	for _, c := range []struct {
		what, cold string
		change     func(*poolBench, *api.GuestSpec)
		stale      bool
	}{
		{"control", "other memory", func(_ *poolBench, s *api.GuestSpec) { s.MemoryMib = 256 }, false},
		{"image", "the image was made anew", func(b *poolBench, _ *api.GuestSpec) { b.e.warm.parts = "others" }, true},
		{"walls", "another boundary", func(b *poolBench, _ *api.GuestSpec) { b.e.warm.walls = []string{"other"} }, true},
		{"the pool's image", "another image", func(b *poolBench, _ *api.GuestSpec) { b.e.info.Spec.Image = "older" }, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			b := newPoolBench(t)
			g, cold := b.ask(t, func(s *api.GuestSpec) { c.change(b, s) })
			if g != nil || cold != c.cold {
				t.Fatalf("%v, %q", g, cold)
			}
			b.owned.Wait()
			if gone := b.table[b.e.name] == nil; gone != c.stale {
				t.Errorf("given up: %v", gone)
			}
		})
	}
}

// A claim that fails while the daemon ends has its guest end all the same.
func TestFailedClaimEndsInADaemonsEnd(t *testing.T) {
	b := newPoolBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	b.ctx = ctx
	stopped := false
	end := b.k.stopped
	b.k.stopped = func() { stopped = true; end() }
	b.k.claim = func() error { cancel(); return context.Canceled }
	b.ask(t, func(*api.GuestSpec) {})
	b.owned.Wait()
	if !stopped {
		t.Error("nobody has ended it")
	}
	select {
	case <-b.e.warm.gone:
	default:
		t.Error("who empties the pool waits for ever")
	}
	if !b.e.warm.left {
		t.Error("who empties the pool does not wait for it")
	}
}

// A guest that boots is not waited for if it will not be what is asked for.
func TestClaimWaitsForNoOther(t *testing.T) {
	b := newPoolBench(t)
	b.e.warm.made = make(chan struct{})
	if g, cold := b.ask(t, func(s *api.GuestSpec) { s.MemoryMib = 256 }); g != nil || cold != "other memory" {
		t.Errorf("%v %q", g, cold)
	}
	over := make(chan struct{})
	go func() { // the control waits
		defer close(over)
		if g, cold := b.ask(t, func(*api.GuestSpec) {}); g == nil {
			t.Errorf("control: %q", cold)
		}
	}()
	close(b.e.warm.made)
	<-over
}

// Without egress processes there is no pool.
func TestNoPoolWithoutEdge(t *testing.T) {
	b := newPoolBench(t)
	b.opts.Edge = nil
	if want, err := b.wanted(); err != nil || want.Size != 0 {
		t.Errorf("%+v %v", want, err)
	}
}

// A guest of the pool that does not start is not tried again by itself. The control
// is the next occasion, at which it is.
func TestRefillDoesNotLoop(t *testing.T) {
	b := newPoolBench(t)
	delete(b.table, b.e.name)
	var said bytes.Buffer
	b.opts.Link = func() (*os.File, *os.File, error) { return nil, nil, errors.New("no guest starts here") }
	b.log = slog.New(slog.NewTextHandler(&said, nil))
	for want, whole := range []bool{false, true, true} {
		b.recovered = whole
		b.refill()
		b.owned.Wait()
		if n := strings.Count(said.String(), "does not start"); n != want || len(b.table) != 0 {
			t.Fatalf("tried %d times after %d occasions: %s", n, want, said.String())
		}
	}
}

// Of several guests of the pool the one is claimed that has been ready for longest,
// and one that still boots only when there is no other.
func TestClaimsTheOldest(t *testing.T) {
	d := newDaemon(t)
	d.table = map[string]*entry{}
	pool := policy.Pool{Size: 3}
	put := func(name string, since time.Time) {
		e := newEntry(name, &api.Guest{Name: name})
		e.warm = &warm{pool: pool, made: make(chan struct{}), since: since}
		if !since.IsZero() {
			close(e.warm.made)
		}
		d.table[name] = e
	}
	now := time.Now()
	put("boots", time.Time{})
	put("young", now)
	put("old", now.Add(-time.Minute))
	for _, want := range []string{"old", "young", "boots"} {
		if e := d.takeWarm(pool); e == nil || e.name != want {
			t.Errorf("%v was taken instead of %s", e, want)
		}
	}
	if e := d.takeWarm(pool); e != nil {
		t.Errorf("%s was taken twice", e.name)
	}
}

// Who says nothing of the boundary gets the strongest that works, and so a guest of a
// pool that has it. One of a weaker wall is for who asked for that.
func TestClaimOfTheStrongest(t *testing.T) {
	for _, c := range []struct{ pool, asked, cold string }{
		{"vm", "", ""},
		{"vm", "vm", ""},
		{"vm", "process", "another boundary"},
		{"process", "", "another boundary"},
		{"process", "process", ""},
	} {
		b := newPoolBench(t)
		b.e.info.Spec.Boundary, b.e.warm.pool.Boundary, b.e.warm.walls = c.pool, c.pool, []string{c.pool}
		policyOf := filepath.Join(b.opts.Place.Config, policyFile)
		if err := os.WriteFile(policyOf, fmt.Appendf(nil, "version: 1\npool: {size: 1, memory: 128MiB, disk: 64MiB, boundary: %s}\n", c.pool), 0o600); err != nil {
			t.Fatal(err)
		}
		g, cold := b.ask(t, func(s *api.GuestSpec) { s.Boundary = c.asked })
		if cold != c.cold || g != nil && g.Spec.Boundary != c.pool {
			t.Errorf("a pool of %s, asked for %q: %v, %q", c.pool, c.asked, g, cold)
		}
	}
}
