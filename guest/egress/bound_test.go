package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/wire"
)

// E34: a name with many addresses at which nobody answers does not make a guest's
// connections cost more descriptors than there are. When its turn comes, each is
// tried.
func TestDialsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most, tried atomic.Int64
		w := newWorld(t, func(o *Options) {
			o.Lookup = func(context.Context, string) (all []netip.Addr, _ error) {
				for i := range maxAddresses {
					all = append(all, netip.AddrFrom4([4]byte{93, 184, 215, byte(i)}))
				}
				return all, nil
			}
			o.Dial = func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
				tried.Add(1)
				most.Store(max(most.Load(), now.Add(1)))
				defer now.Add(-1)
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Second):
				}
				return nil, errors.New("nobody answers")
			}
		}, allow("a.example", 7))
		for range 64 {
			defer w.pipe("a.example", 7).Close()
		}
		time.Sleep(2 * dialTimeout)
		if most.Load() != maxDials || tried.Load() != 64*maxAddresses {
			t.Errorf("%d sockets at once, %d tried", most.Load(), tried.Load())
		}
		w.Close()
	})
}

// All sockets to servers are bounded together, since one connection of the guest
// may have several; one that ends makes room.
func TestServersAreBounded(t *testing.T) {
	w := newWorld(t, nil, allow("a.example", 7))
	w.serve("a.example", somewhere, 7, echo)
	first := w.open("a.example", 7)
	if err := says(first); err != nil {
		t.Fatal(err)
	}
	w.Server.mu.Lock()
	held := w.Server.servers
	w.Server.servers += maxServers - 1
	w.Server.mu.Unlock()
	if held != 1 {
		t.Errorf("%d are held", held)
	}
	c := w.open("a.example", 7)
	c.CloseWrite()
	io.Copy(io.Discard, c)
	w.seen("too many", func(ev *api.EgressEvent) bool {
		return isEnd(ev) && strings.Contains(ev.Verdict.Reason, "connections to servers already")
	})
	first.Close()
	w.seen("the first's end", func(ev *api.EgressEvent) bool { return isEnd(ev) && ev.Connection == 1 })
	if err := says(w.open("a.example", 7)); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
	w.Close()
	if w.Server.servers != maxServers-1 {
		t.Errorf("%d are held at the end", w.Server.servers-maxServers+1)
	}
}

// A connection whose pipes are all in use is carried without.
func TestPassWithoutSplice(t *testing.T) {
	w := newWorld(t, nil, allow("a.example", 7))
	for range maxSplices {
		w.splices <- struct{}{}
	}
	const size = 8 << 20
	w.serve("a.example", somewhere, 7, func(c net.Conn) { io.Copy(c, io.LimitReader(rand.New(rand.NewSource(3)), size)) })
	if n, err := io.Copy(io.Discard, w.open("a.example", 7)); n != size || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// halfPipe takes the end of what it is sent as net.Pipe cannot: nothing happens.
type halfPipe struct{ net.Conn }

func (halfPipe) CloseWrite() error { return nil }

// spent is a guest that has said all that it will.
type spent struct{ halfPipe }

func (s spent) Read(b []byte) (int, error) {
	s.Conn.SetReadDeadline(time.Now().Add(time.Second))
	n, err := s.Conn.Read(b)
	if isTimeout(err) {
		err = io.EOF
	}
	return n, err
}

// E32: a guest that has ended its side holds a server that never says anything no
// longer than one that has stopped in the middle.
func TestHalfClosedAtOnce(t *testing.T) {
	for _, said := range []string{"", "hello"} {
		synctest.Test(t, func(t *testing.T) {
			hang := make(chan struct{})
			w := newWorld(t, pipes(func(c net.Conn) {
				io.CopyN(io.Discard, c, int64(len(said)))
				<-hang
			}), allow("a.example", 7))
			dial := w.opts.Dial
			w.opts.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
				c, err := dial(ctx, to)
				return halfPipe{c}, err
			}
			a, b := net.Pipe()
			w.wg.Go(func() { w.Serve(context.Background(), spent{halfPipe{b}}) })
			if err := wire.Write(a, &wire.Open{Host: "a.example", Port: 7}); err != nil {
				t.Fatal(err)
			}
			io.WriteString(a, said)
			if took := ends(a); took < halfIdleLimit || took > 2*halfIdleLimit {
				t.Errorf("after %q: %v", said, took)
			}
			close(hang)
			w.Close()
		})
	}
}

// A guest is not told where the host's resolver is.
func TestErrorsKeepTheHostsPlaces(t *testing.T) {
	w := newWorld(t, func(o *Options) {
		o.Lookup = func(context.Context, string) ([]netip.Addr, error) {
			return nil, fmt.Errorf("wrapped: %w", &net.DNSError{Err: "server misbehaving", Name: "a.example", Server: "10.9.8.7:53"})
		}
	}, allow("a.example", 80), allow("b.example", 80))
	c := w.open("a.example", 80)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
	b, _ := io.ReadAll(c)
	if !strings.Contains(string(b), "resolve a.example: server misbehaving") || strings.Contains(string(b), "10.9.8.7") {
		t.Errorf("%q", b)
	}
	// Nothing listens at port 1 of the loopback, where the proxy is said to be.
	w.upstream(&api.EdgeUpstream{HttpProxy: "http://127.0.0.1:1", HttpsProxy: "http://127.0.0.1:1"}, allow("b.example", 80, 7))
	c = w.open("b.example", 7)
	c.CloseWrite()
	io.Copy(io.Discard, c)
	ev := w.seen("end", func(ev *api.EgressEvent) bool { return isEnd(ev) && ev.Host == "b.example" })
	if !strings.Contains(ev.Verdict.Reason, "the host's proxy") || strings.Contains(ev.Verdict.Reason, "127.0.0.1") {
		t.Errorf("%v", ev)
	}
}

// sore is a listener without descriptors for a while.
type sore struct {
	net.Listener
	fails atomic.Int64
}

func (s *sore) Accept() (net.Conn, error) {
	if s.fails.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return s.Listener.Accept()
}

// A port gets over a time in which there are no descriptors.
func TestPortGetsOverErrors(t *testing.T) {
	w := newWorld(t, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sore{Listener: ln}
	s.fails.Store(1)
	p := &port{s: w.Server, spec: &api.Port{GuestPort: 80}, ln: s, conns: map[io.Closer]struct{}{}}
	p.open = func(uint32) (net.Conn, error) {
		a, b := net.Pipe()
		w.wg.Go(func() { io.Copy(b, b); b.Close() })
		return a, nil
	}
	w.wg.Go(p.accept)
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	if err := says(c); err != nil {
		t.Error(err)
	}
	c.Close()
	p.close()
}

// Who gives up at once can ask no more than who waits; and a question whose time
// is up is put again.
func TestQuestionsArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a asks
		a.init()
		about := func(i int) subject { return subject{req: policy.Request{Method: "GET", Path: fmt.Sprint("/", i)}} }
		n := 0
		for i := range 10 * questionBurst {
			if q, fresh, _ := a.join(about(i)); q != nil && fresh {
				n++
				a.leave(q)
			}
		}
		if n != questionBurst {
			t.Errorf("%d questions at once", n)
		}
		time.Sleep(10 * time.Second)
		q, fresh, full := a.join(about(1))
		if q == nil || !fresh {
			t.Fatalf("after a while: %s", full)
		}
		time.Sleep(askTimeout - time.Second)
		if again, fresh, _ := a.join(about(1)); again != q || fresh {
			t.Error("a question that is open is put again")
		}
		time.Sleep(time.Second)
		again, fresh, _ := a.join(about(1))
		if again == q || !fresh {
			t.Error("a question whose time is up holds off the next")
		}
		a.leave(q)
		a.leave(q)
		if a.take(again.id) != again {
			t.Error("the question cannot be answered")
		}
	})
}
