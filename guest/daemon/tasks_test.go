package daemon

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// sayingKeeper has a task that says something and ends.
type sayingKeeper struct {
	apiconnect.UnimplementedTaskServiceHandler
}

func (sayingKeeper) Attach(_ context.Context, st *connect.BidiStream[api.AttachRequest, api.AttachResponse]) error {
	if _, err := st.Receive(); err != nil {
		return err
	}
	for _, m := range []*api.AttachResponse{
		{Kind: &api.AttachResponse_Stdout{Stdout: []byte("out ")}, Next: 9},
		{Kind: &api.AttachResponse_Stderr{Stderr: []byte("err")}, Next: 17},
		{Kind: &api.AttachResponse_End{End: &api.Task{Id: "t"}}, Next: 17},
	} {
		if err := st.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// roundTrip is an http.RoundTripper.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Output comes in every form in which a caller may ask for it, however that is written.
func TestAttachInEveryForm(t *testing.T) {
	serve := func(h http.Handler) *httptest.Server {
		srv := httptest.NewUnstartedServer(h)
		srv.EnableHTTP2 = true
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv
	}
	mux := http.NewServeMux()
	mux.Handle(apiconnect.NewTaskServiceHandler(sayingKeeper{}))
	below := serve(mux)
	e := newEntry("g", &api.Guest{Name: "g"})
	e.keeper = &keeper{tasks: apiconnect.NewTaskServiceClient(below.Client(), below.URL, api.Pieces())}
	d := &Daemon{ctx: t.Context(), table: map[string]*entry{"g": e}}
	mux = http.NewServeMux()
	mux.Handle(apiconnect.NewTaskServiceHandler(&taskService{d}, api.Pieces()))
	srv := serve(mux)
	proto, json := connect.WithClientOptions(), connect.WithProtoJSON()
	for form, opts := range map[string][]connect.ClientOption{
		"application/connect+proto":               {proto},
		"application/connect+json":                {json},
		"application/connect+json; charset=utf-8": {json},
		"application/connect+json;charset=UTF-8":  {json},
		"Application/Connect+Proto":               {proto},
		"application/grpc":                        {proto, connect.WithGRPC()},
		"application/grpc+proto":                  {proto, connect.WithGRPC()},
		"application/grpc+json":                   {json, connect.WithGRPC()},
		"application/grpc-web+proto":              {proto, connect.WithGRPCWeb()},
		"application/grpc-web+json":               {json, connect.WithGRPCWeb()},
	} {
		t.Run(form, func(t *testing.T) {
			transport := srv.Client().Transport
			c := apiconnect.NewTaskServiceClient(&http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				own := r.Header.Get("Content-Type")
				r.Header.Set("Content-Type", form)
				a, err := transport.RoundTrip(r)
				if err == nil && strings.HasPrefix(a.Header.Get("Content-Type"), "application/") {
					a.Header.Set("Content-Type", own)
				}
				return a, err
			})}, srv.URL, opts...)
			st := c.Attach(t.Context())
			defer st.CloseResponse()
			if err := st.Send(&api.AttachRequest{Kind: &api.AttachRequest_Open{Open: &api.AttachOpen{Guest: "g", Task: "t"}}}); err != nil {
				t.Fatal(err)
			}
			said := ""
			for {
				m, err := st.Receive()
				if err != nil {
					t.Fatalf("after %q: %v", said, err)
				}
				said += string(m.GetStdout()) + string(m.GetStderr())
				if m.GetEnd() != nil {
					break
				}
			}
			if st.CloseRequest(); said != "out err" {
				t.Errorf("it said %q", said)
			}
		})
	}
}
