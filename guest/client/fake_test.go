//go:build unix

package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/place"
)

// TestMain is also the daemon that a client starts: the test binary, called as
// carreld is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "daemon" {
		os.Exit(fakeMain())
	}
	goleak.VerifyTestMain(suite{m})
}

// suite ends what tests share before goroutines are counted.
type suite struct{ *testing.M }

func (s suite) Run() int {
	status := s.M.Run()
	if err := AtExit(); err != nil {
		fmt.Fprintln(os.Stderr, "end the daemon of the tests:", err)
		status = max(status, 1)
	}
	return status
}

const taskID = "01JD8Q8ZV6Q2W7KXS2M0T4RBNE"

// fake is a daemon with one guest, "g", whose one task prints lines.
type fake struct {
	version  *api.VersionResponse
	noSystem bool // a daemon that does not know the question for its version

	lines int       // how many lines the task prints
	end   *api.Task // how it ends
	// attached is told of each stream that wants output, before anything is
	// sent, and may cut it: after so many pieces, with this error.
	attached func(n int) (cut int, err error)
	holdEnd  chan struct{} // if set, the end waits for it
	deaf     bool          // input is not read

	get []*api.GetResponse
	// shut is told how long a caller of Shutdown waits; it may be nil.
	shut func(guests bool, bound time.Duration)

	mu      sync.Mutex
	streams int
	stdin   []byte
	eof     chan struct{}
	signals chan int32
	left    chan error // told how each caller's side ended
	put     []*api.PutRequest
	keys    []string
}

func newFake() *fake {
	return &fake{
		version: &api.VersionResponse{Version: "0.1.0-dev", Api: APIVersion}, lines: 3, end: exited(0),
		eof: make(chan struct{}), signals: make(chan int32, 16), left: make(chan error, 64),
	}
}

func exited(status int32) *api.Task {
	return &api.Task{Id: taskID, Guest: "g", State: api.TaskState_TASK_STATE_EXITED, Ending: &api.Ending{Status: status}}
}

// home makes a short CARREL_HOME: a socket's path may have 100 bytes.
func home(t *testing.T) place.Place {
	t.Helper()
	dir, err := os.MkdirTemp("", "cc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p, err := place.At(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := place.MakePrivate(p.Run); err != nil {
		t.Fatal(err)
	}
	return p
}

func listen(t *testing.T, p place.Place) net.Listener {
	t.Helper()
	ln, err := net.Listen("unix", p.Socket)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func (f *fake) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(apiconnect.NewGuestServiceHandler(guestHandler{f: f}))
	mux.Handle(apiconnect.NewTaskServiceHandler(taskHandler{f: f}))
	mux.Handle(apiconnect.NewFileServiceHandler(fileHandler{f: f}))
	if !f.noSystem {
		mux.Handle(apiconnect.NewSystemServiceHandler(systemHandler{f: f}))
	}
	return mux
}

// window is how much of one stream's input a server takes before it reads it.
const window = 256 << 10

func serveOn(ln net.Listener, h http.Handler) (*http.Server, <-chan struct{}) {
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{
		MaxReceiveBufferPerStream: window, MaxReceiveBufferPerConnection: 250 * window, // as the daemon has it
	}}
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(ln) }()
	return srv, done
}

// serve serves f at p and returns a client of it.
func (f *fake) serve(t *testing.T, p place.Place) *Client {
	t.Helper()
	ln, err := net.Listen("unix", p.Socket)
	if err != nil {
		t.Fatal(err)
	}
	srv, done := serveOn(ln, f.handler())
	t.Cleanup(func() { srv.Close(); <-done })
	c, err := Connect(t.Context(), Options{Home: p.Home, NoStart: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// The services, each in a type of its own: two of them have a List.
type (
	guestHandler struct {
		apiconnect.UnimplementedGuestServiceHandler
		f *fake
	}
	taskHandler struct {
		apiconnect.UnimplementedTaskServiceHandler
		f *fake
	}
	fileHandler struct {
		apiconnect.UnimplementedFileServiceHandler
		f *fake
	}
	systemHandler struct {
		apiconnect.UnimplementedSystemServiceHandler
		f *fake
	}
)

func (h systemHandler) Version(context.Context, *connect.Request[api.VersionRequest]) (*connect.Response[api.VersionResponse], error) {
	return connect.NewResponse(h.f.version), nil
}

func (guestHandler) Inspect(_ context.Context, r *connect.Request[api.InspectGuestRequest]) (*connect.Response[api.InspectGuestResponse], error) {
	if r.Msg.Name != "g" {
		return nil, api.NewError(connect.CodeNotFound, "not_found", "there is no guest "+r.Msg.Name, "carrel ls")
	}
	return connect.NewResponse(&api.InspectGuestResponse{Guest: &api.Guest{Name: "g"}}), nil
}

func (h taskHandler) List(context.Context, *connect.Request[api.ListTasksRequest]) (*connect.Response[api.ListTasksResponse], error) {
	return connect.NewResponse(&api.ListTasksResponse{}), nil
}

func (h taskHandler) Start(_ context.Context, r *connect.Request[api.StartTaskRequest]) (*connect.Response[api.StartTaskResponse], error) {
	h.f.mu.Lock()
	h.f.keys = append(h.f.keys, r.Msg.IdempotencyKey)
	h.f.mu.Unlock()
	return connect.NewResponse(&api.StartTaskResponse{Task: &api.Task{Id: taskID, Guest: r.Msg.Guest}}), nil
}

func (h taskHandler) Signal(_ context.Context, r *connect.Request[api.SignalTaskRequest]) (*connect.Response[api.SignalTaskResponse], error) {
	if r.Msg.Task != taskID || r.Msg.Signal < 1 {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_number", "no such signal", "")
	}
	h.f.signals <- 1000 + r.Msg.Signal
	return connect.NewResponse(&api.SignalTaskResponse{}), nil
}

func (h taskHandler) Resize(_ context.Context, r *connect.Request[api.ResizeTaskRequest]) (*connect.Response[api.ResizeTaskResponse], error) {
	h.f.signals <- 2000 + int32(r.Msg.Rows*1000+r.Msg.Cols)
	return connect.NewResponse(&api.ResizeTaskResponse{}), nil
}

func (h taskHandler) Attach(ctx context.Context, st *connect.BidiStream[api.AttachRequest, api.AttachResponse]) error {
	f := h.f
	m, err := st.Receive()
	if err != nil {
		return err
	}
	open := m.GetOpen()
	if open == nil || open.Task != taskID {
		return api.NewError(connect.CodeNotFound, "not_found", "there is no such task", "")
	}
	closed := make(chan struct{})
	go func() { defer close(closed); f.receive(st) }()
	switch err := f.send(ctx, st, open); {
	case err == io.EOF:
		return nil // a clean end without the task's end
	case err != nil:
		return err
	}
	select {
	case <-closed:
	case <-ctx.Done():
	}
	return nil
}

func (f *fake) receive(st *connect.BidiStream[api.AttachRequest, api.AttachResponse]) {
	for {
		m, err := st.Receive()
		if err != nil {
			f.left <- err
			return
		}
		switch k := m.Kind.(type) {
		case *api.AttachRequest_Stdin:
			f.mu.Lock()
			f.stdin = append(f.stdin, k.Stdin...)
			deaf := f.deaf
			f.mu.Unlock()
			if deaf {
				<-f.eof // which nobody closes before the test's end
				return
			}
		case *api.AttachRequest_StdinClose:
			close(f.eof)
		case *api.AttachRequest_Signal:
			f.signals <- k.Signal
		case *api.AttachRequest_Resize:
			f.signals <- -int32(k.Resize.Rows*1000 + k.Resize.Cols)
		}
	}
}

// errCut ends a stream as the death of a daemon does: without a word.
var errCut = errors.New("cut")

func (f *fake) send(ctx context.Context, st *connect.BidiStream[api.AttachRequest, api.AttachResponse], open *api.AttachOpen) error {
	cut, cutErr := -1, error(nil)
	if open.Offset < beyondOutput && f.attached != nil {
		f.mu.Lock()
		f.streams++
		n := f.streams
		f.mu.Unlock()
		cut, cutErr = f.attached(n)
	}
	sent := 0
	piece := func(m *api.AttachResponse) error {
		if sent++; cut >= 0 && sent > cut {
			if errors.Is(cutErr, errCut) {
				panic(http.ErrAbortHandler)
			}
			if cutErr == nil {
				return io.EOF
			}
			return cutErr
		}
		return st.Send(m)
	}
	for i := open.Offset; i < int64(f.lines); i++ {
		m := &api.AttachResponse{Next: i + 1}
		if i%2 == 0 {
			m.Kind = &api.AttachResponse_Stdout{Stdout: fmt.Appendf(nil, "line %d\n", i)}
		} else {
			m.Kind = &api.AttachResponse_Stderr{Stderr: fmt.Appendf(nil, "line %d\n", i)}
		}
		if err := piece(m); err != nil {
			return err
		}
	}
	if f.holdEnd != nil && !open.NoFollow {
		select {
		case <-f.holdEnd:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return piece(&api.AttachResponse{Kind: &api.AttachResponse_End{End: f.end}, Next: int64(f.lines)})
}

func (h fileHandler) Get(_ context.Context, _ *connect.Request[api.GetRequest], st *connect.ServerStream[api.GetResponse]) error {
	for _, m := range h.f.get {
		if err := st.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (h fileHandler) Put(_ context.Context, st *connect.ClientStream[api.PutRequest]) (*connect.Response[api.PutResponse], error) {
	for st.Receive() {
		h.f.mu.Lock()
		h.f.put = append(h.f.put, st.Msg())
		h.f.mu.Unlock()
	}
	h.f.left <- st.Err()
	return connect.NewResponse(&api.PutResponse{}), st.Err()
}

// fakeMain is carreld as a process: `daemon --ready-fd 3`. FAKE says how it
// behaves.
func fakeMain() int {
	ready := os.NewFile(3, "ready")
	say := func(s string) { fmt.Fprintln(ready, s); ready.Close() }
	p, err := place.Home()
	if err != nil {
		return 1
	}
	switch os.Getenv("FAKE") {
	case "refuse":
		say("error: the state is damaged")
		return 1
	case "die":
		fmt.Fprintln(os.Stderr, "first line")
		fmt.Fprintln(os.Stderr, "last words")
		return 1
	case "lie":
		say("ok")
		return 0
	}
	lock, err := os.OpenFile(filepath.Join(p.Run, daemonLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 1
	}
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		os.WriteFile(filepath.Join(p.Home, "already"), nil, 0o600)
		say("already")
		return 1
	}
	pids, _ := os.OpenFile(filepath.Join(p.Home, "pids"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	fmt.Fprintln(pids, os.Getpid())
	os.Remove(p.Socket)
	ln, err := net.Listen("unix", p.Socket)
	if err != nil {
		say("error: " + err.Error())
		return 1
	}
	f := newFake()
	f.lines = 10
	if n, err := strconv.Atoi(os.Getenv("FAKE_KILL_AFTER")); err == nil {
		// The first process dies by SIGKILL amid its first stream.
		if _, err := os.Stat(filepath.Join(p.Home, "killed")); err != nil {
			f.attached = func(int) (int, error) { return n, errKillSelf }
		}
	}
	stop := make(chan struct{})
	h := f.handler()
	srv, done := serveOn(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == apiconnect.SystemServiceShutdownProcedure {
			defer close(stop)
		}
		h.ServeHTTP(w, r)
	}))
	say("ok")
	<-stop
	srv.Shutdown(context.Background())
	<-done
	return 0
}

// errKillSelf is an error whose text nobody ever reads: making it fit for a
// connection kills the process.
var errKillSelf error = killSelf{}

type killSelf struct{}

func (killSelf) Error() string {
	if p, err := place.Home(); err == nil {
		os.WriteFile(filepath.Join(p.Home, "killed"), nil, 0o600)
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func (h systemHandler) Shutdown(ctx context.Context, r *connect.Request[api.ShutdownRequest]) (*connect.Response[api.ShutdownResponse], error) {
	if by, ok := ctx.Deadline(); ok && h.f.shut != nil {
		h.f.shut(r.Msg.Guests, time.Until(by))
	}
	return connect.NewResponse(&api.ShutdownResponse{}), nil
}
