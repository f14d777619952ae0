// Package guest takes one guest from start to gone, and its tasks from a
// request to an ending. It runs in a keeper, one process per guest, which is
// where the guest's bytes are parsed.
package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/wire"
	"github.com/carrel-vm/carrel/hypervisor"
)

// Bounds of a guest's life. Under software emulation everything takes longer.
const (
	// BootTimeout is how long a guest may take from its start to Ready.
	BootTimeout = 60 * time.Second
	// MaxTasks is how many tasks may run at once.
	MaxTasks = 64
	// StopGrace is how long tasks have to end when a stop does not say.
	StopGrace = 5 * time.Second
	// StopBound is how long a stop takes at most, whatever the guest does.
	StopBound = 10 * time.Second
	// StopFlush is how much longer than StopBound the stop of a guest with a disk
	// takes at most: what it wrote last is in its memory yet, up to a fifth of that
	// (vm.dirty_ratio), and goes to the disk before the machine ends.
	StopFlush = 30 * time.Second
	// writeTimeout bounds a frame to a guest that does not read.
	writeTimeout = 30 * time.Second
)

// A guest with a task is asked for a sign of life every pingEvery, and is given
// up when none came for pingDeath. Variables for the tests' sake only.
var (
	pingEvery = 15 * time.Second
	pingDeath = 60 * time.Second
	// agentGone is how long a machine may go on without its agent, if nobody asked it to
	// end.
	agentGone = 2 * time.Second
	// toldTimeout is how long the end of a task waits for what was refused to it.
	toldTimeout = 5 * time.Second
)

// Options are what a guest is started from.
type Options struct {
	Grant  *policy.Grant
	Parts  policy.Parts
	Driver hypervisor.Driver
	// Shares are the guest's; nil: it has none, and gets none.
	Shares  *shares
	Console *console
	Log     *slog.Logger
	// Outside is the guest's way out; nil: there is none.
	Outside *outside
	// Env is NAME=value, for every task that does not set them itself.
	Env []string
	// GitHosts are those for which git's ssh remotes are rewritten to https.
	GitHosts []string
	// Trace gets the parts of the start; nil: nobody asks.
	Trace *Trace
	// Rest lets it stand still while nobody wants anything; nil: it never does.
	Rest *rest
	// Confine takes from this process what a guest that runs does not need; nil
	// does nothing. It is called when the machine runs and all that serves it has
	// started, before the guest's first frame is read. What the driver itself reads of
	// the guest's, as its console and the rings of its devices, it reads from the
	// machine's first moment on.
	Confine func() error
}

// Guest is one running guest.
//
//	Start ──> ready ── Stop ──> gone
//	             └── its own end, a broken promise ──> gone
type Guest struct {
	vm      hypervisor.VM
	boot    *bootStream
	log     *slog.Logger
	console *console

	// Hello is what the guest said of itself: hostile, bounded, for display.
	Hello *wire.Hello
	// Steering is how the guest says that its names are steered.
	Steering string
	// Times of the start: when the machine ran, said Hello and was ready.
	Created, Ran, Greeted, Ready time.Time

	trace    *Trace
	beat     heartbeat
	clock    *clock
	rest     *rest // nil: it never stands still
	refusals refusals
	gone     chan struct{} // closed when the machine is gone
	asked    atomic.Bool   // Stop or Close ends it
	disk     bool          // it writes to disks that are there when it is gone
	mu       sync.Mutex
	cause    string // why, when it was not in order
	tasks    sync.WaitGroup
}

// Start creates the machine, waits for the agent's Hello and has it set itself
// up. On an error nothing of the guest is left.
func Start(ctx context.Context, o Options) (_ *Guest, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, BootTimeout, fmt.Errorf("the guest was not ready within %v", BootTimeout))
	defer cancel()
	g := &Guest{beat: heartbeat{wake: make(chan struct{}, 1)}, refusals: refusals{wake: make(chan struct{}, 1)}, log: o.Log, console: o.Console, trace: o.Trace, rest: o.Rest, gone: make(chan struct{}), Created: time.Now()}
	spec := o.Grant.Spec()
	h := hypervisor.Handlers{Console: o.Console.write, Took: o.Trace.Add}
	if o.Shares != nil {
		h.Share = o.Shares.serveFor
	}
	created := o.Trace.Begin("machine made")
	config := o.Grant.Config(o.Parts)
	g.disk = config.Scratch != "" || len(config.Volumes) > 0
	g.vm, err = o.Driver.Create(ctx, config, h)
	if err != nil {
		return nil, err
	}
	created()
	defer func() {
		if err != nil {
			err = g.explain(ctx, err)
			g.vm.Close()
			g.tasks.Wait() // what serves its streams ends with it
		}
	}()
	ln, err := g.vm.Listen(wire.PortBoot)
	if err != nil {
		return nil, err
	}
	defer ln.Close() // one stream only: a second Hello finds nobody
	mounts := g.vm.Mounts()
	served := make(chan error, 1)
	if o.Shares == nil {
		served <- nil
	} else {
		// The servers start while the machine does: the guest dials for a share
		// after Setup only.
		sctx, stop := context.WithCancel(ctx) // their own: what failed is said, and not that they were stopped
		go func() { served <- o.Shares.take(sctx, mounts) }()
		defer func() {
			stop()
			if err != nil { // nothing is left
				<-served
			}
		}()
		streams, err := g.vm.Listen(wire.PortShare)
		if err != nil {
			return nil, err
		}
		g.tasks.Go(func() { o.Shares.serve(streams) }) // ends with the machine
	}
	setup := &wire.Setup{Hostname: spec.Name, MaxTasks: MaxTasks, Env: o.Env, GitHosts: o.GitHosts, Volumes: wireVolumes(config)}
	if o.Outside != nil {
		way, err := g.vm.Listen(wire.PortEgress)
		if err != nil {
			return nil, err
		}
		setup.Egress = true
		g.tasks.Go(func() { o.Outside.serve(way) }) // ends with the machine
	}
	begun := time.Now()
	if err := g.vm.Start(ctx); err != nil {
		return nil, err
	}
	g.Ran = time.Now()
	o.Trace.Add("machine runs", begun, g.Ran)
	go g.watch()

	select {
	case err = <-served:
		served <- err // for the one above
	case <-g.gone: // a machine that dies at once is not waited for
		err = errEarly
	}
	if err != nil {
		return nil, err
	}
	if o.Confine != nil { // while the guest boots
		confined := o.Trace.Begin("keeper confined")
		if err := o.Confine(); err != nil {
			return nil, fmt.Errorf("the keeper could not confine itself: %w", err)
		}
		confined()
	}
	conn, err := g.accept(ctx, ln)
	if err != nil {
		return nil, err
	}
	g.boot = newBootStream(conn)
	if o.Outside != nil {
		waited := o.Trace.Begin("egress process told what to trust")
		if setup.Trust, err = o.Outside.trusted(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		waited()
	}
	setup.UnixNanos = time.Now().UnixNano()
	for _, m := range mounts {
		setup.Mounts = append(setup.Mounts, wireMount(m))
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	var said *wire.Ready
	g.Hello, said, err = g.boot.greet(setup, func() { g.Greeted = time.Now() })
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	g.Steering = said.Steering
	g.Ready = time.Now()
	o.Trace.boot(g, begun, said)
	g.clock = newClock(g)
	g.tasks.Go(func() { g.clock.follow(g.gone) })
	// These end with the boot stream, at the latest with Close.
	g.tasks.Go(g.listen)
	g.tasks.Go(g.beats)
	g.tasks.Go(g.sayRefusals)
	g.log.Info("booted", "boot", g.Greeted.Sub(g.Ran), "setup", g.Ready.Sub(g.Greeted))
	return g, nil
}

// accept waits for the guest's boot stream, its end, or the context's.
func (g *Guest) accept(ctx context.Context, ln net.Listener) (net.Conn, error) {
	type result struct {
		c   net.Conn
		err error
	}
	ch := make(chan result, 1)
	go func() { // ended by ln.Close at the latest
		c, err := ln.Accept()
		ch <- result{c, err}
	}()
	late := func() {
		ln.Close()
		if r := <-ch; r.c != nil {
			r.c.Close()
		}
	}
	select {
	case r := <-ch:
		if r.err != nil { // the driver closes its listeners when the machine ends
			r.err = errEarly
		}
		return r.c, r.err
	case <-g.gone:
		late()
		return nil, errEarly
	case <-ctx.Done():
		late()
		return nil, context.Cause(ctx)
	}
}

var errEarly = errors.New("the guest ended while it booted")

// explain adds to a failed start what the machine and its console said.
func (g *Guest) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var he *hypervisor.Error
	if errors.As(err, &he) {
		return err
	}
	if errors.Is(err, errEarly) {
		select { // the machine's own last words come a moment later
		case <-g.gone:
		case <-time.After(time.Second):
		}
	}
	if c := g.Cause(); c != "" && c != endedItself {
		err = fmt.Errorf("%w: %s", err, c)
	}
	if last := g.console.last(); last != "" {
		err = fmt.Errorf("%w; the console's last words: %s", err, last)
	}
	return err
}

// watch waits for the machine's end. One that nobody asked for is never in
// order, though the machine may have powered off as if it were: a kernel whose
// agent died starts anew, and the console need not have brought its last words.
func (g *Guest) watch() {
	if err := g.vm.Wait(); err != nil {
		g.fail(err.Error())
	} else if !g.asked.Load() {
		g.fail(endedItself)
	}
	close(g.gone)
}

// endedItself is the cause when nothing else is known.
const endedItself = "the guest ended itself"

// listen reads the boot stream until it ends, which only a guest that ends
// should do.
func (g *Guest) listen() {
	err := g.boot.run()
	select {
	case <-g.gone:
	default:
		if err != nil {
			g.fail("the guest's agent " + err.Error())
		}
		// An orderly power-off closes the stream just before the machine ends. One that
		// was asked for may have its disk to close then, and whoever asked bounds it.
		if g.asked.Load() {
			return
		}
		select {
		case <-g.gone:
		case <-time.After(agentGone):
			g.fail("the guest's agent ended")
			g.vm.Kill()
		}
	}
}

// fail notes why the guest ended; the first reason stands.
func (g *Guest) fail(cause string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cause == "" {
		g.cause = wire.Text(cause, 4*wire.MaxText)
	}
}

// broke ends the guest because it broke the wire's rules.
func (g *Guest) broke(what error) {
	g.log.Warn("protocol", "error", what)
	g.fail("the guest broke the protocol: " + what.Error())
	g.vm.Kill()
}

// Cause says why the guest ended; empty if in order or not yet.
func (g *Guest) Cause() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cause
}

// Gone is closed when the machine has ended.
func (g *Guest) Gone() <-chan struct{} { return g.gone }

// Stop asks the guest to end its tasks and itself within the grace, and then
// ends it by force. It returns when the machine is gone.
func (g *Guest) Stop(grace time.Duration) {
	g.asked.Store(true)
	if grace > 0 {
		grace = min(grace, StopBound-2*time.Second)
		bound := grace + time.Second
		if g.disk { // its answer comes when all is written
			bound += StopFlush
		}
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		defer cancel()
		// Whatever the guest does, and whoever waits for it, this ends it.
		defer context.AfterFunc(ctx, func() { g.vm.Kill() })()
		err := g.boot.ask(ctx, &wire.Control{Kind: &wire.Control_PowerOff{PowerOff: &wire.PowerOff{GraceNanos: int64(grace)}}})
		if err == nil {
			select {
			case <-g.gone:
			case <-ctx.Done():
			}
		}
	}
	g.vm.Kill()
	<-g.gone
}

// Close ends the guest at once, waits for its tasks' endings and removes
// everything that the driver made.
func (g *Guest) Close() error {
	g.asked.Store(true)
	g.vm.Kill()
	<-g.gone
	g.rest.end()
	g.boot.conn.Close()
	g.tasks.Wait()
	return g.vm.Close()
}
