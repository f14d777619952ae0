package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// somewhere is an address of the world outside, where a test's names lead.
var somewhere = netip.MustParseAddr("93.184.215.14")

// world is the outside of one Server: names, addresses and who listens there.
type world struct {
	t *testing.T
	*Server

	mu      sync.Mutex
	names   map[string][]netip.Addr
	servers map[netip.AddrPort]string // by the address outside: where it listens here
	lookups []string
	dials   []netip.AddrPort
	events  []*api.EgressEvent
	lines   []string
	wg      sync.WaitGroup
}

// newWorld makes a Server with rules; edit may change its options.
func newWorld(t *testing.T, edit func(*Options), rules ...*api.EgressRule) *world {
	t.Helper()
	w := &world{t: t, names: map[string][]netip.Addr{}, servers: map[netip.AddrPort]string{}}
	o := Options{
		Guest: "box",
		Record: func(ev *api.EgressEvent) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, ev)
		},
		Refused: func(_, line string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.lines = append(w.lines, line)
		},
		Lookup: w.lookup, Dial: w.dial,
		Own: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("81.2.69.160")}, nil },
	}
	if edit != nil {
		edit(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	w.Server = s
	t.Cleanup(func() {
		s.Close()
		w.wg.Wait()
	})
	w.configure(rules...)
	return w
}

func (w *world) configure(rules ...*api.EgressRule) int {
	w.t.Helper()
	n, err := w.Configure(&api.ConfigureEdgeRequest{Rules: rules})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) lookup(_ context.Context, name string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lookups = append(w.lookups, name)
	if a, ok := w.names[name]; ok {
		return append([]netip.Addr(nil), a...), nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func (w *world) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	w.dials = append(w.dials, to)
	here, ok := w.servers[to]
	w.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("dial %s: %w", to, syscall.ECONNREFUSED)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", here)
}

// serve puts a server at a name and port of the world.
func (w *world) serve(name string, a netip.Addr, port uint16, handle func(net.Conn)) {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.names[name] = append(w.names[name], a)
	w.servers[netip.AddrPortFrom(a, port)] = ln.Addr().String()
	w.mu.Unlock()
	w.t.Cleanup(func() { ln.Close() })
	w.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
}

// echo sends back what comes and ends when it ends.
func echo(c net.Conn) {
	io.Copy(c, c)
	c.(*net.TCPConn).CloseWrite()
}

// halfConn is a connection one direction of which can end.
type halfConn interface {
	net.Conn
	CloseWrite() error
}

// patience bounds each wait for what has to come. A test that passes does not take
// longer for it, and a busy machine may be slower than any guess.
const patience = 5 * time.Minute

// stream is the guest's end of one egress stream, before its first frame.
func (w *world) stream() halfConn {
	w.t.Helper()
	a, b := socketPair(w.t)
	w.wg.Go(func() { w.Serve(context.Background(), b) })
	w.t.Cleanup(func() { a.Close() })
	a.SetDeadline(time.Now().Add(patience))
	return a
}

// open opens a stream to a host.
func (w *world) open(host string, port uint32) halfConn {
	w.t.Helper()
	c := w.stream()
	if err := wire.Write(c, &wire.Open{Host: host, Port: port, Task: "01ARZ3NDEKTSV4RRFFQ69G5FAV"}); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// outside says what left the guest's reach: names asked for, addresses dialled.
func (w *world) outside() (lookups []string, dials []netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.lookups...), append([]netip.AddrPort(nil), w.dials...)
}

// seen waits for an event.
func (w *world) seen(what string, is func(*api.EgressEvent) bool) *api.EgressEvent {
	w.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	var found *api.EgressEvent
	errFound := errors.New("found")
	err := w.Watch(ctx, 0, true, func(ev *api.EgressEvent) error {
		if is(ev) {
			found = ev
			return errFound
		}
		return nil
	})
	if !errors.Is(err, errFound) {
		w.t.Fatalf("no event: %s: %v", what, err)
	}
	return found
}

func (w *world) last() *api.EgressEvent {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.events) == 0 {
		return nil
	}
	return w.events[len(w.events)-1]
}

func isEnd(ev *api.EgressEvent) bool {
	return ev.Kind == api.EgressEventKind_EGRESS_EVENT_KIND_END && ev.Method == ""
}

func isDenied(ev *api.EgressEvent) bool {
	return ev.Kind == api.EgressEventKind_EGRESS_EVENT_KIND_CONNECT && ev.Verdict.Action == api.EgressAction_EGRESS_ACTION_DENY
}

func isAllowed(ev *api.EgressEvent) bool {
	return ev.Kind == api.EgressEventKind_EGRESS_EVENT_KIND_CONNECT && ev.Verdict.Action == api.EgressAction_EGRESS_ACTION_ALLOW
}

func isQuestion(ev *api.EgressEvent) bool {
	return ev.Kind == api.EgressEventKind_EGRESS_EVENT_KIND_QUESTION
}

func anyRule(action api.EgressAction, host string, ports ...uint32) *api.EgressRule {
	return &api.EgressRule{Action: action, Host: host, Ports: ports}
}

func allow(host string, ports ...uint32) *api.EgressRule {
	return anyRule(api.EgressAction_EGRESS_ACTION_ALLOW, host, ports...)
}

// says writes a line and expects it back: the connection reaches an echo.
func says(c net.Conn) error {
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	b := make([]byte, 6)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != "hello\n" {
		return fmt.Errorf("came back as %q", b)
	}
	return nil
}
