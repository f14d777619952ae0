package guest

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/share/control"
	"github.com/carrel-vm/carrel/guest/wire"
)

// taker stands in for a share process: it reads what a review says to its end.
func taker(t *testing.T, got chan<- int64) *control.Client {
	t.Helper()
	ours, theirs, err := control.Pair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := control.New(ours)
	if err != nil {
		t.Fatal(err)
	}
	c := control.NewClient(conn, nil)
	p, err := control.New(theirs)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer p.Close()
		for {
			m, f, err := p.Receive()
			if err != nil {
				return
			}
			go func() {
				n, _ := io.Copy(io.Discard, f)
				f.Close()
				got <- n
				p.Send(&control.Message{Kind: control.Done, ID: m.ID}, nil)
			}()
		}
	}()
	t.Cleanup(func() { endServer(c); <-done })
	return c
}

// A guest whose root has put itself in the agent's place stalls a review at each
// step. Its other calls and its boot stream are served meanwhile, whoever waits
// waits no longer than he said, and nothing of it is left when the guest is gone.
func TestReviewStalls(t *testing.T) {
	stall := func(c net.Conn) { io.Copy(io.Discard, c) } // reads, and says nothing more
	steps := map[string]func(c net.Conn, r *wire.Reader){
		"takes no call":     nil,
		"says nothing":      func(c net.Conn, _ *wire.Reader) { stall(c) },
		"half a length":     func(c net.Conn, _ *wire.Reader) { c.Write([]byte{0x80}); stall(c) },
		"half a frame":      func(c net.Conn, _ *wire.Reader) { c.Write([]byte{40, 1, 2, 3}); stall(c) },
		"one frame":         func(c net.Conn, _ *wire.Reader) { wire.Write(c, &wire.Reviewed{}); stall(c) },
		"drips":             func(c net.Conn, _ *wire.Reader) { drip(c) },
		"ends, the control": func(net.Conn, *wire.Reader) {},
	}
	for name, step := range steps {
		t.Run(name, func(t *testing.T) {
			called := make(chan struct{}, 1)
			h := &hostile{boot: wellBehaved, call: func(c net.Conn, n int) {
				if n == 1 && step == nil {
					called <- struct{}{}
					time.Sleep(200 * time.Millisecond) // and the test's Kill closes it
					return
				}
				r := wire.NewReader(c)
				call := new(wire.Call)
				if r.Read(call) != nil {
					return
				}
				if call.GetReview() != nil {
					step(c, r)
					return
				}
				say(c, &wire.Output{Kind: &wire.Output_Started{Started: &wire.Started{}}})
				say(c, exit(0, 0))
			}}
			g := startFake(t, h)
			got := make(chan int64, 1)
			s := newShares([]*sharing{{
				share: &api.Share{Path: "/p", Mode: api.ShareMode_SHARE_MODE_REVIEW}, mount: &wire.Mount{Path: "/p"}, server: taker(t, got),
			}}, nil, slog.New(slog.DiscardHandler), func() {})
			limit := 300 * time.Millisecond
			if name == "ends, the control" {
				limit = testPatience
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			begin := time.Now()
			err := s.imports.all(ctx, g, "t", false)
			if took := time.Since(begin); took > testPatience {
				t.Errorf("who asked waited %v", took)
			}
			if name == "ends, the control" {
				if err != nil || <-got != 0 {
					t.Errorf("control: %v", err)
				}
			} else if err == nil {
				t.Error("the import came to an end")
			}
			if step == nil { // who asked may have given up before the guest was called
				<-called
			}
			if e, _ := execFake(t, g, trueSpec, nil); e.GetStatus() != 0 || e.GetCause() != "" {
				t.Errorf("a task meanwhile: %v", e)
			}
			ask, cancel := context.WithTimeout(t.Context(), testPatience)
			defer cancel()
			if err := g.boot.ask(ask, &wire.Control{Kind: &wire.Control_Refresh{Refresh: &wire.Refresh{Path: "/p"}}}); err != nil {
				t.Errorf("the boot stream meanwhile: %v", err)
			}
			h.vm.Kill()
			ended := make(chan struct{})
			go func() { s.close(); close(ended) }()
			select {
			case <-ended:
			case <-time.After(testPatience):
				t.Error("the shares of a guest that is gone do not end")
			}
		})
	}
}

// drip says a length that never ends, byte by byte.
func drip(c net.Conn) {
	for {
		if _, err := c.Write([]byte{0x80}); err != nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// S15's carrier: a flood of streams that do not say for which share they are takes
// up no more than its part, and leaves room for a review. The log has an end.
func TestAttachFlood(t *testing.T) {
	ln := &manyConns{conns: make(chan net.Conn), done: make(chan struct{})}
	var said lineCount
	s := newShares(nil, nil, slog.New(slog.NewTextHandler(&said, nil)), func() {})
	served := make(chan struct{})
	go func() { s.serve(ln); close(served) }()
	var open []net.Conn
	for range 2 * maxShareStreams {
		host, guest := net.Pipe()
		ln.conns <- host
		open = append(open, guest)
	}
	if n := len(s.streams.slots); n > maxAttaching {
		t.Errorf("%d of %d streams are taken by what says nothing", n, maxShareStreams)
	}
	if len(s.attaching) != maxAttaching { // the control
		t.Errorf("%d wait", len(s.attaching))
	}
	for _, c := range open {
		c.Close()
	}
	for i := range 3000 { // wrong names, which are refused at once
		host, guest := net.Pipe()
		ln.conns <- host
		wire.Write(guest, &wire.Attach{Tag: "none"})
		if i == 0 {
			guest.Read(make([]byte, 1)) // until the host ends it
		}
		guest.Close()
	}
	close(ln.done)
	<-served
	s.close()
	if n := said.n.Load(); n == 0 || n > saidOfDropped+20 {
		t.Errorf("%d lines are logged", n)
	}
}

type manyConns struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *manyConns) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *manyConns) Close() error   { return nil }
func (l *manyConns) Addr() net.Addr { return nil }

type lineCount struct{ n atomic.Int64 }

func (l *lineCount) Write(b []byte) (int, error) { l.n.Add(1); return len(b), nil }
