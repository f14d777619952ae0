package daemon

import (
	"context"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// entry is one guest in the table.
//
//	stopped ── start ──> followed (a keeper runs) ── its end ──> stopped
type entry struct {
	name string
	by   guest.Making // set before it is in the table, or as it is claimed
	warm *warm        // nobody's yet; Daemon.mu guards it

	rules  sync.Mutex          // held while the guest's egress rules change; taken before mu
	review *semaphore.Weighted // of readers: who looks at its changes, or applies them

	dropping sync.Mutex // held while what it is to forget is noted or told; taken before mu
	had      *keeper    // of the guest that somebody has: it has forgotten all that; dropping guards it

	places queue // to run a task: whose turn it is to get the next one

	mu      sync.Mutex
	info    *api.Guest
	keeper  *keeper       // nil when none runs
	edge    *edge         // its egress process, with the keeper
	ports   []*api.Port   // that lead into the guest, with the keeper
	shut    string        // why a guest that runs reaches nothing, or empty
	changed chan struct{} // closed and replaced at every change
	told    func()        // called at every change, with mu held; may be nil
	busy    string        // what is being done to it that excludes the rest
	resumed bool          // and is a start that the daemon before this one began
	cause   string        // why the daemon ended it
	expire  *time.Timer   // an ended ephemeral guest's removal
	left    func()        // what becomes of one that ended while it was busy; nil: nothing waits for that
	kept    kept          // why such a guest is still there
	waits   *api.ReviewSummary
	waking  context.CancelCauseFunc // of its start for whoever needs it; nil: there is none
	looking bool                    // what waits is being counted
	again   bool                    // and is to be once more

	trace  *guest.Trace // of its last start
	theirs []*api.Span  // what its keeper measured of it
	over   bool         // it has ended, and what becomes of it is settled
	cold   string       // why the pool had nothing for it
	queued time.Time    // since when it waited for its turn to start; zero: it did not
	since  int64        // nanoseconds since 1970: what its keeper did before is not its trace
}

func newEntry(name string, info *api.Guest) *entry {
	return &entry{name: name, info: info, changed: make(chan struct{}), review: semaphore.NewWeighted(readers)}
}

// newEntry is an entry whose changes are told.
func (d *Daemon) newEntry(name string, info *api.Guest) *entry {
	e := newEntry(name, info)
	e.told = func() { d.source.changed(name) }
	return e
}

func (e *entry) set(info *api.Guest) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.info = info
	e.changedLocked()
}

// heard takes what a keeper says of its guest. What the guest is made of is the
// daemon's own word: shares come and go while the keeper runs. So is that it has
// stopped: its keeper, which says so first, has its folder for a moment longer, and
// whoever saw it stopped may remove it.
func (e *entry) heard(info *api.Guest) (tasksEnded bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	tasksEnded = len(info.Tasks) < len(e.info.Tasks)
	info.Spec, info.Review, info.Kept = e.info.Spec, nil, 0
	if t := info.Timings; t != nil {
		t.Spans = guest.BoundSpans(t.Spans)
		e.theirs = t.Spans
	}
	if info.State == api.GuestState_GUEST_STATE_STOPPED {
		info.State = api.GuestState_GUEST_STATE_STOPPING
	}
	e.info = info
	e.changedLocked()
	return tasksEnded
}

func (e *entry) changedLocked() {
	close(e.changed)
	e.changed = make(chan struct{})
	if e.told != nil {
		e.told()
	}
}

func (e *entry) setCause(c string) {
	e.mu.Lock()
	e.cause = c
	e.mu.Unlock()
}

// get returns the guest as it is, its keeper if one runs, and a channel that is
// closed when that is no longer true.
func (e *entry) get() (*api.Guest, *keeper, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	info := proto.Clone(e.info).(*api.Guest)
	if e.keeper != nil && info.Steering != guest.NoWayOut { // they went with the egress process
		info.Ports = append(info.Ports, e.ports...)
	}
	if e.waits != nil {
		info.Review = proto.Clone(e.waits).(*api.ReviewSummary)
	}
	info.Kept = e.kept.Why
	return info, e.keeper, e.changed
}

// take marks the entry as busy with one thing; it fails if it is already.
func (e *entry) take(what string) error { return e.takeTo(what, nil) }

// takeTo is take for what ends with giveUp, too.
func (e *entry) takeTo(what string, giveUp context.CancelCauseFunc) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.busy != "" {
		return api.NewError(connect.CodeAborted, "busy", "guest "+e.name+" is being "+e.busy+" by somebody else", "try again when that is done")
	}
	e.busy, e.waking = what, giveUp
	return nil
}

func (e *entry) release() {
	e.mu.Lock()
	left := e.left
	e.busy, e.waking, e.resumed, e.left = "", nil, false, nil
	e.changedLocked()
	e.mu.Unlock()
	if left != nil {
		time.AfterFunc(0, left) // nobody who is done with it waits for that
	}
}

// finished waits while the daemon finishes a start of its own accord: who comes just
// after it was started anew did nothing at the same time as somebody else, and is not
// told so.
func (e *entry) finished(ctx context.Context) error {
	_, err := e.wait(ctx, func(*api.Guest, *keeper) bool { return !e.resumes() })
	return err
}

func (e *entry) resumes() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.resumed
}

// wait returns when cond holds of the guest, or with the context's error.
func (e *entry) wait(ctx context.Context, cond func(*api.Guest, *keeper) bool) (*api.Guest, error) {
	for {
		info, k, changed := e.get()
		if cond(info, k) {
			return info, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return info, ctx.Err()
		}
	}
}

// keeper is the daemon's end of one keeper's socket.
type keeper struct {
	tasks apiconnect.TaskServiceClient
	files apiconnect.FileServiceClient
	own   apiconnect.KeeperServiceClient
	close func()
}

// alive says whether the keeper answers and its guest is neither ending nor gone.
func (k *keeper) alive(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, guest.StopBound)
	defer cancel()
	st, err := k.own.Watch(ctx, connect.NewRequest(&api.WatchRequest{}))
	if err != nil {
		return false
	}
	defer st.Close()
	return st.Receive() && (st.Msg().State == api.GuestState_GUEST_STATE_READY || st.Msg().State == api.GuestState_GUEST_STATE_STARTING)
}

func newKeeper(socket string) *keeper {
	// A connection keeps room for the largest frame that came by it, and that by which a
	// guest is watched is there as long as the guest: output and files come by another.
	h, bulk := guest.NewHTTPClient(socket), guest.NewHTTPClient(socket)
	bulk.Transport.(*http.Transport).IdleConnTimeout = time.Second
	const base = "http://keeper"
	// A keeper that its guest has taken over may send what it likes: it is
	// bounded, and nothing is unpacked.
	bounds := connect.WithClientOptions(connect.WithReadMaxBytes(4<<20), connect.WithAcceptCompression("gzip", nil, nil))
	return &keeper{
		tasks: apiconnect.NewTaskServiceClient(bulk, base, bounds, api.Pieces()),
		files: apiconnect.NewFileServiceClient(bulk, base, bounds),
		own:   apiconnect.NewKeeperServiceClient(h, base, bounds),
		close: func() { h.CloseIdleConnections(); bulk.CloseIdleConnections() },
	}
}
