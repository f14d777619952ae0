package guest

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/wire"
	"github.com/carrel-vm/carrel/hypervisor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hostile is a guest whose every word the test chooses.
type hostile struct {
	boot func(c net.Conn)        // speaks on the boot stream; then it stays open
	call func(c net.Conn, n int) // answers the n-th call
	refs sync.WaitGroup
	vm   *hostileVM // the last one
}

func (h *hostile) Name() string { return "hostile" }

func (h *hostile) Create(context.Context, hypervisor.Config, hypervisor.Handlers) (hypervisor.VM, error) {
	h.vm = &hostileVM{h: h, gone: make(chan struct{}), boot: make(chan net.Conn, 1), way: make(chan net.Conn)}
	return h.vm, nil
}

type hostileVM struct {
	h     *hostile
	boot  chan net.Conn
	way   chan net.Conn // streams that the guest opens to the outside
	once  sync.Once
	gone  chan struct{}
	mu    sync.Mutex
	conns []net.Conn
	calls int
}

func (v *hostileVM) pipe() (host, guest net.Conn) {
	host, guest = net.Pipe()
	v.mu.Lock()
	v.conns = append(v.conns, guest)
	v.mu.Unlock()
	return host, guest
}

func (v *hostileVM) Start(context.Context) error {
	host, guest := v.pipe()
	v.boot <- host
	v.h.refs.Go(func() { v.h.boot(guest) })
	return nil
}

func (v *hostileVM) Dial(context.Context, uint32) (net.Conn, error) {
	select {
	case <-v.gone:
		return nil, hypervisor.ErrGone
	default:
	}
	host, guest := v.pipe()
	v.mu.Lock()
	v.calls++
	n := v.calls
	v.mu.Unlock()
	v.h.refs.Go(func() {
		defer guest.Close()
		if v.h.call != nil { // the host calls by itself when its clock has jumped
			v.h.call(guest, n)
		}
	})
	return host, nil
}

func (v *hostileVM) Listen(port uint32) (net.Listener, error) {
	if port == wire.PortEgress {
		return &oneListener{v: v, from: v.way, done: make(chan struct{})}, nil
	}
	return &oneListener{v: v, from: v.boot, done: make(chan struct{})}, nil
}
func (v *hostileVM) Mounts() []hypervisor.Mount   { return nil }
func (v *hostileVM) Pause(context.Context) error  { return nil }
func (v *hostileVM) Resume(context.Context) error { return nil }
func (v *hostileVM) Wait() error                  { <-v.gone; return nil }
func (v *hostileVM) Close() error                 { v.Kill(); v.h.refs.Wait(); return nil }
func (v *hostileVM) Kill() error {
	v.once.Do(func() {
		close(v.gone)
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, c := range v.conns {
			c.Close()
		}
	})
	return nil
}

type oneListener struct {
	v    *hostileVM
	from chan net.Conn
	once sync.Once
	done chan struct{}
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.from:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-l.v.gone: // a driver's listeners end with the machine
		return nil, net.ErrClosed
	}
}
func (l *oneListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *oneListener) Addr() net.Addr { return nil }

// wellBehaved says Hello and Ready and answers what it is asked.
func wellBehaved(c net.Conn) {
	r := wire.NewReader(c)
	wire.Write(c, &wire.FromGuest{Kind: &wire.FromGuest_Hello{Hello: &wire.Hello{Version: wire.Version, Agent: "test"}}})
	if r.Read(new(wire.FromHost)) != nil {
		return
	}
	wire.Write(c, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: &wire.Ready{}}})
	for {
		f := new(wire.FromHost)
		if r.Read(f) != nil {
			return
		}
		wire.Write(c, &wire.FromGuest{Kind: &wire.FromGuest_Answer{Answer: &wire.Answer{Id: f.GetControl().GetId()}}})
	}
}

// started reads the Call and says Started.
func started(c net.Conn) *wire.Call {
	call := new(wire.Call)
	if wire.NewReader(c).Read(call) != nil {
		return nil
	}
	say(c, &wire.Output{Kind: &wire.Output_Started{Started: &wire.Started{Pid: 1}}})
	return call
}

func say(c net.Conn, m proto.Message) error { return wire.Write(c, m) }

func exit(code, signal int32) *wire.Output {
	return &wire.Output{Kind: &wire.Output_Exit{Exit: &wire.Exit{Code: code, Signal: signal}}}
}

func testOptions(t *testing.T, h *hostile) Options {
	t.Helper()
	grant, err := policy.Decide(&api.GuestSpec{Name: "test"}, policy.Default("/nonexistent"))
	if err != nil {
		t.Fatal(err)
	}
	con, err := openConsole(filepath.Join(t.TempDir(), "console"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(con.close)
	return Options{Grant: grant, Driver: h, Console: con, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Parts: policy.Parts{Dir: "/d", Kernel: "/k", Initrd: "/i", Root: "/r"}}
}

func startFake(t *testing.T, h *hostile) *Guest {
	t.Helper()
	if h.boot == nil {
		h.boot = wellBehaved
	}
	g, err := Start(t.Context(), testOptions(t, h))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// testPatience bounds each wait for what has to come. A test that passes does not take
// longer for it, and a busy machine may be slower than any guess.
const testPatience = 5 * time.Minute

// execFake runs one task to its ending and returns its output.
func execFake(t *testing.T, g *Guest, spec *api.TaskSpec, in *input) (*api.Ending, string) {
	t.Helper()
	sp, err := newSpool(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer sp.close()
	if in == nil {
		in = newInput()
	}
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	e := g.Exec(ctx, "T", spec, sp, in)
	sp.seal()
	out, _, _ := readAll(t, sp, 0, false)
	return e, string(out)
}
