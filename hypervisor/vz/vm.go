package vz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Bounds of a machine's life.
const (
	// startTimeout is how long the framework may take until a machine runs.
	startTimeout = 30 * time.Second
	// stopTimeout is how long it may take to end one. After that the guest counts
	// as gone, and is when this process ends, which is its keeper's next step.
	stopTimeout = 10 * time.Second
)

// VM is one machine of the framework.
//
//	created ── Start ──> running <── Pause / Resume ──> paused
//	    └───── Close ───────┴── Kill, or its own end ──────┴──> gone
type VM struct {
	plan    Plan
	host    Host
	h       hypervisor.Handlers
	m       machine
	pipes   *pipes
	console *console
	streams *streams
	// identity is the machine's identifier, saved is the file whose state it
	// starts from, or empty.
	identity []byte
	saved    string
	// still checks that the shares' folders are those that were granted.
	still func() error
	// stopTimeout is the constant, but for tests.
	stopTimeout time.Duration

	ask    chan struct{} // closed when the machine is to end
	gone   chan struct{} // closed when it has, and everything of it
	reason error         // what Wait returns, set before

	mu      sync.Mutex
	started bool
	killed  bool // by Kill or Close
	asked   bool // ask is closed
	cause   *hypervisor.GoneError
	closed  bool
}

// newVM takes over p; m's serial port is p's.
func newVM(plan Plan, host Host, h hypervisor.Handlers, m machine, p *pipes) *VM {
	v := &VM{
		plan: plan, host: host, h: h, m: m, pipes: p, streams: newStreams(), still: func() error { return nil },
		stopTimeout: stopTimeout, ask: make(chan struct{}), gone: make(chan struct{}),
	}
	v.console = newConsole(p.ours, h.Console, func(line string) {
		v.end(&hypervisor.GoneError{Cause: "the guest ended itself", Detail: line})
	})
	return v
}

// Start implements hypervisor.VM.
func (v *VM) Start(ctx context.Context) error {
	v.mu.Lock()
	switch {
	case v.closed:
		v.mu.Unlock()
		return hypervisor.ErrGone
	case v.started:
		v.mu.Unlock()
		return &hypervisor.Error{Op: "start the machine", Err: errors.New("it was started before")}
	}
	v.started = true
	v.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("the machine did not run within %v", startTimeout))
	defer cancel()
	runs := make(chan error, 1)
	begun := time.Now()
	go v.own(runs)
	var err error
	select {
	case err = <-runs:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err == nil {
		err = v.still()
	}
	v.h.Note("machine of Virtualization.framework runs", begun)
	v.mu.Lock()
	killed := v.killed
	v.mu.Unlock()
	if err == nil && !killed {
		return nil
	}
	v.Kill()
	<-v.gone
	if killed {
		return hypervisor.ErrGone
	}
	var he *hypervisor.Error
	if errors.As(err, &he) {
		return err
	}
	return &hypervisor.Error{Op: "start the machine", Err: err, Cure: "carrel doctor"}
}

// own starts the machine and stays until it is gone: it alone decides when to
// stop it, since the framework refuses that in most states.
func (v *VM) own(runs chan<- error) {
	go v.console.drain()
	started := make(chan error, 1)
	go func() { started <- v.boot() }()
	var (
		ask      = v.ask
		state    State
		up       bool       // the framework says that it was started
		ended    State      // Stopped or Failed once it came to that
		stopping chan error // a Stop is under way
		refused  bool       // a Stop was, in this state
		late     <-chan time.Time
		failure  error // of the start
		stuck    bool
	)
	for !stuck && failure == nil && (ended == Between || started != nil) {
		select {
		case failure = <-started:
			started = nil
			if up = failure == nil; up {
				if state == Between {
					state = Running
				}
				v.streams.open(v.m)
			}
			runs <- failure
		case state = <-v.m.States():
			refused = false
			if state == Stopped || state == Failed {
				ended = state
			}
		case <-ask:
			ask = nil
			t := time.NewTimer(v.stopTimeout)
			defer t.Stop()
			late = t.C
		case err := <-stopping:
			stopping, refused = nil, err != nil
			if err == nil {
				ended = Stopped
			}
		case <-late:
			stuck = true
		}
		if ask == nil && up && ended == Between && stopping == nil && !refused && (state == Running || state == Paused) {
			stopping = make(chan error, 1)
			go func(done chan<- error) { done <- v.m.Stop() }(stopping)
		}
	}
	if started != nil {
		runs <- errors.New("the machine did not start, and could not be stopped")
	}
	v.streams.close()
	v.pipes.close()
	v.console.finish()

	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.cause != nil && !v.killed:
		v.reason = v.cause
	case stuck && !v.killed:
		v.reason = &hypervisor.GoneError{Cause: "the machine did not stop, and ends with this process"}
	case v.killed:
	case failure != nil:
		v.reason = &hypervisor.GoneError{Cause: "the machine did not start", Detail: failure.Error()}
	case ended == Failed:
		v.reason = &hypervisor.GoneError{Cause: "Virtualization.framework ended the guest because of an error of its own"}
	}
	close(v.gone)
}

// boot starts the machine, or goes on where it was saved.
func (v *VM) boot() error {
	if v.saved == "" {
		return v.m.Start()
	}
	if err := v.m.Restore(v.saved); err != nil {
		return err
	}
	return v.m.Resume()
}

// Dial implements hypervisor.VM.
func (v *VM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := v.streams.dial(ctx, port)
	if err != nil && v.ended() {
		return nil, hypervisor.ErrGone
	}
	return c, err
}

// Listen implements hypervisor.VM.
func (v *VM) Listen(port uint32) (net.Listener, error) {
	if v.ended() {
		return nil, hypervisor.ErrGone
	}
	return v.streams.listen(port)
}

// Mounts implements hypervisor.VM: plain shares are devices of the framework, and
// all others are streams that the agent dials.
func (v *VM) Mounts() []hypervisor.Mount { return append([]hypervisor.Mount(nil), v.plan.Mounts...) }

// Pause implements hypervisor.VM.
func (v *VM) Pause(ctx context.Context) error { return v.await(ctx, "pause the guest", v.m.Pause) }

// Resume implements hypervisor.VM.
func (v *VM) Resume(ctx context.Context) error { return v.await(ctx, "resume the guest", v.m.Resume) }

// await waits for a call of the framework, which knows no context: an answer that
// comes later than the context's end is nobody's.
func (v *VM) await(ctx context.Context, op string, call func() error) error {
	v.mu.Lock()
	started := v.started
	v.mu.Unlock()
	if !started || v.ended() {
		return hypervisor.ErrGone
	}
	done := make(chan error, 1)
	go func() { done <- call() }()
	var err error
	select {
	case err = <-done:
	case <-v.gone:
		return hypervisor.ErrGone
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	switch {
	case err == nil:
		return nil
	case v.ended():
		return hypervisor.ErrGone
	}
	return &hypervisor.Error{Op: op, Err: err}
}

func (v *VM) ended() bool {
	select {
	case <-v.gone:
		return true
	default:
		return false
	}
}

// Shutdown presses the machine's power button, waits for the guest's end until
// ctx ends, and then ends it. Carrel's own agent is asked over its stream instead,
// and does not look at the button: this is for guests without one.
func (v *VM) Shutdown(ctx context.Context) error {
	err := v.await(ctx, "ask the guest to end", v.m.RequestStop)
	if errors.Is(err, hypervisor.ErrGone) {
		return nil
	}
	if err == nil {
		select {
		case <-v.gone:
			return nil
		case <-ctx.Done():
		}
	}
	v.Kill()
	<-v.gone
	return nil
}

// Kill implements hypervisor.VM.
func (v *VM) Kill() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.killed = true
	v.askLocked()
	return nil
}

// end ends the guest for a reason of ours.
func (v *VM) end(why *hypervisor.GoneError) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.cause == nil {
		v.cause = why
	}
	v.askLocked()
}

func (v *VM) askLocked() {
	if !v.asked {
		v.asked = true
		close(v.ask)
	}
}

// Wait implements hypervisor.VM. A guest that is never started is waited for
// until Close.
func (v *VM) Wait() error {
	<-v.gone
	return v.reason
}

// Close implements hypervisor.VM.
func (v *VM) Close() error {
	v.Kill()
	v.mu.Lock()
	first := !v.closed
	v.closed = true
	started := v.started
	v.mu.Unlock()
	if first && !started {
		v.streams.close()
		v.pipes.close()
		v.pipes.closeOurs()
		close(v.gone)
	}
	<-v.gone
	return nil
}
