package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/carrel-vm/carrel/guest/egress/link"
	"github.com/carrel-vm/carrel/guest/wire"
)

// outside is a guest's way out, as its keeper sees it: streams that the guest
// opens are handed to the egress process, which alone reads them. The keeper
// dials nothing and resolves nothing. When the egress process ends, the guest
// goes on and reaches nothing.
//
//	hello awaited ──> serving ──> gone
//	      └──────── failure ───────┘
type outside struct {
	link *link.Conn
	log  *slog.Logger
	// tell gets the lines for tasks, one after the other.
	tell func(task, line string)

	heard chan struct{} // closed when trust is whole, or the link is gone
	trust []byte        // set before
	gone  chan struct{} // closed when the egress process is gone

	lines   chan refusal
	streams *bearer
	rest    *rest // held while a stream is open

	mu sync.Mutex
	g  *Guest // takes forwarded connections once it is set
	// open is how many streams the egress process has by its own word, and end ends
	// the hold for all of them.
	open int
	end  func()
	ln   net.Listener // closed when the egress process is gone
	// handed is how many streams it was handed, and clear how many of them when all was
	// told that it had refused, and none was open. asked are those who wait for that.
	handed, clear int64
	asked         []asked
	asks          int64 // so many were sent
	received      int64 // so many messages have come
	mute          bool  // it did not answer, or could not be asked, and nothing has come since

	asking sync.Mutex // held while somebody asks; taken before mu
}

// refusal is a line for a task, or says to who waits that those before it are told.
type refusal struct {
	task, line string
	told       chan struct{}
}

type asked struct {
	number   int64
	clear    int64 // then
	received int64 // then
	told     chan struct{}
}

// Bounds of what a guest and its egress process may ask of the keeper at once.
const (
	// maxStreams is how many streams out of a guest, and connections into it,
	// are carried.
	maxStreams = 1024
	// maxLines is how many refusals wait for their tasks' transcripts.
	maxLines = 256
	// forwardTimeout is how long a guest may take to connect a forwarded
	// connection.
	forwardTimeout = 15 * time.Second
)

func newOutside(l *link.Conn, log *slog.Logger, tell func(task, line string), rest *rest) *outside {
	o := &outside{
		link: l, log: log, tell: tell, heard: make(chan struct{}), gone: make(chan struct{}),
		lines: make(chan refusal, maxLines), streams: newBearer(maxStreams), rest: rest,
	}
	o.streams.carried.Go(func() {
		for r := range o.lines {
			if r.told != nil {
				close(r.told)
				continue
			}
			o.tell(r.task, r.line)
		}
	})
	o.streams.carried.Go(o.listen)
	return o
}

// NoWayOut is what is said of a guest whose egress process ended.
const NoWayOut = "none: the guest's egress process ended, so that it reaches nothing (stop and start the guest)"

// lead makes a guest take the connections that are forwarded into it.
func (o *outside) lead(g *Guest) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.g = g
}

// close ends the link, and with it the egress process, and waits for all that
// was carried.
func (o *outside) close() {
	o.link.Close()
	<-o.gone
	o.streams.close()
}

// listen reads what the egress process says until it is gone.
func (o *outside) listen() {
	defer close(o.lines)
	err := o.read()
	o.log.Info("the egress process is gone", "why", err)
	o.link.Close()
	select {
	case <-o.heard:
	default:
		close(o.heard)
	}
	close(o.gone)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open > 0 {
		o.open = 1
		o.endedLocked()
	}
	o.rest.published(0)
	if o.ln != nil {
		o.ln.Close()
	}
}

func (o *outside) read() error {
	var t link.Trust
	for done := false; !done; {
		m, c, err := o.link.Receive()
		if err != nil {
			return err
		}
		if c != nil {
			c.Close()
		}
		if done, err = t.Add(m); err != nil {
			return err
		}
	}
	o.trust = t.PEM()
	close(o.heard)
	for {
		m, c, err := o.link.Receive()
		if err != nil {
			return err
		}
		o.mu.Lock()
		o.received, o.mute = o.received+1, false
		o.mu.Unlock()
		switch m.Kind {
		case link.Refused:
			select {
			case o.lines <- refusal{task: m.Task, line: wire.Text(m.Line, link.MaxLine)}:
			default: // they are told slowly; carrel egress has all of them
			}
		case link.Forward:
			port := m.Port
			if !o.streams.carry(c, func() { o.forward(c, port) }) {
				c.Close()
			}
		case link.Ended:
			o.mu.Lock()
			o.endedLocked()
			o.mu.Unlock()
		case link.Ports:
			o.rest.published(m.Count)
		case link.Told:
			o.toldUpTo(m.Number)
		default:
			if c != nil {
				c.Close()
			}
			return fmt.Errorf("%w: %s is not for a keeper", link.ErrMessage, m.Kind)
		}
	}
}

// settle returns when all is told that the egress process has refused by now, or after
// toldTimeout and a little more. A task that hears of a refusal may end at once, and its
// transcript with it. One that does not answer is asked no more until it has said
// something.
func (o *outside) settle() {
	if o == nil {
		return
	}
	mine, ok := o.ask()
	if !ok { // no stream was there since the last time, or nobody answers
		return
	}
	timer := time.NewTimer(toldTimeout)
	defer timer.Stop()
	select {
	case <-mine.told:
	case <-o.gone:
	case <-timer.C:
		o.mu.Lock()
		o.mute = o.received == mine.received
		o.mu.Unlock()
	}
}

// ask asks the egress process whether all is told, where there is anything to tell.
func (o *outside) ask() (mine asked, ok bool) {
	o.asking.Lock()
	defer o.asking.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.handed == o.clear || o.mute || len(o.asked) >= MaxTasks {
		return asked{}, false
	}
	o.asks++
	mine = asked{o.asks, o.clear, o.received, make(chan struct{})}
	if o.open == 0 {
		mine.clear = o.handed
	}
	o.asked = append(o.asked, mine)
	o.mu.Unlock()
	err := o.link.Send(&link.Message{Kind: link.Ask, Number: mine.number}, nil)
	o.mu.Lock()
	if err != nil {
		o.asked = slices.DeleteFunc(o.asked, func(a asked) bool { return a == mine })
		o.mute = o.received == mine.received
	}
	return mine, err == nil
}

// toldUpTo is the answer to whoever asked up to this number: what came for one that
// asked later is true for those before, whose answer may have been lost. What was
// refused before it waits in front of it.
func (o *outside) toldUpTo(number int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.asked) > 0 && o.asked[0].number <= number { // else it says what it likes
		a := o.asked[0]
		o.asked = o.asked[1:]
		o.clear = max(o.clear, a.clear)
		select {
		case o.lines <- refusal{told: a.told}:
		default: // they are told slowly: some were dropped
			close(a.told)
		}
	}
}

// trusted waits for what the guest is to trust.
func (o *outside) trusted(ctx context.Context) ([]byte, error) {
	select {
	case <-o.heard:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if o.trust == nil {
		return nil, errors.New("the guest's egress process ended before it said what to trust (see egress.log in the guest's folder)")
	}
	return o.trust, nil
}

// serve hands the guest's streams over until ln is closed, which the driver
// does when the machine ends.
func (o *outside) serve(ln net.Listener) {
	o.mu.Lock()
	o.ln = ln
	o.mu.Unlock()
	select {
	case <-o.gone:
		ln.Close()
	default:
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		if err := o.hand(c); err != nil {
			c.Close()
			if n, say := o.streams.drop(); say {
				o.log.Warn("a stream out of the guest was dropped", "count", n, "error", err)
			}
		}
	}
}

// hand gives one stream to the egress process, which says when it has ended.
func (o *outside) hand(c net.Conn) (err error) {
	o.mu.Lock()
	o.handed++
	if o.open++; o.open == 1 {
		o.end, _ = o.rest.hold() // of a guest that ends it is of no use
	}
	o.mu.Unlock()
	defer func() {
		if err != nil {
			o.mu.Lock()
			o.endedLocked()
			o.mu.Unlock()
		}
	}()
	return o.streams.hand(c, func(theirs syscall.Conn) error { return o.link.Send(&link.Message{Kind: link.Stream}, theirs) })
}

// endedLocked counts the end of a stream. An egress process that says too often
// that one has ended has the guest paused under another: that is its own stream.
func (o *outside) endedLocked() {
	if o.open == 0 {
		return
	}
	if o.open--; o.open == 0 {
		o.end()
		o.end = nil
	}
}

// forward connects c to a port of the guest's loopback and copies.
func (o *outside) forward(c net.Conn, port uint16) {
	defer c.Close()
	o.mu.Lock()
	g := o.g
	o.mu.Unlock()
	if g == nil {
		return
	}
	end, err := g.rest.use(context.Background()) // which is bounded
	if err != nil {
		return
	}
	defer end()
	in, err := g.forward(port)
	if err != nil {
		o.log.Info("forward", "port", port, "error", err)
		return
	}
	join(c, in)
}

// forward dials a port of the guest's loopback.
func (g *Guest) forward(port uint16) (_ net.Conn, err error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), forwardTimeout, errors.New("the guest's agent does not answer"))
	defer cancel()
	conn, err := g.call(ctx, &wire.Call{Kind: &wire.Call_Forward{Forward: &wire.Forward{Port: uint32(port)}}})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	conn.SetDeadline(time.Now().Add(forwardTimeout))
	// What follows the frame is the connection's own: nothing may be read ahead.
	m := new(wire.Forwarded)
	if err := (protodelim.UnmarshalOptions{MaxSize: 2 * wire.MaxText}).UnmarshalFrom(&exactReader{conn}, m); err != nil {
		return nil, fmt.Errorf("the guest's agent did not say whether it connected: %w", err)
	}
	if m.Error != "" {
		return nil, errors.New(wire.Text(m.Error, wire.MaxText))
	}
	conn.SetDeadline(time.Time{})
	return conn, nil
}

// exactReader reads no byte more than it is asked for.
type exactReader struct{ net.Conn }

// ReadByte implements io.ByteReader.
func (r *exactReader) ReadByte() (byte, error) {
	var b [1]byte
	for {
		n, err := r.Read(b[:])
		if n == 1 {
			return b[0], nil
		}
		if err != nil {
			return 0, err
		}
	}
}
