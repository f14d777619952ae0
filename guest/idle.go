package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
)

// Bounds of what a driver may take to let a guest stand still, or go on. QEMU writes
// down first what it has of the guest's disks, however long the host's disk takes for
// it, and goes on only after that: what was late for the one is waited for by the other.
const (
	pauseBound  = 15 * time.Second
	resumeBound = 30 * time.Second
)

// StopResume is how much longer than StopBound the stop of a guest takes at most that
// stands still, or is about to: it goes on first.
const StopResume = pauseBound + resumeBound

// rest lets a guest's processors stand still while nobody wants anything from it,
// and says when nobody has for so long that it is to be stopped. Whoever wants
// something holds it meanwhile. Nothing is polled: one timer runs, and only while
// nobody holds the guest.
//
//	running ── idle.pause without a hold ──> pausing ──> paused
//	   ↑                                        │          │ hold, leave
//	   └──────────────── resuming <─────────────┴──────────┘
//
//	running, paused ── idle.stop without a hold ──> leaving: nobody gets hold any more
//
// One mutex orders all of it. What is accepted with a hold is not paused, nor
// stopped for idleness, before the hold ends; what comes while the guest pauses
// waits until it has, and has it go on at once.
type rest struct {
	log *slog.Logger
	// told is called, one call at a time, when the guest begins to stand still, and
	// with a zero time before it is used again.
	told func(since time.Time)
	over func() // called once: nobody has wanted anything for idle.stop

	mu    sync.Mutex
	after policy.Idle
	m     machine // nil until the guest is ready
	holds int
	ports int // of the host, that lead into the guest
	state restState
	// leaving: it is being stopped. gone: it has ended.
	leaving, gone bool
	idle          time.Time // since when nobody holds it
	timer         *time.Timer
	armed         int           // which timer counts
	turned        chan struct{} // closed when a pause or a resume is done; nil: none is under way
	turns         sync.WaitGroup
}

// machine is what rest needs of a guest.
type machine interface {
	pause(context.Context) error
	// resume returns when the guest runs and knows the time.
	resume(context.Context) error
	// lost ends a guest that does not go on.
	lost(error)
}

type restState int

const (
	running restState = iota
	pausing
	paused
	resuming
)

func newRest(log *slog.Logger, after policy.Idle, told func(time.Time), over func()) *rest {
	return &rest{log: log, after: after, told: told, over: over}
}

// begin counts from now on how long the guest is idle.
func (r *rest) begin(m machine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.m = m
	r.armLocked()
}

// set replaces what is done after how long.
func (r *rest) set(after policy.Idle) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.after = after
	if r.state == running {
		r.armLocked()
	}
}

// published says how many ports of the host lead into the guest.
func (r *rest) published(n int) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ports = n
	if r.state == running || r.state == paused {
		r.armLocked()
	}
}

// hold keeps the guest from being paused until end is called. It waits for nothing:
// one that stands still begins to go on. ok is false of a guest that ends.
func (r *rest) hold() (end func(), ok bool) {
	if r == nil {
		return func() {}, true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaving || r.gone {
		return func() {}, false
	}
	r.holds++
	r.disarmLocked()
	if r.state == paused {
		r.turnLocked(resuming)
	}
	return sync.OnceFunc(r.release), true
}

func (r *rest) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holds--; r.holds == 0 && r.state == running {
		r.armLocked()
	}
}

// use is a hold on a guest that runs.
func (r *rest) use(ctx context.Context) (end func(), err error) {
	end, ok := r.hold()
	if !ok {
		return nil, errLeaving
	}
	if err := r.awake(ctx); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

var errLeaving = errors.New("the guest is being stopped")

// awake returns when the guest that the caller holds runs, or has ended.
func (r *rest) awake(ctx context.Context) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	turned := r.turned
	r.mu.Unlock()
	if turned == nil {
		return nil
	}
	select {
	case <-turned: // which it is when the guest runs: somebody holds it
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// runs is a hold on a guest that runs already, or is about to; ok is false of one
// that stands still, and that nobody has to let go on for this.
func (r *rest) runs() (end func(), ok bool) {
	if r == nil {
		return func() {}, true
	}
	r.mu.Lock()
	still := r.state == paused || r.state == pausing
	r.mu.Unlock()
	if still { // it may be about to go on, and is told the time then
		return nil, false
	}
	end, err := r.use(context.Background())
	return end, err == nil
}

// leave lets the guest go on for the last time, since it is to be stopped, and
// returns when it runs, or after StopResume. Nobody gets hold of it any more.
func (r *rest) leave() {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.leaving = true
	r.disarmLocked()
	if r.state == paused {
		r.turnLocked(resuming)
	}
	r.mu.Unlock()
	// It is told the time, too, which one that does not answer has longer for.
	ctx, cancel := context.WithTimeout(context.Background(), StopResume)
	defer cancel()
	r.awake(ctx)
}

// end is for a guest that is gone.
func (r *rest) end() {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.gone = true
	r.disarmLocked()
	r.mu.Unlock()
	r.turns.Wait()
}

func (r *rest) disarmLocked() {
	r.armed++
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

// armLocked begins to count, if nobody holds the guest.
func (r *rest) armLocked() {
	r.disarmLocked()
	if r.holds > 0 || r.leaving || r.gone || r.m == nil {
		return
	}
	if r.state == running {
		r.idle = time.Now()
	}
	next := r.after.Stop
	if r.ports > 0 { // who connects to one could not start it again
		next = 0
	}
	if r.state == running && r.after.Pause > 0 {
		next = r.after.Pause
	}
	if next == 0 {
		return
	}
	n := r.armed
	r.timer = time.AfterFunc(next-time.Since(r.idle), func() { r.due(n) })
}

// due is what the timer calls.
func (r *rest) due(n int) {
	r.mu.Lock()
	if n != r.armed { // it was stopped too late
		r.mu.Unlock()
		return
	}
	if r.state == running && r.after.Pause > 0 {
		r.turnLocked(pausing)
		r.mu.Unlock()
		return
	}
	r.leaving = true
	idle := time.Since(r.idle)
	r.mu.Unlock()
	r.log.Info("idle", "for", idle.Round(time.Second), "then", "stop")
	r.over()
}

// turnLocked begins a pause or a resume. None is under way.
func (r *rest) turnLocked(to restState) {
	if r.gone {
		return
	}
	r.state, r.turned = to, make(chan struct{})
	r.turns.Go(r.turn)
}

// turn goes on until the guest is as it is wanted.
func (r *rest) turn() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.state == pausing || r.state == resuming {
		m, state := r.m, r.state
		r.mu.Unlock()
		var err error
		if state == pausing {
			err = r.still(m)
		} else {
			err = r.onward(m)
		}
		r.mu.Lock()
		switch {
		case state == resuming:
			r.state = running
			r.armLocked()
		case err != nil: // it may stand still or not: it is told to go on
			if !errors.Is(err, hypervisor.ErrGone) {
				r.log.Warn("the guest cannot be paused, which is not tried again", "error", err)
			}
			r.after.Pause = 0
			r.state = resuming
		case r.holds > 0 || r.leaving || r.gone:
			r.state = resuming
		default:
			r.state = paused
			r.armLocked()
		}
	}
	close(r.turned)
	r.turned = nil
}

func (r *rest) still(m machine) error {
	ctx, cancel := context.WithTimeout(context.Background(), pauseBound)
	defer cancel()
	if err := m.pause(ctx); err != nil {
		return err
	}
	r.log.Info("paused")
	r.told(time.Now())
	return nil
}

func (r *rest) onward(m machine) error {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), resumeBound)
	defer cancel()
	if err := m.resume(ctx); err != nil {
		if errors.Is(err, hypervisor.ErrGone) {
			return err
		}
		m.lost(fmt.Errorf("the guest stood still, since nobody wanted anything from it, and does not go on: %w", err))
		return err
	}
	r.log.Info("resumed", "took", time.Since(begun))
	r.told(time.Time{})
	return nil
}

// pause implements machine.
func (g *Guest) pause(ctx context.Context) error { return g.vm.Pause(ctx) }

// resume implements machine.
func (g *Guest) resume(ctx context.Context) error {
	if err := g.vm.Resume(ctx); err != nil {
		return err
	}
	g.clock.tell(true) // it stood still, too
	return nil
}

// lost implements machine.
func (g *Guest) lost(err error) {
	g.fail(err.Error())
	g.vm.Kill()
}

// warmRest is after how long a guest of the pool stands still, whatever the policy
// says: when it has done what it does after its boot, and given back what it freed.
const warmRest = 10 * time.Second

// idle says what becomes of a guest that is idle when it starts.
func (r *KeepRequest) idle() policy.Idle {
	if r.Warm { // nobody wants anything from it before its claim, which lets it go on
		return policy.Idle{Pause: warmRest}
	}
	return idleOf(r.Spec, r.Rules)
}

// idleOf says what becomes of a guest that is idle and somebody's. One that is to end
// with its task does so. One without a disk would lose what it wrote if it was stopped
// unasked.
func idleOf(spec *api.GuestSpec, rules policy.Rules) policy.Idle {
	after := rules.Idle
	if spec.GetEphemeral() {
		return policy.Idle{}
	}
	if spec.GetDiskMib() == 0 {
		after.Stop = 0
	}
	return after
}

// stands shows watchers that the guest stands still since then, or goes on.
func (k *Keeper) stands(since time.Time) {
	k.update(func(i *api.Guest) {
		if i.Paused = nil; !since.IsZero() && i.State == api.GuestState_GUEST_STATE_READY {
			i.Paused = timestamppb.New(since)
		}
	})
}

// leaving is the answer to a request that came when the guest was about to stop. It
// is the only one that is Unavailable and has a word: nothing of it was begun, and
// the daemon may make it again.
func (k *Keeper) leaving() error {
	return api.NewError(connect.CodeUnavailable, "not_running", "guest "+k.info.Name+" is not running", "carrel start "+k.info.Name)
}
