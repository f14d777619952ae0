package guest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/egress/link"
	"github.com/carrel-vm/carrel/guest/wire"
)

// edgeEnd is the other end of a keeper's link, which a test holds.
func edgeEnd(t *testing.T, tell func(task, line string)) (*outside, *link.Conn) {
	t.Helper()
	a, b, err := link.Pair()
	if err != nil {
		t.Fatal(err)
	}
	keeper, err := link.New(a)
	if err != nil {
		t.Fatal(err)
	}
	edge, err := link.New(b)
	if err != nil {
		t.Fatal(err)
	}
	o := newOutside(keeper, slog.New(slog.DiscardHandler), tell, nil)
	t.Cleanup(func() { o.close(); edge.Close() })
	return o, edge
}

// startOutside starts a well-behaved guest with a way out.
func startOutside(t *testing.T, h *hostile, tell func(task, line string)) (*Guest, *outside, *link.Conn) {
	t.Helper()
	o, edge := edgeEnd(t, tell)
	if err := edge.SendTrust([]byte("the guest's authority")); err != nil {
		t.Fatal(err)
	}
	if h.boot == nil {
		h.boot = wellBehaved
	}
	opts := testOptions(t, h)
	opts.Outside = o
	g, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	o.lead(g)
	return g, o, edge
}

// dialOut opens a stream as the guest does and returns both of its ends.
func dialOut(t *testing.T, h *hostile, edge *link.Conn) (guest, outer net.Conn) {
	t.Helper()
	host, guest := net.Pipe()
	h.vm.way <- host
	m, outer, err := edge.Receive()
	if err != nil || m.Kind != link.Stream {
		t.Fatal(m, err)
	}
	t.Cleanup(func() { guest.Close(); outer.Close() })
	return guest, outer
}

// A stream of the guest reaches the egress process with every byte, both ways.
func TestStreamIsHandedOver(t *testing.T) {
	h := &hostile{}
	_, _, edge := startOutside(t, h, nil)
	guest, outer := dialOut(t, h, edge)
	want := make([]byte, 1<<20)
	rand.Read(want)
	for _, way := range []struct{ from, to net.Conn }{{guest, outer}, {outer, guest}} {
		sent := make(chan error, 1)
		go func() { _, err := way.from.Write(want); sent <- err }()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(way.to, got); err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%v, or other bytes", err)
		}
	}
	// The egress process closes: the guest's stream ends as a whole.
	outer.Close()
	guest.SetReadDeadline(time.Now().Add(testPatience))
	if _, err := guest.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("after the egress process closed: %v", err)
	}
}

// The end of a task waits for what was refused to it, which comes by another way, and
// asks only where there may be something.
func TestRefusalsAreWaitedFor(t *testing.T) {
	was := toldTimeout
	toldTimeout = testPatience
	t.Cleanup(func() { toldTimeout = was }) // after the guest is gone
	h := &hostile{}
	lines := make(chan string, 1)
	_, o, edge := startOutside(t, h, func(_, line string) { lines <- line })
	o.settle() // there was no stream, and the first message is one
	_, outer := dialOut(t, h, edge)
	for round := range 2 {
		settled := make(chan struct{})
		go func() { defer close(settled); o.settle() }()
		m, _, err := edge.Receive()
		if err != nil || m.Kind != link.Ask {
			t.Fatalf("round %d: %v %v", round, m, err)
		}
		if err := edge.Send(&link.Message{Kind: link.Refused, Line: "no"}, nil); err != nil {
			t.Fatal(err)
		}
		if round == 1 { // a stream that has ended is asked about once more
			outer.Close()
			if err := edge.Send(&link.Message{Kind: link.Ended}, nil); err != nil {
				t.Fatal(err)
			}
		}
		<-lines
		select {
		case <-settled:
			t.Errorf("round %d: nobody said that this was all", round)
		default:
		}
		if err := edge.Send(&link.Message{Kind: link.Refused, Line: "nor that"}, nil); err != nil {
			t.Fatal(err)
		}
		if err := edge.Send(&link.Message{Kind: link.Told, Number: m.Number}, nil); err != nil {
			t.Fatal(err)
		}
		<-settled
		select {
		case <-lines:
		default:
			t.Errorf("round %d: it does not wait for the last line", round)
		}
	}
	for end := time.Now().Add(testPatience); ; time.Sleep(time.Millisecond) { // its last stream has ended
		o.mu.Lock()
		open := o.open
		o.mu.Unlock()
		if open == 0 || time.Now().After(end) {
			break
		}
	}
	// An answer that nobody asked for is of no use, and one that is lost holds nobody up
	// for whom a later one comes.
	var again sync.WaitGroup
	var m *link.Message
	for range 2 {
		again.Go(o.settle)
		var err error
		if m, _, err = edge.Receive(); err != nil || m.Kind != link.Ask {
			t.Fatal(m, err)
		}
	}
	for _, early := range []link.Message{{Kind: link.Told}, {Kind: link.Refused, Line: "at last"}} {
		if err := edge.Send(&early, nil); err != nil {
			t.Fatal(err)
		}
	}
	<-lines
	o.mu.Lock()
	waiting := len(o.asked)
	o.mu.Unlock()
	if waiting != 2 {
		t.Errorf("%d wait after an answer to nobody", waiting)
	}
	if err := edge.Send(&link.Message{Kind: link.Told, Number: m.Number}, nil); err != nil {
		t.Fatal(err)
	}
	again.Wait()
	o.settle()
	dialOut(t, h, edge) // which is the next message
}

// An egress process that does not answer is waited for once, until it says something.
func TestNoAnswerIsWaitedForOnce(t *testing.T) {
	was := toldTimeout
	toldTimeout = 20 * time.Millisecond
	t.Cleanup(func() { toldTimeout = was }) // after the guest is gone
	h := &hostile{}
	lines := make(chan string, 1)
	_, o, edge := startOutside(t, h, func(_, line string) { lines <- line })
	dialOut(t, h, edge)
	asks := func() int64 {
		o.settle()
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.asks
	}
	for range 3 {
		if n := asks(); n != 1 {
			t.Errorf("it was asked %d times", n)
		}
	}
	if err := edge.Send(&link.Message{Kind: link.Refused, Line: "no"}, nil); err != nil {
		t.Fatal(err)
	}
	<-lines
	if n := asks(); n != 2 { // the control
		t.Errorf("it has said something, and was asked %d times", n)
	}
}

// A stream that is a socket already is handed over itself.
func TestSocketIsHandedOver(t *testing.T) {
	h := &hostile{}
	_, o, edge := startOutside(t, h, nil)
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	h.vm.way <- ours
	_, outer, err := edge.Receive()
	if err != nil {
		t.Fatal(err)
	}
	defer outer.Close()
	if _, err := theirs.Write([]byte("hi")); err != nil {
		t.Fatal(err)
	}
	theirs.CloseWrite()
	if b, err := io.ReadAll(outer); err != nil || string(b) != "hi" {
		t.Fatalf("%q %v", b, err)
	}
	if len(o.streams.slots) != 0 {
		t.Error("the keeper carries what it has handed over")
	}
}

// When the egress process is gone so is the way out, and the guest goes on.
func TestNoWayOutWithoutEdge(t *testing.T) {
	h := &hostile{call: func(c net.Conn, _ int) { started(c); say(c, exit(0, 0)) }}
	g, o, edge := startOutside(t, h, nil)
	guest, outer := dialOut(t, h, edge)
	edge.Close()
	outer.Close() // a process that dies closes all that it had
	<-o.gone
	guest.SetReadDeadline(time.Now().Add(testPatience))
	if _, err := guest.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("a stream of before: %v", err)
	}
	host, late := net.Pipe()
	defer late.Close()
	select {
	case h.vm.way <- host:
		late.SetReadDeadline(time.Now().Add(testPatience))
		if _, err := late.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("a new stream: %v", err)
		}
	case <-time.After(100 * time.Millisecond): // nobody takes it, which is as good
		host.Close()
	}
	if e, _ := execFake(t, g, trueSpec, nil); e.Status != 0 {
		t.Fatalf("the guest ended with it: %v", e)
	}
}

// A start without the egress process's word fails and leaves nothing.
func TestStartNeedsTrust(t *testing.T) {
	o, edge := edgeEnd(t, nil)
	edge.Close()
	h := &hostile{boot: wellBehaved}
	opts := testOptions(t, h)
	opts.Outside = o
	if g, err := Start(t.Context(), opts); err == nil {
		g.Close()
		t.Fatal("a guest started without its egress process")
	} else if !strings.Contains(err.Error(), "egress process ended") {
		t.Fatal(err)
	}
}

// The guest is told what to trust, whom to rewrite and what to set.
func TestSetupOfEgress(t *testing.T) {
	var setup *wire.Setup
	h := &hostile{boot: func(c net.Conn) {
		r := wire.NewReader(c)
		wire.Write(c, &wire.FromGuest{Kind: &wire.FromGuest_Hello{Hello: &wire.Hello{Version: wire.Version}}})
		f := new(wire.FromHost)
		if r.Read(f) != nil {
			return
		}
		setup = f.GetSetup()
		wire.Write(c, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: &wire.Ready{Steering: "nftables: \x1b[31m" + strings.Repeat("x", 1000)}}})
		r.Read(f)
	}}
	o, edge := edgeEnd(t, nil)
	if err := edge.SendTrust([]byte("PEM")); err != nil {
		t.Fatal(err)
	}
	opts := testOptions(t, h)
	opts.Outside, opts.Env, opts.GitHosts = o, []string{"TOKEN=placeholder"}, []string{"github.com"}
	g, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if !setup.Egress || string(setup.Trust) != "PEM" || setup.Env[0] != "TOKEN=placeholder" || setup.GitHosts[0] != "github.com" {
		t.Errorf("%v", setup)
	}
	if len(g.Steering) > 256 || strings.Contains(g.Steering, "\x1b") {
		t.Errorf("the guest's word for its steering is %q", g.Steering)
	}
}

// P10, E34: a guest that opens streams without end gets no more than there are.
func TestStreamsAreBounded(t *testing.T) {
	h := &hostile{}
	_, o, edge := startOutside(t, h, nil)
	for range maxStreams {
		o.streams.slots <- struct{}{}
	}
	host, guest := net.Pipe()
	defer guest.Close()
	h.vm.way <- host
	guest.SetReadDeadline(time.Now().Add(testPatience))
	if _, err := guest.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("one stream too many: %v", err)
	}
	for range maxStreams {
		<-o.streams.slots
	}
	dialOut(t, h, edge) // the control
}

// What an egress process that was taken over sends ends the link.
func TestHostileEdge(t *testing.T) {
	for _, m := range []*link.Message{{Kind: link.Hello, Trust: []byte("again")}, {Kind: link.Stream}} {
		o, edge := edgeEnd(t, func(string, string) {})
		if err := edge.SendTrust(nil); err != nil {
			t.Fatal(err)
		}
		if err := edge.Send(&link.Message{Kind: link.Refused, Line: "control"}, nil); err != nil {
			t.Fatal(err)
		}
		if m.Kind == link.Stream {
			a, b, err := socketPair()
			if err != nil {
				t.Fatal(err)
			}
			edge.Send(m, b)
			a.Close()
			b.Close()
		} else {
			edge.Send(m, nil)
		}
		select {
		case <-o.gone:
		case <-time.After(testPatience):
			t.Fatalf("%s: the link is still there", m.Kind)
		}
	}
}

// Refusals reach whoever they are told to, however many come, and whoever is
// slow to take them holds nobody up.
func TestRefusalsDoNotBlock(t *testing.T) {
	var mu sync.Mutex
	var got []string
	hold := make(chan struct{})
	o, edge := edgeEnd(t, func(task, line string) {
		<-hold
		mu.Lock()
		got = append(got, task+" "+line)
		mu.Unlock()
	})
	if err := edge.SendTrust(nil); err != nil {
		t.Fatal(err)
	}
	for range 4 * maxLines {
		if err := edge.Send(&link.Message{Kind: link.Refused, Task: "T1", Line: "no\x1b way"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	edge.Close()
	<-o.gone // it has read them all
	close(hold)
	o.streams.carried.Wait()
	if len(got) == 0 || len(got) > maxLines+1 || got[0] != "T1 no? way" {
		t.Errorf("%d lines, the first %q", len(got), got[0])
	}
}

// A line of ours stands in the transcript of the task that it is about.
func TestNoticeInSpool(t *testing.T) {
	sp, err := newSpool(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer sp.close()
	live := &task{id: "T", spool: sp, done: make(chan struct{}), now: &api.Task{Id: "T"}, dir: sp.dir}
	k := &Keeper{tasks: map[string]*task{"T": live}, info: &api.Guest{Name: "box"}, log: slog.New(slog.DiscardHandler)}
	for range maxNotices + 10 {
		k.tell("made up", "carrel: egress to x is not allowed") // the only task that runs
	}
	sp.seal()
	var notices []string
	r := sp.reader(0)
	defer r.close()
	close(live.done)
	err = stream(t.Context(), r, &api.AttachOpen{}, live, func(m *api.AttachResponse) error {
		if n := m.GetNotice(); n != "" {
			notices = append(notices, n)
		}
		return nil
	})
	if err != nil || len(notices) != maxNotices || notices[0] != "egress to x is not allowed" || !strings.Contains(notices[maxNotices-1], "carrel egress box") {
		t.Fatalf("%v, %d notices, the last %q", err, len(notices), notices[len(notices)-1])
	}
}

// A full spool with a reader that does not read holds no notice up.
func TestNoticeWaitsForNobody(t *testing.T) {
	sp, err := newSpool(t.TempDir(), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer sp.close()
	r := sp.reader(0)
	defer r.close()
	for range 1000 {
		sp.note(bytes.Repeat([]byte("x"), 1000))
	}
	if n := sp.size(); n > 64<<10 {
		t.Fatalf("the spool has %d bytes", n)
	}
}

// Lines reach the agent's file; an agent that never answers costs nothing else.
func TestRefusalsReachAgent(t *testing.T) {
	got := make(chan []string, 16)
	h := &hostile{boot: func(c net.Conn) {
		r := wire.NewReader(c)
		wire.Write(c, &wire.FromGuest{Kind: &wire.FromGuest_Hello{Hello: &wire.Hello{Version: wire.Version}}})
		if r.Read(new(wire.FromHost)) != nil {
			return
		}
		wire.Write(c, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: &wire.Ready{}}})
		for {
			f := new(wire.FromHost)
			if r.Read(f) != nil {
				return
			}
			if x := f.GetControl().GetRefused(); x != nil {
				got <- x.Lines
			}
			wire.Write(c, &wire.FromGuest{Kind: &wire.FromGuest_Answer{Answer: &wire.Answer{Id: f.GetControl().GetId()}}})
		}
	}}
	g := startFake(t, h)
	for range 2 * maxRefusals {
		g.refusals.add("no")
	}
	total := 0
	for total < maxRefusals {
		select {
		case lines := <-got:
			total += len(lines)
		case <-time.After(testPatience):
			t.Fatalf("%d lines came", total)
		}
	}
	if total > 2*maxRefusals {
		t.Errorf("%d lines", total)
	}
}

// A connection into the guest: the agent says that it connected, and what
// follows that frame is the connection's own, to the byte.
func TestForward(t *testing.T) {
	h := &hostile{call: func(c net.Conn, _ int) {
		call := new(wire.Call)
		if wire.NewReader(c).Read(call) != nil {
			return
		}
		if call.GetForward().GetPort() != 80 {
			wire.Write(c, &wire.Forwarded{Error: "connection refused\x1b"})
			return
		}
		b := &bytes.Buffer{}
		wire.Write(b, &wire.Forwarded{})
		c.Write(append(b.Bytes(), "early"...)) // in one piece
		io.Copy(c, c)
	}}
	g, _, edge := startOutside(t, h, nil)
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if err := edge.Send(&link.Message{Kind: link.Forward, Port: 80}, theirs); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	ours.SetDeadline(time.Now().Add(testPatience))
	b := make([]byte, 5)
	if _, err := io.ReadFull(ours, b); err != nil || string(b) != "early" {
		t.Fatalf("%q %v", b, err)
	}
	if _, err := ours.Write([]byte("again")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(ours, b); err != nil || string(b) != "again" {
		t.Fatalf("%q %v", b, err)
	}
	if _, err := g.forward(81); err == nil || err.Error() != "connection refused?" {
		t.Fatalf("a port that nobody serves: %v", err)
	}
}

// P04: a hostile agent's answer to a forward is bounded and ends only that.
func TestForwardHostile(t *testing.T) {
	for name, answer := range map[string][]byte{
		"nothing": nil, "too large": {0xff, 0xff, 0x7f}, "no message": {3, 0xff, 0xff, 0xff}, "half": {10, 1},
	} {
		h := &hostile{call: func(c net.Conn, _ int) {
			wire.NewReader(c).Read(new(wire.Call))
			c.Write(answer)
		}}
		g := startFake(t, h)
		if c, err := g.forward(80); err == nil {
			c.Close()
			t.Errorf("%s: a connection", name)
		}
		if g.Cause() != "" {
			t.Errorf("%s: the guest ended: %s", name, g.Cause())
		}
	}
}

// Remotes are rewritten for hosts that https reaches and ssh does not.
func TestGitHosts(t *testing.T) {
	allow, deny := api.EgressAction_EGRESS_ACTION_ALLOW, api.EgressAction_EGRESS_ACTION_DENY
	got := gitHosts([]*api.EgressRule{
		{Action: allow, Host: "git.example"}, {Action: allow, Host: "*.wide.example"}, {Action: allow, Host: "192.0.2.1"},
		{Action: allow, Host: "ssh.example", Ports: []uint32{22, 443}}, {Action: allow, Host: "plain.example", Ports: []uint32{80}},
		{Action: deny, Host: "evil.example"}, {Action: allow, Host: "github.com", Ports: []uint32{22}},
	})
	if s := strings.Join(got, " "); s != "bitbucket.org codeberg.org git.example gitlab.com" {
		t.Errorf("%s", s)
	}
}

// join ends both directions when one end fails, and each by itself in order.
func TestJoinHalfClose(t *testing.T) {
	a1, a2, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	b1, b2, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); join(a2, b2) }()
	if _, err := a1.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	a1.(*net.UnixConn).CloseWrite()
	if q, err := io.ReadAll(b1); err != nil || string(q) != "question" {
		t.Fatalf("%q %v", q, err)
	}
	if _, err := b1.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	b1.Close()
	if got, err := io.ReadAll(a1); err != nil || string(got) != "answer" {
		t.Fatalf("%q %v", got, err)
	}
	a1.Close()
	select {
	case <-done:
	case <-time.After(testPatience):
		t.Fatal("join goes on")
	}
}
