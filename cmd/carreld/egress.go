package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/egress"
	"github.com/carrel-vm/carrel/guest/egress/link"
	"github.com/carrel-vm/carrel/guest/inherit"
)

// runEgress is a guest's egress process: its request is on descriptor 3, its
// link to the keeper on 4, its first word goes to 5. It lives as long as the
// keeper's end of the link.
func runEgress(args []string) error {
	in, lk, out := requestOf(args), inherit.Take(4, "link"), inherit.File(5, "word")
	err := func() error {
		req, err := guest.ReadEdgeRequest(in)
		in.Close()
		if err != nil {
			return err
		}
		if err := enterEgress(args, req); err != nil {
			return fmt.Errorf("confine the egress process: %w", err)
		}
		l, err := link.New(lk)
		if err != nil {
			return err
		}
		defer l.Close()
		wanted := func() error {
			if _, err := io.WriteString(out, " "); err != nil { // before its word, where it says nothing
				return fmt.Errorf("the daemon that started this egress process is gone: %w", err)
			}
			return nil
		}
		return serveEgress(req, l, wanted, func() {
			fmt.Fprintln(out, "serving")
			out.Close()
		})
	}()
	if err != nil {
		fmt.Fprintln(out, err) // nobody reads it once we served
	}
	return err
}

// serveEgress lets one guest out:
//
//  1. everything that needs the host is opened: the audit log, the roots that this
//     host has of its own, and the daemon's socket, unless that has died meanwhile:
//     the next one may have an egress process for the guest there, and a keeper that
//     it has adopted already gives its start up
//  2. the process confines itself; a failure ends it before a byte of the guest
//  3. the keeper hears what the guest is to trust, the daemon that we serve
//  4. streams come over the link until the keeper is gone; with the first come
//     the roots by which servers are verified, for which no start need wait: if
//     they cannot be read, nothing is let out
func serveEgress(req guest.EdgeRequest, l *link.Conn, wanted func() error, ready func()) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGHUP)
	plain := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	log := plain.With("guest", req.Guest)

	rec, err := openRecord(req.Audit, log)
	if err != nil {
		return err
	}
	defer rec.close()
	if err := rec.hide(req.Configure.GetSecrets()); err != nil {
		return err
	}
	own, err := ownRoots()
	if err != nil {
		return err
	}
	t := newTeller(l)
	srv, err := egress.New(egress.Options{Guest: req.Guest, Log: plain, Record: rec.event, Refused: t.tell})
	if err != nil {
		return err
	}
	defer srv.Close()
	if _, err := srv.Configure(req.Configure); err != nil {
		return err
	}
	if err := wanted(); err != nil {
		return err
	}
	ln, err := guest.ListenPrivate(req.Socket)
	if err != nil {
		return err
	}
	defer ln.Close()
	if err := confineEgress(req.Audit); err != nil {
		return fmt.Errorf("confine the egress process: %w", err)
	}
	if err := l.SendTrust(append(srv.Trust(), own...)); err != nil {
		return fmt.Errorf("tell the keeper what to trust: %w", err)
	}

	mux := http.NewServeMux()
	mux.Handle(apiconnect.NewEdgeServiceHandler(&edgeService{srv: srv, link: l, rec: rec},
		connect.WithHandlerOptions(connect.WithReadMaxBytes(16<<20), connect.WithCompressMinBytes(1<<30))))
	calls := guest.NewServer(api.Socket_SOCKET_EDGE, mux)
	var all sync.WaitGroup
	all.Go(func() { calls.Serve(ln) })
	all.Go(t.run)
	ready()

	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(ctx, func() { l.Close() })
	roots := sync.OnceValue(readRoots)
	err = takeStreams(ctx, l, &all, t.told, func(ctx context.Context, c net.Conn) {
		if err := roots(); err != nil {
			log.Error("nothing can be reached", "error", err)
			c.Close()
			l.Close()
			return
		}
		srv.Serve(ctx, c)
		l.Send(&link.Message{Kind: link.Ended}, nil) // or the keeper is gone, and with it who counts
	})
	cancel()
	log.Info("the way out is closed", "why", err)
	t.close()
	srv.Close()
	sctx, scancel := context.WithTimeout(context.Background(), time.Second)
	defer scancel()
	if calls.Shutdown(sctx) != nil {
		calls.Close()
	}
	all.Wait()
	return nil
}

// takeStreams serves what the keeper hands over until the link ends; asked is called
// when it asks whether all refusals are told.
func takeStreams(ctx context.Context, l *link.Conn, all *sync.WaitGroup, asked func(number int64), serve func(context.Context, net.Conn)) error {
	for {
		m, c, err := l.Receive()
		if err != nil {
			return err
		}
		if m.Kind == link.Ask {
			asked(m.Number)
			continue
		}
		if m.Kind != link.Stream {
			if c != nil {
				c.Close()
			}
			return fmt.Errorf("%w: %s is not for an egress process", link.ErrMessage, m.Kind)
		}
		all.Go(func() { serve(ctx, c) })
	}
}

// teller hands refusals to the keeper without ever holding up a connection.
type teller struct {
	link  *link.Conn
	lines chan link.Message
	done  chan struct{}
	once  sync.Once
}

// maxTold is how many refusals wait for the keeper; more are dropped, as they
// are in the audit log and in what carrel egress shows.
const maxTold = 256

func newTeller(l *link.Conn) *teller {
	return &teller{link: l, lines: make(chan link.Message, maxTold), done: make(chan struct{})}
}

func (t *teller) tell(task, line string) {
	if len(line) > link.MaxLine {
		line = line[:link.MaxLine]
	}
	select {
	case t.lines <- link.Message{Kind: link.Refused, Task: task, Line: line}:
	default:
	}
}

// told says that all refusals of before are told, behind them.
func (t *teller) told(number int64) {
	select {
	case t.lines <- link.Message{Kind: link.Told, Number: number}:
	case <-t.done:
	}
}

func (t *teller) run() {
	for {
		select {
		case m := <-t.lines:
			if err := t.link.Send(&m, nil); errors.Is(err, link.ErrMessage) {
				m.Task = "" // the guest's word for it, and none
				t.link.Send(&m, nil)
			}
		case <-t.done:
			return
		}
	}
}

func (t *teller) close() { t.once.Do(func() { close(t.done) }) }
