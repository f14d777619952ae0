// Package daemon serves the API of one user's guests: it keeps the table of
// guests, asks policy, and starts and adopts keepers. It never parses a byte
// that a guest wrote, and may be killed at any instant: starting is recovering.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/gofrs/flock"
	"golang.org/x/sync/singleflight"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/daemon/store"
	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/secret"
	"github.com/carrel-vm/carrel/images"
)

// ErrRunning means that another daemon serves these folders.
var ErrRunning = errors.New("another daemon is running")

// Options are what a daemon is made from.
type Options struct {
	Place  place.Place
	Rules  policy.Rules
	Images *images.Store
	// Parts finds and verifies an image's parts for one start. They stay until
	// release is called.
	Parts func(ctx context.Context, image string) (parts policy.Parts, release func(), err error)
	// Keeper is the command that runs a keeper; its request comes on
	// descriptor 3, its first word on 4, and 5 leads to its egress process.
	Keeper []string
	// Edge is the command that runs an egress process; its request comes on
	// descriptor 3, 4 leads to its keeper, its first word on 5. Empty: no guest
	// of this host reaches anything, and one that is to is refused.
	Edge []string
	// Review is the command that runs a review process; its request comes on
	// descriptor 3, its answers go to 4. Empty: nothing can be reviewed.
	Review []string
	// Share is the command that runs a share process for a guest that runs
	// already; empty: no guest of this host has shares. ShareOwner is who owns
	// what is in a share, as a guest sees it.
	Share      []string
	ShareOwner uint32
	// Link makes what the two have between them.
	Link func() (keeper, edge *inherit.End, err error)
	// Agent is the path of the static carrel-agent that image build uses.
	Agent string
	// Driver is the driver's name, and Doctor looks at what it needs.
	Driver string
	Doctor func(ctx context.Context, found func(*api.Finding))
	// Memory says how much memory the host has available, and in all, in bytes;
	// Touched how much of a guest's is there, by its keeper's process. nil:
	// place.Memory and place.Touched.
	Memory  func() (available, total int64, err error)
	Touched func(pid int) int64
	// Version is the build, for people and for the check of skew.
	Version *api.VersionResponse
	Log     *slog.Logger
}

// Daemon is the table of guests behind the socket.
type Daemon struct {
	opts    Options
	log     *slog.Logger
	guests  string // <state>/guests
	started time.Time
	secrets *secret.Store
	index   *store.Store // nil when the disk was full at the start

	policyMu sync.Mutex // held while a file in the config folder is changed
	volumeMu sync.Mutex // held while a volume comes or goes

	starts queue        // of guests
	late   atomic.Int64 // calls that go on after their deadline was answered for
	rest   rest

	admitting sync.Mutex      // taken before mu
	promised  map[*entry]bool // guests that start, and were promised their memory; admitting guards it

	ctx context.Context // ends with the daemon; what follows keepers runs under it

	events *events
	source *source // of the events

	telemetry *exporter // of both logs; nil in tests

	mu        sync.Mutex
	table     map[string]*entry
	past      []*entry // removed a moment ago, the last first
	closing   bool
	recovered bool                     // the table has every guest that is on the disk
	keys      map[string]chan struct{} // idempotency keys of requests on their way
	stop      chan struct{}            // closed by Shutdown
	stopped   sync.Once
	slow      sync.Once
	waking    singleflight.Group // starts of guests that were stopped for idleness, by name
	noPool    sync.Once
	owned     sync.WaitGroup // goroutines that follow keepers
}

// maxGuests bounds the table.
const maxGuests = policy.MaxGuests

// Run serves until ctx ends or a client shuts it down; guests go on. ready is
// called once when the socket takes connections.
func Run(ctx context.Context, o Options, ready func()) error {
	d := &Daemon{opts: o, log: o.Log, guests: filepath.Join(o.Place.State, "guests"), started: time.Now(), table: map[string]*entry{}, keys: map[string]chan struct{}{}, stop: make(chan struct{})}
	for _, dir := range []string{o.Place.State, o.Place.Config, o.Place.Cache, o.Place.Run, d.guests, volumesIn(o.Place.State)} {
		if err := place.MakePrivate(dir); err != nil {
			return err
		}
	}
	var err error
	if d.secrets, err = secret.Open(secret.Options{Dir: o.Place.Config, Kind: os.Getenv("CARREL_SECRET_STORE")}); err != nil {
		return err
	}
	lock := flock.New(filepath.Join(o.Place.Run, "d.lock"), flock.SetPermissions(0o600))
	ok, err := lock.TryLock()
	if err != nil {
		return fmt.Errorf("lock %s: %w", lock.Path(), err)
	}
	if !ok {
		return ErrRunning
	}
	defer lock.Close()
	if err := d.openIndex(); err != nil {
		return err
	}
	defer d.index.Close()

	rctx, cancel := context.WithCancel(context.Background())
	defer d.owned.Wait()
	defer cancel()
	d.ctx = rctx
	d.events = newEvents(d.eventLog())
	d.source = newSource(d, d.events)
	d.telemetry = newExporter(d)
	d.events.seen = d.telemetry.tally.seen
	if err := d.recover(rctx); err != nil {
		return err
	}
	d.owned.Go(func() { d.source.run(rctx) })
	d.telemetry.read()
	d.mu.Lock()
	d.recovered = true
	d.mu.Unlock()
	d.refill()
	ln, err := guest.ListenPrivate(o.Place.Socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	// Nothing is compressed on a socket that stays on this machine.
	limit := connect.WithHandlerOptions(connect.WithReadMaxBytes(maxRequest), connect.WithCompressMinBytes(1<<30), connect.WithInterceptors(around{d}))
	mux.Handle(apiconnect.NewGuestServiceHandler(&guestService{d}, limit))
	mux.Handle(apiconnect.NewTaskServiceHandler(&taskService{d}, limit, api.Pieces()))
	mux.Handle(apiconnect.NewFileServiceHandler(&fileService{d}, limit))
	mux.Handle(apiconnect.NewShareServiceHandler(&shareService{d}, limit))
	reviews, review := apiconnect.NewReviewServiceHandler(&reviewService{d}, limit, connect.WithReadMaxBytes(8<<20)) // all that a review can have was seen
	mux.Handle(reviews, together(review, apiconnect.ReviewServiceDiffProcedure))
	mux.Handle(apiconnect.NewDiskServiceHandler(&diskService{d}, limit))
	mux.Handle(apiconnect.NewEgressServiceHandler(&egressService{d}, limit))
	mux.Handle(apiconnect.NewPolicyServiceHandler(&policyService{d}, limit))
	mux.Handle(apiconnect.NewSecretServiceHandler(&secretService{d}, limit))
	mux.Handle(apiconnect.NewAuditServiceHandler(&auditService{d}, limit))
	mux.Handle(apiconnect.NewImageServiceHandler(&imageService{d}, limit))
	mux.Handle(apiconnect.NewEventServiceHandler(&eventService{d}, limit))
	mux.Handle(apiconnect.NewSystemServiceHandler(&systemService{d}, limit))
	srv := guest.NewServer(api.Socket_SOCKET_DAEMON, mux)
	srv.ConnContext = withCaller
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	ready()
	d.rest.moved()
	defer d.rest.end()
	d.log.Info("serving", "socket", o.Place.Socket, "guests", len(d.table))

	select {
	case err = <-served:
	case <-ctx.Done():
	case <-d.stop:
	}
	d.mu.Lock()
	d.closing = true
	d.mu.Unlock()
	close(d.events.over)
	d.starts.close()
	for _, e := range d.entries() {
		e.places.close()
	}
	d.emptyPool()
	sctx, scancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer scancel()
	if srv.Shutdown(sctx) != nil {
		srv.Close()
	}
	os.Remove(o.Place.Socket)
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// recover brings the table up from the disk: it removes what a crash left half
// made, gives interrupted tasks their ending, and adopts keepers that run.
func (d *Daemon) recover(ctx context.Context) error {
	if err := d.tidyVolumes(); err != nil {
		d.log.Warn("clean up volumes", "error", err)
	}
	es, err := os.ReadDir(d.guests)
	if err != nil {
		return fmt.Errorf("read the guests: %w (repair or move away %s)", err, d.guests)
	}
	for _, f := range es {
		name := f.Name()
		dir := filepath.Join(d.guests, name)
		if name[0] == '.' {
			if err := os.RemoveAll(dir); err != nil {
				d.log.Warn("clean up", "dir", name, "error", err)
			}
			continue
		}
		if err := d.adopt(ctx, name, dir); err != nil {
			// One damaged guest is set aside; the rest go on.
			d.log.Error("damaged guest", "guest", name, "error", err)
			e := d.newEntry(name, &api.Guest{Name: name, StateDir: dir, State: api.GuestState_GUEST_STATE_DAMAGED,
				Cause: err.Error() + " (look into the folder, or: carrel rm --force " + name + ")"})
			d.table[name] = e
		}
	}
	d.missing(ctx)
	return nil
}

// reread looks again at a guest that was set aside, whose disk may only have been
// full when its end was to be written.
func (d *Daemon) reread(ctx context.Context, e *entry) error {
	dir := d.dir(e)
	unlock, free, err := guest.Lock(dir)
	if err != nil || !free {
		return errors.Join(err, guest.ErrDamaged)
	}
	defer unlock()
	if err := guest.Settle(dir, "the guest's keeper was killed"); err != nil {
		return err
	}
	info, hist, err := guest.Load(dir)
	if err != nil {
		return err
	}
	kept, err := loadKept(dir)
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.by, e.kept = hist.By, kept
	e.mu.Unlock()
	e.set(info)
	d.settled(ctx, info)
	d.log.Info("a guest that was set aside is sound again", "guest", e.name)
	return nil
}

// adopt takes one guest's folder into the table.
func (d *Daemon) adopt(ctx context.Context, name, dir string) error {
	info, hist, err := guest.Load(dir)
	if err != nil {
		return err
	}
	e := d.newEntry(name, info)
	if e.by = hist.By; e.by.Warm {
		d.unclaimed(ctx, e)
		return nil
	}
	if e.kept, err = loadKept(dir); err != nil {
		return err
	}
	unlock, free, err := guest.Lock(dir)
	if err != nil {
		return err
	}
	if free {
		err := guest.Settle(dir, "the guest's keeper was killed")
		d.removeSockets(name)
		d.dropPorts(name)
		unlock()
		if err != nil {
			return err
		}
		info, hist, err := guest.Load(dir)
		if err != nil {
			return err
		}
		e.set(info)
		d.table[name] = e
		d.learned(ctx, info, hist)
		d.settled(ctx, info)
		d.owned.Go(func() {
			d.recoverLeft(ctx, e)
			d.leave(ctx, e, hist.Delivered())
		})
		return nil
	}
	d.learned(ctx, info, hist)
	// A keeper has it. The policy is applied again before it is ours.
	info.State = api.GuestState_GUEST_STATE_STARTING
	e.keeper = newKeeper(guest.SocketPath(d.opts.Place.Run, name))
	e.edge, e.ports = d.edgeAt(guest.EdgeSocketPath(d.opts.Place.Run, name)), d.loadPorts(e)
	d.adopts(e, hist.Starting())
	d.table[name] = e
	_, refused := d.decideAgain(info.Spec)
	d.owned.Go(func() { d.follow(ctx, e) })
	d.owned.Go(func() { d.reapply(ctx, e) })
	d.owned.Go(func() { d.recoverLeft(ctx, e) })
	d.lookSoon(e)
	if refused != nil && !policyBroken(refused) {
		d.log.Warn("adopted guest is no longer allowed", "guest", name, "error", refused)
		e.setCause("no longer allowed: " + refused.Error())
		d.owned.Go(func() { d.end(ctx, e, 0) })
	}
	d.log.Info("adopted", "guest", name)
	return nil
}
