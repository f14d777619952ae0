package daemon

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// stopsIdle answers for a guest's keeper, which is about to stop for its first request.
type stopsIdle struct {
	apiconnect.UnimplementedKeeperServiceHandler
	mu      sync.Mutex
	leaving error
	left    func()
	calls   int
}

func (k *stopsIdle) asked() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls++
	err := k.leaving
	if k.leaving = nil; err != nil {
		k.left()
	}
	return err
}

func (k *stopsIdle) DropReview(context.Context, *connect.Request[api.DropReviewRequest]) (*connect.Response[api.DropReviewResponse], error) {
	if err := k.asked(); err != nil {
		return nil, err
	}
	return nil, api.NewError(connect.CodeInternal, "drop", "the guest has no review of it", "")
}

type openEdge struct {
	apiconnect.UnimplementedEdgeServiceHandler
}

func (openEdge) Publish(_ context.Context, r *connect.Request[api.PublishRequest]) (*connect.Response[api.PublishResponse], error) {
	return connect.NewResponse(&api.PublishResponse{Port: r.Msg.Port}), nil
}

type idleFiles struct {
	apiconnect.UnimplementedFileServiceHandler
	*stopsIdle
}

func (k idleFiles) List(context.Context, *connect.Request[api.ListFilesRequest]) (*connect.Response[api.ListFilesResponse], error) {
	return connect.NewResponse(&api.ListFilesResponse{}), k.asked()
}

func (k idleFiles) Read(context.Context, *connect.Request[api.ReadFileRequest]) (*connect.Response[api.ReadFileResponse], error) {
	return connect.NewResponse(&api.ReadFileResponse{}), k.asked()
}

func (k idleFiles) Get(_ context.Context, r *connect.Request[api.GetRequest], st *connect.ServerStream[api.GetResponse]) error {
	if r.Msg.Path == "/half" {
		if err := st.Send(&api.GetResponse{}); err != nil {
			return err
		}
	}
	return k.asked()
}

// What reaches a guest in the moment in which it stops for idleness is made again when
// it has been started again: but a copy of which something was had already is not.
func TestAgain(t *testing.T) {
	leaving := map[string]error{
		"is leaving": api.NewError(connect.CodeUnavailable, "not_running", "guest box is not running", ""),
		"has left":   api.NewError(connect.CodeFailedPrecondition, "not_running", "guest box is not running", ""),
	}
	for when, err := range leaving {
		for name, c := range map[string]struct {
			ask  func(context.Context, *Daemon, apiconnect.FileServiceClient) error
			word string
		}{
			"List": {func(ctx context.Context, d *Daemon, _ apiconnect.FileServiceClient) error {
				_, err := (&fileService{d}).List(ctx, connect.NewRequest(&api.ListFilesRequest{Guest: "box"}))
				return err
			}, ""},
			"Read": {func(ctx context.Context, d *Daemon, _ apiconnect.FileServiceClient) error {
				_, err := (&fileService{d}).Read(ctx, connect.NewRequest(&api.ReadFileRequest{Guest: "box"}))
				return err
			}, ""},
			"Get":        {gets("/whole"), ""},
			"Get, begun": {gets("/half"), "not_running"},
			"Publish": {func(ctx context.Context, d *Daemon, _ apiconnect.FileServiceClient) error {
				_, err := (&egressService{d}).publish(ctx, connect.NewRequest(&api.PublishRequest{Guest: "box", Port: &api.Port{GuestPort: 80}}))
				if e, _ := d.find("box"); err == nil && len(e.ports) != 1 {
					t.Errorf("its ports are %v", e.ports)
				}
				return err
			}, ""},
		} {
			t.Run(when+", "+name, func(t *testing.T) {
				d := newDaemon(t)
				d.ctx = t.Context()
				ready := &api.Guest{Name: "box", State: api.GuestState_GUEST_STATE_READY}
				e := newEntry("box", ready)
				d.table["box"] = e
				if err := os.MkdirAll(d.dir(e), 0o700); err != nil {
					t.Fatal(err)
				}
				k := &stopsIdle{leaving: err}
				mux := http.NewServeMux()
				mux.Handle(apiconnect.NewKeeperServiceHandler(k))
				mux.Handle(apiconnect.NewEdgeServiceHandler(openEdge{}))
				mux.Handle(apiconnect.NewFileServiceHandler(idleFiles{stopsIdle: k}))
				srv := httptest.NewServer(mux)
				defer srv.Close()
				runs := func() {
					e.mu.Lock()
					defer e.mu.Unlock()
					e.info = ready
					e.keeper = &keeper{own: apiconnect.NewKeeperServiceClient(srv.Client(), srv.URL), files: apiconnect.NewFileServiceClient(srv.Client(), srv.URL)}
					e.edge = &edge{own: apiconnect.NewEdgeServiceClient(srv.Client(), srv.URL)}
					e.changedLocked()
				}
				runs()
				var over sync.WaitGroup
				defer over.Wait()
				k.left = func() { // it has stopped, and somebody starts it again
					if err := e.take("started"); err != nil {
						t.Error(err)
					}
					e.mu.Lock()
					e.info, e.keeper, e.edge, e.ports = &api.Guest{Name: "box", State: api.GuestState_GUEST_STATE_STOPPED, StoppedIdle: true}, nil, nil, nil
					e.changedLocked()
					e.mu.Unlock()
					over.Go(func() { runs(); e.release() })
				}
				front := httptest.NewServer(frontOf(d))
				defer front.Close()
				if err := c.ask(t.Context(), d, apiconnect.NewFileServiceClient(front.Client(), front.URL)); wordOf(err) != c.word || (err == nil) != (c.word == "") {
					t.Errorf("%v", err)
				}
				if want := 2 - len(c.word)/len("not_running"); k.calls != want {
					t.Errorf("it was asked %d times, not %d", k.calls, want)
				}
			})
		}
	}
}

func gets(path string) func(context.Context, *Daemon, apiconnect.FileServiceClient) error {
	return func(ctx context.Context, _ *Daemon, c apiconnect.FileServiceClient) error {
		st, err := c.Get(ctx, connect.NewRequest(&api.GetRequest{Guest: "box", Path: path}))
		if err != nil {
			return err
		}
		defer st.Close()
		for st.Receive() {
		}
		return st.Err()
	}
}

func frontOf(d *Daemon) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(apiconnect.NewFileServiceHandler(&fileService{d}))
	return mux
}
