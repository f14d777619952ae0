//go:build unix

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/carrel-vm/carrel/guest/wire"
)

// Bounds of an agent.
const (
	// firstFrame is how long a caller may take to say what it wants.
	firstFrame = 10 * time.Second
	// maxCalls is how many connections are served at once, whatever they ask.
	maxCalls = 1024
	// maxCopies is how many copies run at once; more wait.
	maxCopies = 16
	// maxTasks is the most tasks at once when the host does not say.
	maxTasks = 64
)

// noSteering is what Ready says where names lead nowhere.
const noSteering = "none"

// began is close to the agent's first instruction.
var began = time.Now()

// Options are what an Agent is given. What PID 1 adds to an ordinary process
// comes in as values, so that tests run the rest as it is.
type Options struct {
	// Boot is the stream to the host on which Hello goes out. The agent
	// closes it.
	Boot net.Conn
	// Listener takes the host's calls. The agent closes it.
	Listener net.Listener
	// DialHost opens a stream to a port of the host. nil: there are none.
	DialHost func(ctx context.Context, port uint32) (net.Conn, error)
	// Cgroup is the folder in which each task gets a control group of its
	// own, or empty for none.
	Cgroup string
	// Limitless says that there is nothing by which one task could be limited
	// apart from others, so that a call with such limits is refused.
	Limitless bool
	// Restrict takes from the thread that starts every process what none of them
	// shall have. nil takes nothing.
	Restrict func() error
	// Prepare is waited for before Setup is done. nil does nothing.
	Prepare func() error
	// User is whom a call without a user runs as; empty: the agent's own.
	User string
	// What only one system has.
	systemOptions
	// beside is set where there is no guest but the wall's processes.
	beside *beside
	// Settle writes what programs read about names, certificates and git's
	// remotes, and returns variables for every task. nil does nothing.
	Settle func(*wire.Setup) ([]string, error)
	// GitHosts writes anew for which hosts git's remotes are rewritten. nil: a
	// guest that runs cannot be told.
	GitHosts func([]string) error
	// Refusals is the file for what the host did not let out; empty: none.
	Refusals string
	// Mount performs one mount of Setup; i counts from 0.
	Mount func(i int, m *wire.Mount) error
	// Name sets the host name, SetTime the clock. nil does nothing.
	Name    func(string) error
	SetTime func(time.Time) error
	// PowerOff ends the guest after all tasks have ended. nil does nothing.
	PowerOff func()
}

// Agent serves one host.
type Agent struct {
	o        Options
	children *children
	// root says whether tasks can be given another user.
	root bool
	// calls has a place for each connection, set up before any is served.
	calls chan struct{}
	// copies has a place for each copy.
	copies chan struct{}
	// ready is closed when Setup is done.
	ready chan struct{}
	// slots has a place for each task; made by Setup, before ready.
	slots chan struct{}
	// What only one system has.
	system
	// settling is Settle at work, from Setup on, and perhaps for longer than
	// that. Then env are variables that every task gets unless its call has
	// them, or settleErr says what is wrong.
	settling  sync.WaitGroup
	env       []string
	settleErr error

	mu    sync.Mutex
	tasks map[*task]struct{}
	// claim is what a guest was told that nobody had asked for when it started;
	// nil: nothing. It is not changed once it is there.
	claim *wire.Claim
	// ending refuses new tasks.
	ending bool
}

// New returns an Agent that does nothing yet.
func New(o Options) *Agent {
	return &Agent{
		o:        o,
		children: newChildren(o.Restrict),
		root:     os.Geteuid() == 0,
		calls:    make(chan struct{}, maxCalls),
		copies:   make(chan struct{}, maxCopies),
		ready:    make(chan struct{}),
		tasks:    make(map[*task]struct{}),
	}
}

// Run says Hello and serves the host until it asks for the end, the boot
// stream breaks, or ctx ends. It returns when every task has ended and, if
// PowerOff is given and returns, after that. The error says why it ended; nil
// means that the host asked.
func (a *Agent) Run(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	cancel := func() { fail(nil) }
	defer cancel()
	var calls, reaper sync.WaitGroup
	reapCtx, stopReaper := context.WithCancel(context.WithoutCancel(ctx))
	reaper.Go(func() { a.children.run(reapCtx) })
	calls.Go(func() { a.accept(ctx, &calls) })
	stop := context.AfterFunc(ctx, func() {
		_ = a.o.Boot.Close()
		_ = a.o.Listener.Close()
	})
	err := a.obey(ctx, fail)
	if broken := context.Cause(ctx); broken != nil {
		err = broken
	}
	cancel()
	stop()
	_ = a.o.Listener.Close()
	a.killAll()
	a.closeSystem()
	calls.Wait()
	a.settling.Wait()
	_ = a.o.Boot.Close()
	if a.o.PowerOff != nil {
		a.o.PowerOff()
	}
	stopReaper()
	reaper.Wait()
	return err
}

// accept serves each connection until the listener ends.
func (a *Agent) accept(ctx context.Context, calls *sync.WaitGroup) {
	for {
		select {
		case a.calls <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := a.o.Listener.Accept()
		if err != nil {
			<-a.calls
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// The host gave up a connection before it was accepted, or
			// files have run out; neither lasts.
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return
			}
			continue
		}
		calls.Go(func() {
			defer func() { <-a.calls }()
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			a.serve(ctx, conn)
		})
	}
}

// serve reads what one connection is for, and does it.
func (a *Agent) serve(ctx context.Context, conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(firstFrame))
	var c wire.Call
	if err := readCall(conn, &c); err != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	switch k := c.Kind.(type) {
	case *wire.Call_Exec:
		a.exec(ctx, conn, k.Exec)
	case *wire.Call_Put:
		a.copy(ctx, conn, &c, k.Put.User)
	case *wire.Call_Get:
		a.copy(ctx, conn, &c, k.Get.User)
	case *wire.Call_Forward:
		a.forward(ctx, conn, k.Forward)
	default:
		a.serveSystem(ctx, conn, &c)
	}
}

// readCall reads the first frame and not a byte more: what follows may be read
// by another process.
func readCall(conn net.Conn, c *wire.Call) error {
	return protodelim.UnmarshalOptions{MaxSize: wire.MaxFrame}.UnmarshalFrom(bytewise{conn}, c)
}

// bytewise reads single bytes without reading ahead; a frame's length is one
// to three of them.
type bytewise struct{ net.Conn }

func (b bytewise) ReadByte() (byte, error) {
	var p [1]byte
	for {
		n, err := b.Read(p[:])
		if n == 1 || err != nil {
			return p[0], err
		}
	}
}

var errNotReady = errors.New("the guest is not set up yet")

// take reserves a place for a task, or says why there is none.
func (a *Agent) take() (release func(), err error) {
	select {
	case <-a.ready:
	default:
		return nil, errNotReady
	}
	select {
	case a.slots <- struct{}{}:
		return func() { <-a.slots }, nil
	default:
		return nil, fmt.Errorf("%d tasks run in this guest already, which is its limit", cap(a.slots))
	}
}

// version is the agent's build, as the toolchain recorded it.
func version() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return text(b.Main.Version, 64)
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return text(unix.ByteSliceToString(u.Release[:]), 64)
}

// text bounds s to n bytes of valid UTF-8 without control characters.
func text(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}
