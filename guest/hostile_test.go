package guest

import (
	"context"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

var trueSpec = &api.TaskSpec{Argv: []string{"true"}}

// The control of everything below: a guest that keeps the rules.
func TestExecControl(t *testing.T) {
	g := startFake(t, &hostile{call: func(c net.Conn, n int) {
		started(c)
		say(c, &wire.Output{Kind: &wire.Output_Stdout{Stdout: []byte("hello")}})
		say(c, exit(3, 0))
	}})
	if e, out := execFake(t, g, trueSpec, nil); e.Status != 3 || out != "hello" || e.Cause != "" {
		t.Fatalf("%v %q", e, out)
	}
	if g.Cause() != "" {
		t.Fatal(g.Cause())
	}
}

// P04, P03: frames that the rules do not allow here end the guest, and the task
// is interrupted with the reason; it never succeeds.
func TestProtocolViolations(t *testing.T) {
	hello := func(c net.Conn) { started(c) }
	for name, c := range map[string]struct {
		call func(net.Conn)
		want string
	}{
		"exit before start": {func(c net.Conn) { wire.NewReader(c).Read(new(wire.Call)); say(c, exit(0, 0)) }, "before the task started"},
		"output before start": {func(c net.Conn) {
			wire.NewReader(c).Read(new(wire.Call))
			say(c, &wire.Output{Kind: &wire.Output_Stdout{Stdout: []byte("x")}})
		}, "before the task started"},
		"started twice": {func(c net.Conn) {
			hello(c)
			say(c, &wire.Output{Kind: &wire.Output_Started{Started: &wire.Started{}}})
		}, "started twice"},
		"failed after start": {func(c net.Conn) {
			hello(c)
			say(c, &wire.Output{Kind: &wire.Output_Failed{Failed: &wire.Failed{}}})
		}, "cannot fail to start"},
		"empty frame":       {func(c net.Conn) { hello(c); say(c, &wire.Output{}) }, "empty frame"},
		"impossible code":   {func(c net.Conn) { hello(c); say(c, exit(256, 0)) }, "impossible exit"},
		"negative code":     {func(c net.Conn) { hello(c); say(c, exit(-1, 0)) }, "impossible exit"},
		"impossible signal": {func(c net.Conn) { hello(c); say(c, exit(0, 99)) }, "impossible exit"},
		"stdin from nowhere": {func(c net.Conn) {
			hello(c)
			say(c, &wire.Output{Kind: &wire.Output_StdinTaken{StdinTaken: 1}})
		}, "more stdin"},
		"oversized frame": {func(c net.Conn) { hello(c); c.Write([]byte{0xff, 0xff, 0xff, 0xff, 0x0f}) }, "bad frame"},
		"garbage":         {func(c net.Conn) { hello(c); c.Write([]byte{4, 0xff, 0xff, 0xff, 0xff}) }, "bad frame"},
	} {
		t.Run(name, func(t *testing.T) {
			g := startFake(t, &hostile{call: func(conn net.Conn, _ int) {
				c.call(conn)
				conn.Read(make([]byte, 1)) // until the host has had enough
			}})
			e, _ := execFake(t, g, trueSpec, nil)
			if e.Status != StatusOurs || !strings.Contains(e.Cause, c.want) {
				t.Errorf("ending %v, want a cause with %q", e, c.want)
			}
			select {
			case <-g.Gone():
			case <-time.After(testPatience):
				t.Error("the guest lives on")
			}
		})
	}
}

// A stream that ends without its Exit is an interruption, at whatever byte.
func TestTruncated(t *testing.T) {
	g := startFake(t, &hostile{call: func(c net.Conn, n int) {
		started(c)
		switch n {
		case 2:
			say(c, &wire.Output{Kind: &wire.Output_Stdout{Stdout: []byte("half")}})
		case 3:
			c.Write([]byte{10, 0x12})
		}
	}})
	for range 3 {
		if e, _ := execFake(t, g, trueSpec, nil); e.Status != StatusOurs || e.Cause == "" {
			t.Fatalf("%v", e)
		}
	}
}

// P05: a version lie, a second Hello, no Hello: the start fails with the reason.
func TestBootViolations(t *testing.T) {
	hello := func(c net.Conn, v uint32) {
		say(c, &wire.FromGuest{Kind: &wire.FromGuest_Hello{Hello: &wire.Hello{Version: v}}})
	}
	for name, c := range map[string]struct {
		boot func(net.Conn)
		want string
	}{
		"version 2^31": {func(c net.Conn) { hello(c, 1<<31) }, "version"},
		"version 0":    {func(c net.Conn) { hello(c, 0) }, "version"},
		"an older one": {func(c net.Conn) { hello(c, wire.Version-1) }, "carrel image build"},
		"hello twice": {func(c net.Conn) {
			hello(c, wire.Version)
			wire.NewReader(c).Read(new(wire.FromHost))
			hello(c, wire.Version)
		}, "not Ready"},
		"ready first": {func(c net.Conn) {
			say(c, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: &wire.Ready{}}})
		}, "not Hello"},
		"oversized": {func(c net.Conn) { c.Write([]byte{0xff, 0xff, 0xff, 0xff, 0x0f}) }, "bad frame"},
		"closes":    {func(c net.Conn) { c.Close() }, "no Hello"},
		"cannot mount": {func(c net.Conn) {
			hello(c, wire.Version)
			wire.NewReader(c).Read(new(wire.FromHost))
			say(c, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: &wire.Ready{Error: "mount \x1b[2Jshare0"}}})
		}, "mount ?[2Jshare0"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &hostile{boot: c.boot}
			_, err := Start(t.Context(), testOptions(t, h))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
		})
	}
}

// P07: a guest that never says Hello is given up when the caller's time is over.
func TestBootStall(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	h := &hostile{boot: func(c net.Conn) { c.Write([]byte{5}); c.Read(make([]byte, 1)) }}
	if _, err := Start(ctx, testOptions(t, h)); err == nil {
		t.Fatal("started")
	}
}

// P06: output without end, that nobody reads, is bounded on disk and in memory.
func TestFlood(t *testing.T) {
	const total = 64 << 20
	chunk := &wire.Output{Kind: &wire.Output_Stdout{Stdout: make([]byte, wire.DataChunk)}}
	g := startFake(t, &hostile{call: func(c net.Conn, _ int) {
		started(c)
		for n := 0; n < total; n += wire.DataChunk {
			if say(c, chunk) != nil {
				return
			}
		}
		say(c, exit(0, 0))
	}})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	e, out := execFake(t, g, trueSpec, nil) // a spool of 1 MiB
	runtime.GC()
	runtime.ReadMemStats(&after)
	if e.Status != 0 || len(out) > 1<<20 {
		t.Fatalf("%v, %d bytes kept", e, len(out))
	}
	if grew := int64(after.HeapInuse) - int64(before.HeapInuse); grew > 8<<20 {
		t.Fatalf("the heap grew by %d bytes", grew)
	}
}

// A task that does not read its stdin cannot hold up a signal.
func TestSignalPassesStdin(t *testing.T) {
	g := startFake(t, &hostile{call: func(c net.Conn, _ int) {
		r := wire.NewReader(c)
		r.Read(new(wire.Call))
		say(c, &wire.Output{Kind: &wire.Output_Started{Started: &wire.Started{}}})
		stdin := 0
		for {
			f := new(wire.Input)
			if r.Read(f) != nil {
				return
			}
			stdin += len(f.GetStdin())
			if f.GetSignal() != nil {
				if stdin > wire.StdinWindow {
					say(c, exit(1, 0))
				}
				say(c, exit(0, f.GetSignal().Number))
				return
			}
		}
	}})
	in := newInput()
	ctx, cancel := context.WithCancel(t.Context())
	full := make(chan struct{})
	go func() {
		defer close(full)
		for in.write(ctx, make([]byte, 32<<10)) == nil {
		}
	}()
	in.signal(15)
	e, _ := execFake(t, g, trueSpec, in)
	cancel()
	<-full
	if e.Status != 128+15 || e.Signal != 15 {
		t.Fatalf("%v", e)
	}
}

// The time limit ends a task that does not end.
func TestTimeLimit(t *testing.T) {
	g := startFake(t, &hostile{call: func(c net.Conn, _ int) { started(c); c.Read(make([]byte, 1)) }})
	e, _ := execFake(t, g, &api.TaskSpec{Argv: []string{"sleep"}, TimeoutNanos: int64(50 * time.Millisecond)}, nil)
	if e.Status != StatusTimeout || !e.TimedOut {
		t.Fatalf("%v", e)
	}
	if g.Cause() != "" {
		t.Fatalf("the guest suffered: %s", g.Cause())
	}
}

// Stop keeps its bound whatever the guest does (F23).
func TestStopOfADeafGuest(t *testing.T) {
	block := make(chan struct{})
	g := startFake(t, &hostile{boot: func(c net.Conn) {
		say(c, &wire.FromGuest{Kind: &wire.FromGuest_Hello{Hello: &wire.Hello{Version: wire.Version}}})
		wire.NewReader(c).Read(new(wire.FromHost))
		say(c, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: &wire.Ready{}}})
		<-block
	}})
	t.Cleanup(func() { close(block) }) // before the guest's own cleanup, which waits
	g.disk = false                     // or it would have StopFlush more
	g.Stop(100 * time.Millisecond)
}

// A machine that was asked to end is not ended under its agent's last words: its disk
// may take a while to close after them. The control is an agent that nobody asked.
func TestStopIsWaitedFor(t *testing.T) {
	was := agentGone
	agentGone = time.Millisecond
	t.Cleanup(func() { agentGone = was }) // after the guests are gone
	for _, asked := range []bool{true, false} {
		h := new(hostile)
		h.boot = func(c net.Conn) {
			r := wire.NewReader(c)
			say(c, &wire.FromGuest{Kind: &wire.FromGuest_Hello{Hello: &wire.Hello{Version: wire.Version}}})
			r.Read(new(wire.FromHost))
			say(c, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: &wire.Ready{}}})
			for f := new(wire.FromHost); asked && f.GetControl().GetPowerOff() == nil; {
				if f.Reset(); r.Read(f) != nil {
					return
				}
				say(c, &wire.FromGuest{Kind: &wire.FromGuest_Answer{Answer: &wire.Answer{Id: f.GetControl().GetId()}}})
			}
			c.Close()
			select {
			case <-h.vm.gone:
			case <-time.After(200 * time.Millisecond): // its disk is closed
				if asked {
					h.vm.Kill()
				}
			}
		}
		g := startFake(t, h)
		if asked {
			g.Stop(time.Second)
		}
		<-g.Gone()
		if c := g.Cause(); (c == "") != asked {
			t.Errorf("asked to end %v: the cause is %q", asked, c)
		}
	}
}

// A machine that ends and was not asked to is never taken for one that ended in
// order, though its driver saw nothing wrong.
func TestEndNobodyAskedFor(t *testing.T) {
	h := new(hostile)
	g := startFake(t, h)
	h.vm.Kill()
	<-g.Gone()
	if g.Cause() == "" {
		t.Error("no cause is told")
	}
	g = startFake(t, new(hostile)) // the control
	g.Stop(time.Millisecond)
	if c := g.Cause(); c != "" {
		t.Errorf("a stop has the cause %q", c)
	}
	g = startFake(t, new(hostile))
	if err := g.Close(); err != nil || g.Cause() != "" {
		t.Errorf("%v, %q", err, g.Cause())
	}
}

// P13, A copy's names are the guest's word: each that could leave the copy is
// refused. The control is the one that could not.
func TestCopyNames(t *testing.T) {
	ok := func(n string) error {
		return new(copyState).entry(&wire.File{Name: n, Type: wire.FileType_FILE_TYPE_REGULAR})
	}
	for _, n := range []string{"a", "a/b", "a..b", "..a", "a/..b", `a\b`, `\`} {
		if err := ok(n); err != nil {
			t.Errorf("control %q: %v", n, err)
		}
	}
	for _, n := range []string{"", ".", "..", "../x", "/x", "a/../../x", "a//b", "a/", "./a", "a\x00"} {
		if ok(n) == nil {
			t.Errorf("%q was taken", n)
		}
	}
	c := new(copyState)
	if err := c.entry(&wire.File{Name: "a", Type: wire.FileType_FILE_TYPE_REGULAR, Size: 2}); err != nil {
		t.Fatal(err)
	}
	if c.data(3) == nil {
		t.Error("more bytes than announced were taken")
	}
	for _, f := range []*wire.File{
		{Name: "a", Type: wire.FileType_FILE_TYPE_REGULAR, Mode: 0o4755},
		{Name: "a", Type: wire.FileType_FILE_TYPE_REGULAR, Size: -1},
		{Name: "a", Type: 9},
		{Name: "a"},
		{Name: "a", Type: wire.FileType_FILE_TYPE_SYMLINK},
		{Name: "a", Type: wire.FileType_FILE_TYPE_DIRECTORY, Size: 1},
	} {
		if new(copyState).entry(f) == nil {
			t.Errorf("%v was taken", f)
		}
	}
}

// F05: a guest that hangs with a task gives no sign of life; the task ends.
func TestHungGuest(t *testing.T) {
	was := [2]time.Duration{pingEvery, pingDeath}
	pingEvery, pingDeath = 20*time.Millisecond, 200*time.Millisecond
	block := make(chan struct{})
	t.Cleanup(func() { pingEvery, pingDeath = was[0], was[1] }) // after the guest is gone
	g := startFake(t, &hostile{
		boot: func(c net.Conn) {
			say(c, &wire.FromGuest{Kind: &wire.FromGuest_Hello{Hello: &wire.Hello{Version: wire.Version}}})
			r := wire.NewReader(c)
			r.Read(new(wire.FromHost))
			say(c, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: &wire.Ready{}}})
			<-block // hung
		},
		call: func(c net.Conn, _ int) { started(c); <-block },
	})
	t.Cleanup(func() { close(block) }) // before the guest's own cleanup, which waits
	e, _ := execFake(t, g, trueSpec, nil)
	if e.Status != StatusOurs || !strings.Contains(e.Cause, "no sign of life") {
		t.Fatalf("%v", e)
	}
}

// P16: what no guest could run is refused before it is recorded.
func TestTaskCheck(t *testing.T) {
	for _, ok := range []*api.TaskSpec{
		{Argv: []string{"true"}}, {Argv: []string{"--", "-rf", "a\nb", ""}, Env: []string{"A=", "B=c=d"}, Workdir: "/x", User: "0"},
	} {
		if err := checkTask(ok); err != nil {
			t.Errorf("control %v: %v", ok, err)
		}
	}
	for _, bad := range []*api.TaskSpec{
		nil, {}, {Argv: []string{""}}, {Argv: []string{"a\x00b"}}, {Argv: []string{"\xff"}}, {Argv: []string{"a"}, Workdir: "rel"},
		{Argv: []string{"a"}, Env: []string{"NOVALUE"}}, {Argv: []string{"a"}, Env: []string{"=x"}}, {Argv: []string{"a"}, User: "-x"},
		{Argv: []string{"a"}, User: "a b"}, {Argv: []string{"a", strings.Repeat("x", 2<<20)}}, {Argv: make([]string, 5000)},
		{Argv: []string{"a"}, TimeoutNanos: -1},
	} {
		if checkTask(bad) == nil {
			t.Errorf("%.100v was taken", bad)
		}
	}
}

// A reader that does not read holds up the guest, and not its end.
func TestStalledReaderAndStop(t *testing.T) {
	chunk := &wire.Output{Kind: &wire.Output_Stdout{Stdout: make([]byte, wire.DataChunk)}}
	// One more piece than there is room for has reached the keeper.
	const room = 1 << 20 / (wire.DataChunk + pieceHead)
	full := make(chan struct{})
	g := startFake(t, &hostile{call: func(c net.Conn, _ int) {
		started(c)
		for n := 0; say(c, chunk) == nil; n++ {
			if n == room {
				close(full)
			}
		}
	}})
	sp, err := newSpool(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer sp.close()
	r := sp.reader(0)
	defer r.close()
	done := make(chan *api.Ending, 1)
	go func() { done <- g.Exec(context.Background(), "T", trueSpec, sp, newInput()) }()
	<-full
	select {
	case e := <-done:
		t.Fatalf("control: the task did not wait for its reader: %v", e)
	default:
	}
	g.vm.Kill()
	select {
	case e := <-done:
		if e.Status != StatusOurs {
			t.Fatalf("%v", e)
		}
	case <-time.After(testPatience):
		t.Fatal("the task waits for a reader although its guest is gone")
	}
}
