package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/gofrs/flock"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/audit"
	"github.com/carrel-vm/carrel/guest/policy"
)

// usualAbsence is how long an ephemeral guest waits for its caller to come back, if
// its KeepOptions say nothing else.
const usualAbsence = 30 * time.Second

// Keeper keeps one guest and serves it to the daemon.
//
//	starting ──> ready ──> stopping ──> stopped (the process ends)
//	    └────────── failure ──┴────────────┘
type Keeper struct {
	apiconnect.UnimplementedKeeperServiceHandler // until every method is written

	req  KeepRequest
	opts KeepOptions
	dir  string
	log  *slog.Logger

	journal *journal
	audit   *audit.Log
	shelf   *shelf

	rest *rest
	idle chan struct{} // closed when nobody has wanted anything for too long

	mu       sync.Mutex
	g        *Guest // nil until the guest is ready
	ready    bool   // it was, if only for a moment
	outside  *outside
	shares   *shares
	info     *api.Guest
	changed  chan struct{} // closed and replaced at every change of info
	tasks    map[string]*task
	trace    *Trace
	order    []string
	keys     map[string]Keyed
	main     string            // an ephemeral guest's first task
	callers  int               // attached callers
	watchers int               // of the guest
	warm     bool              // nobody's yet: it runs no task
	claiming bool              // it is about to be somebody's
	claimed  bool              // it is, and its folder may not say so yet
	granted  []*api.EgressRule // when it started
	away     *time.Timer
	finished chan struct{} // closed when an ephemeral guest is to end
	once     sync.Once
	done     bool // delivered
	running  sync.WaitGroup
	rewrite  sync.RWMutex // held for writing while the journal is rewritten
}

// Keep runs a keeper until its guest is gone. Its error is for the log: what
// the user must know is in the journal.
func Keep(ctx context.Context, req KeepRequest, opts KeepOptions) (err error) {
	dir := req.Parts.Dir
	if opts.Wanted == nil {
		opts.Wanted = func() error { return nil }
	}
	if err := opts.Wanted(); err != nil {
		return err
	}
	unlock, ok, err := Lock(dir)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("guest %s has a keeper already", req.Spec.GetName())
	}
	defer unlock()
	if err := opts.Wanted(); err != nil {
		return err
	}
	Crash("keeper: locked")
	if hold := req.Parts.Hold; hold != "" {
		l := flock.New(hold)
		if ok, err := l.TryRLock(); err != nil || !ok {
			return fmt.Errorf("the image of guest %s is being removed, or its lock %s cannot be had: %v", req.Spec.GetName(), hold, err)
		}
		defer l.Close()
	}
	if err := writeIdentity(dir); err != nil {
		return err
	}
	j, h, err := openJournal(filepath.Join(dir, fileJournal))
	if err != nil {
		return err
	}
	defer j.close()
	l, err := audit.Open(filepath.Join(dir, dirAudit))
	if err != nil {
		return err
	}
	defer l.Close()
	loaded, _, err := Load(dir)
	if err != nil {
		return err
	}
	k := &Keeper{
		req: req, opts: opts, dir: dir, log: opts.Log, journal: j, audit: l, info: loaded, keys: h.Keys,
		warm: req.Warm, changed: make(chan struct{}), tasks: map[string]*task{}, finished: make(chan struct{}), trace: NewTrace("keeper"),
	}
	k.idle = make(chan struct{})
	k.rest = newRest(k.log, req.idle(), k.stands, func() { close(k.idle) })
	if !opts.Began.IsZero() {
		k.trace.Add("keeper begins", opts.Began, time.Now())
	}
	opened := k.trace.Begin("journal and sockets")
	for _, t := range h.Tasks {
		if !ended(t) { // the keeper before this one was killed
			interrupt(t, "the guest's keeper was killed")
			if err := j.add(taskRecord(t, "")); err != nil {
				return err
			}
		}
		old := endedTask(t, k.spoolDir(t.Id))
		old.kept = keptBytes(old.dir)
		k.tasks[t.Id] = old
		k.order = append(k.order, t.Id)
	}
	k.info.StoppedIdle = false
	k.info.State, k.info.Cause, k.info.KeeperPid = api.GuestState_GUEST_STATE_STARTING, "", int32(os.Getpid())
	k.info.Driver = opts.Driver.Name()
	if err := j.add(&record{Guest: &guestRecord{State: "starting", Idle: req.Wake}}); err != nil {
		return err
	}

	ln, err := ListenPrivate(req.Socket)
	if err != nil {
		return err
	}
	if k.shelf, err = openShelf(shareSocketPath(req.Socket), opts.Share); err != nil {
		ln.Close()
		return err
	}
	defer k.shelf.close()
	mux := http.NewServeMux()
	limit := connect.WithHandlerOptions(connect.WithReadMaxBytes(2<<20), connect.WithCompressMinBytes(1<<30))
	mux.Handle(apiconnect.NewTaskServiceHandler(k, limit))
	mux.Handle(apiconnect.NewFileServiceHandler(keeperFiles{k: k}, limit))
	mux.Handle(apiconnect.NewKeeperServiceHandler(k, limit))
	srv := NewServer(api.Socket_SOCKET_KEEPER, mux)
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve(ln) }()
	defer func() {
		sctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if srv.Shutdown(sctx) != nil {
			srv.Close()
		}
		<-served
		os.Remove(req.Socket)
	}()
	Crash("keeper: before its word")
	opts.Listening()
	opened()
	Crash("keeper: after its word")

	cause := k.keep(ctx)
	Crash("keeper: before gone")
	k.mu.Lock()
	// One that broke while it was stopped is not started again by itself.
	k.info.StoppedIdle = k.info.StoppedIdle && cause == "" || req.Wake && !k.ready
	rec := &guestRecord{State: "gone", Cause: cause, Delivered: k.done, Idle: k.info.StoppedIdle}
	k.mu.Unlock()
	jerr := j.add(&record{Guest: rec})
	k.update(func(i *api.Guest) {
		i.State, i.Cause = api.GuestState_GUEST_STATE_STOPPED, cause
		i.KeeperPid = 0
	})
	Crash("keeper: after gone")
	k.log.Info("ended", "cause", cause)
	k.say("guest.ended", map[string]any{"cause": cause})
	if err := l.Sync(); err != nil {
		k.log.Error("audit", "error", err)
	}
	return jerr
}

// keep starts the guest and stays until it is gone; it returns why, if that was
// not in order.
func (k *Keeper) keep(ctx context.Context) string {
	began := time.Now()
	grant, err := policy.Decide(k.req.Spec, k.req.Rules)
	if err == nil && !slices.Equal(grant.Pins(), k.req.Pins) {
		err = errors.New("a shared folder was replaced by another while the guest started (choose it again)")
	}
	if err != nil {
		return "not granted: " + err.Error()
	}
	unlock, err := lockVolumes(k.req.Parts, grant)
	if err != nil {
		return err.Error()
	}
	defer unlock()
	con, err := openConsole(filepath.Join(k.dir, "console.log"))
	if err != nil {
		return err.Error()
	}
	defer con.close()
	var out *outside
	if k.opts.Link != nil {
		out = newOutside(k.opts.Link, k.log, k.tell, k.rest)
		defer out.close()
	}
	shared := newShares(k.sharings(grant), k.opts.Share, k.log, k.shareChanged)
	defer shared.close()
	shared.trace = k.trace
	k.mu.Lock()
	k.outside, k.shares, k.granted = out, shared, grant.EgressRules()
	k.mu.Unlock()
	env, err := k.guestEnv()
	if err != nil {
		return err.Error()
	}
	g, err := Start(ctx, Options{
		Grant: grant, Parts: k.req.Parts, Driver: k.opts.Driver, Shares: shared, Console: con, Log: k.log,
		Outside: out, Env: env, GitHosts: gitHosts(grant.EgressRules()), Trace: k.trace, Rest: k.rest, Confine: k.opts.Confine,
	})
	if err != nil {
		k.log.Error("start", "error", err)
		return err.Error()
	}
	defer g.Close()
	Crash("keeper: before ready")
	if err := k.journal.add(&record{Guest: &guestRecord{State: "ready"}}); err != nil {
		return err.Error()
	}
	Crash("keeper: after ready")
	out.lead(g)
	k.mu.Lock()
	k.g, k.ready = g, true
	if k.req.Spec.Ephemeral {
		k.away = time.AfterFunc(k.absence(), k.finish)
		if k.warm && k.watchers > 0 {
			k.away.Stop()
		}
	}
	k.mu.Unlock()
	k.update(func(i *api.Guest) {
		i.State, i.Started = api.GuestState_GUEST_STATE_READY, timestamppb.New(g.Ready)
		i.Timings = &api.Timings{
			KeeperNanos: int64(g.Ran.Sub(began)), BootNanos: int64(g.Greeted.Sub(g.Ran)), SetupNanos: int64(g.Ready.Sub(g.Greeted)),
			GuestUpNanos: g.Hello.UpNanos, GuestInitNanos: g.Hello.InitNanos,
		}
		i.Steering = g.Steering
		i.Shares = shared.shown()
		k.opts.Describe(i)
	})

	k.rest.begin(g)

	k.stay(ctx, g, out)
	k.update(func(i *api.Guest) { i.State, i.Paused = api.GuestState_GUEST_STATE_STOPPING, nil })
	closed := k.trace.Begin("machine gone")
	if err := g.Close(); err != nil {
		k.log.Error("close", "error", err)
	}
	closed()
	k.running.Wait()
	k.mu.Lock()
	k.g = nil
	if k.away != nil {
		k.away.Stop()
	}
	k.mu.Unlock()
	return g.Cause()
}

// sharings are the shares of a grant, not served yet.
func (k *Keeper) sharings(grant *policy.Grant) []*sharing {
	var list []*sharing
	pins := grant.Pins()
	for i, s := range grant.Spec().Shares {
		list = append(list, &sharing{share: s, spec: ShareSpec{
			Tag: fmt.Sprintf("share%d", i), Path: s.Path, Dev: pins[i].Dev, Ino: pins[i].Ino, Owner: k.opts.ShareOwner,
			Store: ReviewDir(k.dir, grant.Layer(i)), Rules: grant.ShareRules(i),
		}})
	}
	return list
}

// ReviewDir is where a guest's folder keeps what belongs to one share.
func ReviewDir(dir, layer string) string { return filepath.Join(dir, DirReview, layer) }

// shareChanged shows watchers the shares as they are.
func (k *Keeper) shareChanged() {
	k.mu.Lock()
	s := k.shares
	k.mu.Unlock()
	if s == nil {
		return
	}
	list := s.shown()
	k.update(func(i *api.Guest) {
		if i.State == api.GuestState_GUEST_STATE_READY {
			i.Shares = list
		}
	})
}

// stay waits until the guest is gone or is to end. A guest whose egress process
// is gone stays as it is, and is said to reach nothing.
func (k *Keeper) stay(ctx context.Context, g *Guest, out *outside) {
	var shut <-chan struct{}
	if out != nil {
		shut = out.gone
	}
	for {
		select {
		case <-g.Gone():
			return
		case <-k.finished:
			// Its caller did not come back; or it has volumes, on which what it
			// wrote is to be there when another guest has them.
			k.mu.Lock()
			volumes := len(k.req.Spec.Volumes)
			k.mu.Unlock()
			switch {
			case volumes > 0:
				k.stop(g, StopBound)
			case len(k.live()) > 0:
				k.stop(g, StopGrace)
			}
			return
		case <-ctx.Done():
			k.stop(g, StopGrace)
			return
		case <-k.idle:
			k.update(func(i *api.Guest) {
				i.State, i.Paused, i.StoppedIdle = api.GuestState_GUEST_STATE_STOPPING, nil, true
			})
			k.say("guest.idle", map[string]any{"then": "stop"})
			k.stop(g, StopBound)
			return
		case <-shut:
			shut = nil
			k.update(func(i *api.Guest) { i.Steering = NoWayOut })
		}
	}
}

// say adds to the guest's audit log. A log that cannot be written is said and
// holds nothing up: what is recorded has happened.
func (k *Keeper) say(kind string, fields map[string]any) {
	if err := k.audit.Append(kind, fields); err != nil {
		k.log.Error("audit", "record", kind, "error", err)
	}
}

func (k *Keeper) absence() time.Duration { return cmp.Or(k.opts.Absence, usualAbsence) }

// finish ends an ephemeral guest.
func (k *Keeper) finish() { k.once.Do(func() { close(k.finished) }) }

func (k *Keeper) spoolDir(id string) string { return filepath.Join(k.dir, dirTasks, id) }
