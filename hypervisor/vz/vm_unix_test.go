//go:build unix

package vz

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

// patience is how long a test waits for what must come. It bounds nothing that is
// tested.
const patience = 5 * time.Minute

// fake is a machine with the module's habits: calls that may hang, an Accept that
// does not return after Close, a Stop that is refused in most states.
type fake struct {
	t      *testing.T
	states chan State

	mu       sync.Mutex
	state    State
	calls    []string
	ports    map[uint32]*fakePort
	start    func() error // nil: it runs
	stop     func() error // nil: it stops
	request  func() error // nil: it is ignored
	connect  func(port uint32) (stream, error)
	restored string
}

func newFake(t *testing.T) *fake {
	return &fake{t: t, states: make(chan State, 100), ports: map[uint32]*fakePort{}}
}

// become changes the state, as the machine itself may.
func (f *fake) become(ss ...State) {
	for _, s := range ss {
		f.mu.Lock()
		f.state = s
		f.mu.Unlock()
		f.states <- s
	}
}

func (f *fake) called(what string) State {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, what)
	return f.state
}

func (f *fake) count(what string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == what {
			n++
		}
	}
	return n
}

func (f *fake) Start() error {
	f.called("start")
	if f.start != nil {
		if err := f.start(); err != nil {
			return err
		}
	}
	f.become(Between, Running)
	return nil
}

func (f *fake) Stop() error {
	if s := f.called("stop"); s != Running && s != Paused {
		return errors.New("invalid state transition")
	}
	if f.stop != nil {
		if err := f.stop(); err != nil {
			return err
		}
	}
	f.become(Between, Stopped)
	return nil
}

func (f *fake) Pause() error {
	if f.called("pause") != Running {
		return errors.New("invalid state transition")
	}
	f.become(Between, Paused)
	return nil
}

func (f *fake) Resume() error {
	if f.called("resume") != Paused {
		return errors.New("invalid state transition")
	}
	f.become(Between, Running)
	return nil
}

func (f *fake) RequestStop() error {
	f.called("request")
	if f.request != nil {
		return f.request()
	}
	return nil
}

func (f *fake) Save(path string) error {
	if f.called("save") != Paused {
		return errors.New("invalid state transition")
	}
	return os.WriteFile(path, []byte("memory"), 0o644)
}

func (f *fake) Restore(path string) error {
	f.called("restore")
	b, err := os.ReadFile(path)
	f.restored = string(b)
	if err == nil {
		f.become(Between, Paused)
	}
	return err
}

func (f *fake) States() <-chan State { return f.states }

func (f *fake) Connect(port uint32) (stream, error) {
	f.called("connect")
	if f.connect == nil {
		return nil, errors.New("connection reset by peer")
	}
	return f.connect(port)
}

func (f *fake) Listen(port uint32) (acceptor, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state != Running && f.state != Paused {
		return nil, errors.New("the machine does not run")
	}
	p := &fakePort{dialed: make(chan stream)}
	f.ports[port] = p
	return p, nil
}

// dial is the guest's dial; nil means that nobody took it.
func (f *fake) dial(port uint32) *net.UnixConn {
	f.t.Helper()
	f.mu.Lock()
	p := f.ports[port]
	f.mu.Unlock()
	if p == nil {
		return nil
	}
	ours, theirs := pair(f.t)
	select {
	case p.dialed <- ours:
	case <-time.After(patience):
		f.t.Fatal("nobody accepts for the machine")
	}
	return theirs
}

type fakePort struct {
	dialed chan stream
	mu     sync.Mutex
	closed int
}

func (p *fakePort) Accept() (stream, error) { return <-p.dialed, nil } // whatever Close does
func (p *fakePort) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed++
	return nil
}

func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var cs [2]*net.UnixConn
	for i, fd := range fds {
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "stream")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		cs[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return cs[0], cs[1]
}

// made is a VM over a fake.
type made struct {
	*VM
	f       *fake
	printed *printed
}

type printed struct {
	mu sync.Mutex
	b  []byte
}

func (p *printed) add(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.b = append(p.b, b...)
}

func (p *printed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.b)
}

func newMade(t *testing.T, f *fake) made {
	t.Helper()
	h := host(ARM64, 14, 0)
	plan, err := MakePlan(config(scratch), h)
	if err != nil {
		t.Fatal(err)
	}
	pp, err := newPipes()
	if err != nil {
		t.Fatal(err)
	}
	p := new(printed)
	v := newVM(plan, h, hypervisor.Handlers{Console: p.add}, f, pp)
	v.identity = []byte("an identifier")
	t.Cleanup(func() { v.Close() })
	return made{v, f, p}
}

func (m made) run(t *testing.T) {
	t.Helper()
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// within fails the test when f does not return.
func within[T any](t *testing.T, what string, f func() T) T {
	t.Helper()
	got := make(chan T, 1)
	go func() { got <- f() }()
	select {
	case v := <-got:
		return v
	case <-time.After(patience):
		t.Fatalf("%s does not return", what)
		panic("unreachable")
	}
}

func TestLife(t *testing.T) {
	m := newMade(t, newFake(t))
	if _, err := m.Dial(t.Context(), 64); !errors.Is(err, hypervisor.ErrNotReady) {
		t.Errorf("dial before the start: %v", err)
	}
	boot, err := m.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Listen(1); err == nil {
		t.Error("one port was given twice")
	}
	m.run(t)
	if err := m.Start(t.Context()); err == nil {
		t.Error("started twice")
	}
	m.f.connect = func(uint32) (stream, error) {
		ours, theirs := pair(t)
		go func() {
			io.Copy(theirs, theirs)
			theirs.CloseWrite()
		}()
		return ours, nil
	}
	// What the framework does before the guest's vsock driver is up is not known.
	if _, err := m.Dial(t.Context(), 64); !errors.Is(err, hypervisor.ErrNotReady) || m.f.count("connect") != 0 {
		t.Errorf("dial before the guest did: %v, after %d connects", err, m.f.count("connect"))
	}
	guest := m.f.dial(1)
	host, err := boot.Accept()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(guest, "hello")
	b := make([]byte, 5)
	if _, err := io.ReadFull(host, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	// Streams half-close.
	c, err := m.Dial(t.Context(), 64)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "one")
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(c, "two"); err == nil {
		t.Error("a write after CloseWrite")
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "one" {
		t.Errorf("%q, %v", got, err)
	}
	for range 2 {
		if err := m.Pause(t.Context()); err != nil {
			t.Error(err)
		}
		if err := m.Resume(t.Context()); err != nil {
			t.Error(err)
		}
	}
	m.Kill()
	if err := within(t, "Wait", m.Wait); err != nil {
		t.Errorf("a killed guest: %v", err)
	}
	if n := m.f.count("stop"); n != 1 {
		t.Errorf("stopped %d times", n)
	}
	for name, s := range map[string]net.Conn{"accepted": host, "dialled": c} {
		if _, err := s.Read(b); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the %s stream outlives its guest: %v", name, err)
		}
	}
	if _, err := m.Dial(t.Context(), 64); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("dial after the end: %v", err)
	}
	if _, err := m.Listen(2); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("listen after the end: %v", err)
	}
	if err := m.Pause(t.Context()); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("pause after the end: %v", err)
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestNeverStarted(t *testing.T) {
	m := newMade(t, newFake(t))
	ln, err := m.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	if _, err := ln.Accept(); err == nil {
		t.Error("a listener of a closed guest accepts")
	}
	if err := m.Wait(); err != nil {
		t.Error(err)
	}
	if err := m.Start(t.Context()); !errors.Is(err, hypervisor.ErrGone) || m.f.count("start") != 0 {
		t.Errorf("started after Close: %v", err)
	}
}

// TestAcceptAfterClose: the framework's Accept stays where it is, ours returns, and
// what comes late is closed.
func TestAcceptAfterClose(t *testing.T) {
	m := newMade(t, newFake(t))
	ln, err := m.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	m.run(t)
	waiting := m.f.dial(1) // accepted by nobody
	got := make(chan error, 1)
	other, err := m.Listen(2)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, err := other.Accept(); got <- err }()
	ln.Close()
	other.Close()
	if err := within(t, "Accept", func() error { return <-got }); !errors.Is(err, net.ErrClosed) {
		t.Errorf("an Accept that waited: %v", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("an Accept after Close: %v", err)
	}
	late := m.f.dial(1) // the framework had it already
	for name, c := range map[string]net.Conn{"waiting": waiting, "late": late} {
		if err := within(t, "a read", func() error { _, err := c.Read(make([]byte, 1)); return err }); err == nil {
			t.Errorf("the %s stream is open", name)
		}
	}
	if again, err := m.Listen(1); err != nil {
		t.Errorf("a port that is free again: %v", err)
	} else if c := m.f.dial(1); c == nil {
		t.Error("nobody listens on it")
	} else if _, err := again.Accept(); err != nil {
		t.Error(err)
	}
	if n := m.f.ports[2].closed; n != 1 {
		t.Errorf("the framework's listener was closed %d times", n)
	}
}

// TestFlood: what nobody accepts is bounded, and what is open altogether too.
func TestFlood(t *testing.T) {
	m := newMade(t, newFake(t))
	ln, err := m.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	m.run(t)
	var dialed []*net.UnixConn
	for range backlog + 10 {
		dialed = append(dialed, m.f.dial(1))
	}
	for _, c := range dialed[backlog:] {
		if err := within(t, "a read", func() error { _, err := c.Read(make([]byte, 1)); return err }); err == nil {
			t.Error("a stream beyond the backlog is open")
		}
	}
	for range backlog {
		if _, err := ln.Accept(); err != nil { // the control: these are there
			t.Fatal(err)
		}
	}
	for range maxStreams - backlog {
		m.f.dial(1)
		if _, err := ln.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	over := m.f.dial(1)
	if err := within(t, "a read", func() error { _, err := over.Read(make([]byte, 1)); return err }); err == nil {
		t.Error("a stream beyond the bound is open")
	}
	m.f.connect = func(uint32) (stream, error) { ours, _ := pair(t); return ours, nil }
	if _, err := m.Dial(t.Context(), 64); err == nil || !strings.Contains(err.Error(), "1024 streams") {
		t.Errorf("a dial beyond the bound: %v", err)
	}
}

// reached makes a guest that can be dialled.
func reached(t *testing.T) made {
	t.Helper()
	m := newMade(t, newFake(t))
	ln, err := m.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	m.run(t)
	m.f.dial(1)
	if _, err := ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestDialHangs(t *testing.T) {
	m := reached(t)
	answer, late := make(chan struct{}), make(chan *net.UnixConn, 1)
	m.f.connect = func(uint32) (stream, error) {
		<-answer
		ours, theirs := pair(t)
		late <- theirs
		return ours, nil
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	got := make(chan error, 1)
	go func() { _, err := m.Dial(ctx, 64); got <- err }()
	cancel(why)
	if err := within(t, "Dial", func() error { return <-got }); !errors.Is(err, why) && !errors.Is(err, context.Canceled) {
		t.Errorf("a dial without an answer: %v", err)
	}
	close(answer)
	c := within(t, "the framework", func() *net.UnixConn { return <-late })
	if err := within(t, "a read", func() error { _, err := c.Read(make([]byte, 1)); return err }); err == nil {
		t.Error("a stream that came too late is open")
	}
}

func TestDialsAreBounded(t *testing.T) {
	m := reached(t)
	answer := make(chan struct{})
	m.f.connect = func(uint32) (stream, error) { <-answer; return nil, errors.New("reset") }
	var all sync.WaitGroup
	for range maxDialing {
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // the call goes on in the framework
		all.Go(func() { m.Dial(ctx, 64) })
	}
	all.Wait()
	if _, err := m.Dial(t.Context(), 64); err == nil || !strings.Contains(err.Error(), "64 calls wait") {
		t.Errorf("one dial too many: %v", err)
	}
	close(answer)
	for len(m.streams.dialing) > 0 {
		runtime.Gosched()
	}
	if _, err := m.Dial(t.Context(), 64); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("a dial after they were answered: %v", err)
	}
}

func TestKillWhileStarting(t *testing.T) {
	m := newMade(t, newFake(t))
	begun, goOn := make(chan struct{}), make(chan struct{})
	m.f.start = func() error { close(begun); <-goOn; return nil }
	got := make(chan error, 1)
	go func() { got <- m.Start(t.Context()) }()
	<-begun
	m.Kill()
	if n := m.f.count("stop"); n != 0 {
		t.Errorf("stopped %d times while it started, which the framework refuses", n)
	}
	close(goOn)
	if err := within(t, "Start", func() error { return <-got }); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("a start that was killed: %v", err)
	}
	if err := m.Wait(); err != nil || m.f.count("stop") != 1 {
		t.Errorf("%v after %d stops", err, m.f.count("stop"))
	}
}

// TestStopIsRefused: it is asked again when the state is another.
func TestStopIsRefused(t *testing.T) {
	m := newMade(t, newFake(t))
	m.run(t)
	tried := make(chan struct{}, 10)
	refuse := true
	m.f.stop = func() error {
		tried <- struct{}{}
		if refuse {
			refuse = false
			return errors.New("invalid state transition")
		}
		return nil
	}
	m.Kill()
	<-tried
	m.f.become(Between, Paused)
	if err := within(t, "Wait", m.Wait); err != nil || m.f.count("stop") != 2 {
		t.Errorf("%v after %d stops", err, m.f.count("stop"))
	}
}

func TestStopHangs(t *testing.T) {
	m := newMade(t, newFake(t))
	m.stopTimeout = time.Millisecond // it never stops, however long one waits
	m.run(t)
	m.f.stop = func() error { select {} }
	ln, err := m.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	m.end(&hypervisor.GoneError{Cause: "a test"})
	var gone *hypervisor.GoneError
	if err := within(t, "Wait", m.Wait); !errors.As(err, &gone) || gone.Cause != "a test" {
		t.Errorf("%v", err)
	}
	if _, err := ln.Accept(); err == nil {
		t.Error("its listener accepts")
	}
}

func TestStartFails(t *testing.T) {
	m := newMade(t, newFake(t))
	m.f.start = func() error {
		m.f.become(Between, Failed)
		return &hypervisor.Error{Op: "start the machine", Err: errors.New("no"), Cure: "sign it"}
	}
	var he *hypervisor.Error
	if err := within(t, "Start", func() error { return m.Start(t.Context()) }); !errors.As(err, &he) || he.Cure != "sign it" {
		t.Errorf("%v", err)
	}
	m.Wait()
	if m.f.count("stop") != 0 {
		t.Error("what never ran was stopped")
	}
}

func TestStartHangs(t *testing.T) {
	m := newMade(t, newFake(t))
	m.stopTimeout = time.Millisecond
	m.f.start = func() error { select {} }
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough of it"))
	if err := within(t, "Start", func() error { return m.Start(ctx) }); err == nil || !strings.Contains(err.Error(), "enough of it") {
		t.Errorf("%v", err)
	}
	within(t, "Wait", m.Wait)
}

func TestReplacedFolder(t *testing.T) {
	m := newMade(t, newFake(t))
	m.still = func() error { return errors.New("share /s was replaced") }
	if err := m.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "replaced") {
		t.Errorf("%v", err)
	}
	if m.Wait(); m.f.count("stop") != 1 {
		t.Error("the machine runs on")
	}
}

func TestEndings(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(made)
		want string // empty: in order
	}{
		"power-off": {func(m made) { m.f.become(Between, Stopped) }, ""},
		"an error":  {func(m made) { m.f.become(Failed) }, "error of its own"},
		"a panic": {func(m made) {
			io.WriteString(m.pipes.write, "Kernel panic - not syncing: Attempted to kill init!\x1b[2J\r\n")
		}, `the guest ended itself: Kernel panic - not syncing: Attempted to kill init!\x1b[2J`},
		"a panic in parts": {func(m made) {
			for _, s := range []string{"x Kernel pa", "nic - not sync", "ing: y", "\n"} {
				io.WriteString(m.pipes.write, s)
			}
		}, "not syncing: y"},
		"a panic without an end": {func(m made) { io.WriteString(m.pipes.write, "Kernel panic - not syncing: "+strings.Repeat("z", 1000)) }, "zzzz"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMade(t, newFake(t))
			m.run(t)
			tc.end(m)
			err := within(t, "Wait", m.Wait)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
	// And what is no panic ends nothing.
	m := newMade(t, newFake(t))
	m.run(t)
	io.WriteString(m.pipes.write, "Kernel panic - not syncin\ng: no\n")
	m.f.become(Between, Stopped)
	if err := within(t, "Wait", m.Wait); err != nil {
		t.Error(err)
	}
}

// TestConsole: the framework holds the descriptors, not the files, and its side
// stays open after the end.
func TestConsole(t *testing.T) {
	m := newMade(t, newFake(t))
	write, err := unix.Dup(int(m.pipes.write.Fd())) // as the framework's own process has it
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(write)
	raw := int(m.pipes.write.Fd())
	m.run(t)
	for range 3 {
		runtime.GC() // would close a file that nobody holds
	}
	if _, err := unix.Write(raw, []byte("first ")); err != nil {
		t.Fatalf("the file was let go of while the guest runs: %v", err)
	}
	m.f.stop = func() error {
		unix.Write(write, []byte("last")) // at the end, and unread so far
		return nil
	}
	m.Kill()
	within(t, "Wait", m.Wait)
	if got := m.printed.String(); got != "first last" {
		t.Errorf("printed %q", got)
	}
	if _, err := m.pipes.write.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file is open after the end: %v", err)
	}
}

func TestShutdown(t *testing.T) {
	t.Run("obeyed", func(t *testing.T) {
		m := newMade(t, newFake(t))
		m.run(t)
		m.f.request = func() error { m.f.become(Between, Stopped); return nil }
		if err := within(t, "Shutdown", func() error { return m.Shutdown(t.Context()) }); err != nil || m.f.count("stop") != 0 {
			t.Errorf("%v after %d stops", err, m.f.count("stop"))
		}
	})
	t.Run("ignored", func(t *testing.T) {
		m := newMade(t, newFake(t))
		m.run(t)
		ctx, cancel := context.WithCancel(t.Context())
		m.f.request = func() error { cancel(); return nil }
		if err := within(t, "Shutdown", func() error { return m.Shutdown(ctx) }); err != nil || m.f.count("stop") != 1 {
			t.Errorf("%v after %d stops", err, m.f.count("stop"))
		}
	})
}

func TestSaveAndGoOn(t *testing.T) {
	m := newMade(t, newFake(t))
	m.run(t)
	dir := filepath.Join(t.TempDir(), "saved")
	if err := m.Save(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(dir, fileState)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the guest's memory lies there for others: %v, %v", fi.Mode(), err)
	}
	if err := m.Save(t.Context(), dir); err == nil {
		t.Error("saved over another")
	}
	if _, err := os.Stat(filepath.Join(dir, fileState)); err != nil {
		t.Errorf("and removed it: %v", err)
	}
	identity, state, err := readSaved(dir, m.plan, m.host)
	if err != nil || string(identity) != "an identifier" {
		t.Fatalf("%q, %v", identity, err)
	}
	again := newMade(t, newFake(t))
	again.saved = state
	again.run(t)
	if again.f.restored != "memory" || again.f.count("start") != 0 || again.f.count("resume") != 1 {
		t.Errorf("restored %q; calls: %q", again.f.restored, again.f.calls)
	}
	// Whatever is not the same is refused.
	other := m.plan
	other.CPUs++
	if _, _, err := readSaved(dir, other, m.host); err == nil || !strings.Contains(err.Error(), "other devices") {
		t.Errorf("another machine goes on: %v", err)
	}
	if _, _, err := readSaved(dir, m.plan, host(AMD64, 14, 0)); err == nil {
		t.Error("it goes on on another processor")
	}
	os.WriteFile(filepath.Join(dir, fileIdentity), nil, 0o600)
	if _, _, err := readSaved(dir, m.plan, m.host); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("an empty identifier: %v", err)
	}
	os.WriteFile(filepath.Join(dir, fileIdentity), make([]byte, maxIdentity+1), 0o600)
	if _, _, err := readSaved(dir, m.plan, m.host); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a large identifier: %v", err)
	}
}

func TestSaveFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "saved")
	m := newMade(t, newFake(t))
	if err := m.Save(t.Context(), dir); err == nil {
		t.Error("saved what does not run")
	}
	m.run(t)
	m.host = host(AMD64, 14, 0)
	if err := m.Save(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "Apple's own") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a save that failed left something: %v", err)
	}
}

func TestInner(t *testing.T) {
	type holder struct {
		other int
		conn  net.Conn
	}
	a, _ := pair(t)
	got, err := inner[net.Conn](&holder{1, a}, "conn")
	if err != nil || got != net.Conn(a) {
		t.Errorf("%v, %v", got, err)
	}
	for name, of := range map[string]any{"no field": &struct{}{}, "another type": &struct{ conn int }{}, "no pointer": holder{}, "nil": (*holder)(nil), "no struct": new(int)} {
		if _, err := inner[net.Conn](of, "conn"); err == nil {
			t.Errorf("%s: found", name)
		}
	}
}
