package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/wire"
)

// asAgent is the argv[0] under which the test program is an agent alone in its
// process, for the tests that end it.
const asAgent = "agent-under-test"

// TestMain also is the agent's copies of itself, and an agent.
func TestMain(m *testing.M) {
	Reexec()
	if len(os.Args) == 1 && os.Args[0] == asAgent {
		_ = Serve(context.Background(), os.NewFile(3, "boot"), os.NewFile(4, "calls"))
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// host is the other side of an agent that runs in this process.
type host struct {
	t     *testing.T
	boot  *net.UnixConn
	r     *wire.Reader
	calls *net.UnixConn
	hello *wire.Hello
	// ended gets Serve's result.
	ended chan error
	task  int
	// beside says that the agent is one beside its tasks: TestBeside.
	beside bool
}

func pair(t *testing.T) (*net.UnixConn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := fileConn(os.NewFile(uintptr(fds[0]), "ours"))
	if err != nil {
		t.Fatal(err)
	}
	return ours, os.NewFile(uintptr(fds[1]), "theirs")
}

// patience bounds each wait for what has to come. A test that passes does not take
// longer for it, and a busy machine may be slower than any guess.
const patience = 5 * time.Minute

// newHost starts an agent in this process and reads its Hello.
func newHost(t *testing.T) *host {
	t.Helper()
	if os.Getenv(besideName) != "" {
		return newBeside(t, nil)
	}
	return hostOf(t, func(boot, calls *os.File) <-chan error {
		ended := make(chan error, 1)
		go func() { ended <- Serve(context.Background(), boot, calls) }()
		return ended
	})
}

func hostOf(t *testing.T, start func(boot, calls *os.File) <-chan error) *host {
	t.Helper()
	h := &host{t: t, ended: make(chan error, 1)}
	boot, theirBoot := pair(t)
	calls, theirCalls := pair(t)
	h.boot, h.calls, h.r = boot, calls, wire.NewReader(boot)
	ended := start(theirBoot, theirCalls)
	go func() { h.ended <- <-ended }()
	t.Cleanup(func() {
		_ = boot.Close()
		_ = calls.Close()
		select {
		case <-h.ended:
		case <-time.After(patience):
			t.Error("the agent does not end when its host is gone")
		}
	})
	var m wire.FromGuest
	if err := h.r.Read(&m); err != nil || m.GetHello() == nil {
		t.Fatalf("first frame: %v, %v", &m, err)
	}
	h.hello = m.GetHello()
	return h
}

// setUp sends s and returns Ready's error.
func (h *host) setUp(s *wire.Setup) string {
	h.t.Helper()
	return h.setUpReady(s).Error
}

func (h *host) setUpReady(s *wire.Setup) *wire.Ready {
	h.t.Helper()
	if err := wire.Write(h.boot, &wire.FromHost{Kind: &wire.FromHost_Setup{Setup: s}}); err != nil {
		h.t.Fatal(err)
	}
	var m wire.FromGuest
	if err := h.r.Read(&m); err != nil || m.GetReady() == nil {
		h.t.Fatalf("answer to Setup: %v, %v", &m, err)
	}
	return m.GetReady()
}

// ready returns the host of an agent that takes calls.
func ready(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	if e := h.setUp(&wire.Setup{Hostname: "test", UnixNanos: time.Now().UnixNano(), MaxTasks: 8}); e != "" {
		t.Fatal(e)
	}
	return h
}

// control sends one Control and returns its answer.
func (h *host) control(c *wire.Control) *wire.Answer {
	h.t.Helper()
	if err := wire.Write(h.boot, &wire.FromHost{Kind: &wire.FromHost_Control{Control: c}}); err != nil {
		h.t.Fatal(err)
	}
	var m wire.FromGuest
	if err := h.r.Read(&m); err != nil || m.GetAnswer() == nil {
		h.t.Fatalf("answer: %v, %v", &m, err)
	}
	return m.GetAnswer()
}

func (h *host) dialPort(port uint32) *net.UnixConn {
	h.t.Helper()
	ours, theirs := pair(h.t)
	defer theirs.Close()
	m := binary.BigEndian.AppendUint32(nil, port)
	if h.beside {
		m = append(m, 0, 0, 0, 0)
	}
	_, _, err := h.calls.WriteMsgUnix(m, unix.UnixRights(int(theirs.Fd())), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = ours.Close() })
	// No test waits for ever for a frame.
	_ = ours.SetDeadline(time.Now().Add(patience))
	return ours
}

// call dials and sends the first frame.
func (h *host) call(c *wire.Call) *session {
	h.t.Helper()
	s := &session{t: h.t, conn: h.dialPort(wire.PortAgent)}
	s.r = wire.NewReader(s.conn)
	s.send(c)
	return s
}

// exec starts a command; an empty id becomes a new one.
func (h *host) exec(e *wire.Exec) *session {
	h.t.Helper()
	if e.Id == "" {
		h.task++
		// Never one twice on this machine: what is left of a task is found by it, and killed.
		e.Id = fmt.Sprintf("t%dx%d", os.Getpid(), h.task)
	}
	return h.call(&wire.Call{Kind: &wire.Call_Exec{Exec: e}})
}

// sh runs a script of the shell to its end.
func (h *host) sh(script string) *session {
	h.t.Helper()
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", script}})
	s.wait()
	return s
}

// session is one call.
type session struct {
	t    *testing.T
	conn *net.UnixConn
	r    *wire.Reader

	started        bool
	pid            int
	stdout, stderr bytes.Buffer
	taken          int
	exit           *wire.Exit
	failed         *wire.Failed
}

func (s *session) send(m proto.Message) {
	s.t.Helper()
	if err := wire.Write(s.conn, m); err != nil {
		s.t.Fatal(err)
	}
}

func (s *session) signal(n int32) {
	s.t.Helper()
	s.send(&wire.Input{Kind: &wire.Input_Signal{Signal: &wire.Signal{Number: n}}})
}

func (s *session) stdin(p string) {
	s.t.Helper()
	s.send(&wire.Input{Kind: &wire.Input_Stdin{Stdin: []byte(p)}})
}

func (s *session) closeStdin() {
	s.t.Helper()
	s.send(&wire.Input{Kind: &wire.Input_StdinClose{StdinClose: &wire.StdinClose{}}})
}

// next reads one frame and keeps what it says; false after the last.
func (s *session) next() bool {
	s.t.Helper()
	var m wire.Output
	err := s.r.Read(&m)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return false
	}
	if err != nil {
		s.t.Fatal(err)
	}
	if s.exit != nil || s.failed != nil {
		s.t.Fatalf("a frame after the last: %v", &m)
	}
	switch k := m.Kind.(type) {
	case *wire.Output_Started:
		if s.started {
			s.t.Fatal("started twice")
		}
		s.started, s.pid = true, int(k.Started.Pid)
	case *wire.Output_Stdout:
		s.stdout.Write(k.Stdout)
	case *wire.Output_Stderr:
		s.stderr.Write(k.Stderr)
	case *wire.Output_StdinTaken:
		s.taken += int(k.StdinTaken)
	case *wire.Output_Exit:
		s.exit = k.Exit
	case *wire.Output_Failed:
		s.failed = k.Failed
	default:
		s.t.Fatalf("unknown frame %v", &m)
	}
	if !s.started && s.failed == nil {
		s.t.Fatalf("a frame before Started: %v", &m)
	}
	return true
}

func (s *session) wait() {
	s.t.Helper()
	for s.next() {
	}
	if s.exit == nil && s.failed == nil {
		s.t.Fatal("the call ended without its last frame")
	}
}

// until reads frames until stdout holds want.
func (s *session) until(want string) {
	s.t.Helper()
	for !bytes.Contains(s.stdout.Bytes(), []byte(want)) {
		if !s.next() || s.exit != nil || s.failed != nil {
			s.t.Fatalf("stdout is %q at the end, want %q in it; stderr %q, %v %v", s.stdout.Bytes(), want, s.stderr.Bytes(), s.exit, s.failed)
		}
	}
}

func (s *session) wantExit(code, signal int32) {
	s.t.Helper()
	if s.exit == nil || s.exit.Code != code || s.exit.Signal != signal {
		s.t.Fatalf("exit %v, failed %v, want code %d signal %d; stderr %q", s.exit, s.failed, code, signal, s.stderr.Bytes())
	}
}

func (s *session) wantOut(want string) {
	s.t.Helper()
	if got := s.stdout.String(); got != want {
		s.t.Fatalf("stdout %q, want %q; stderr %q", got, want, s.stderr.Bytes())
	}
}
