//go:build unix

package daemon

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// watchedKeeper tells once how its guest is, and then nothing.
type watchedKeeper struct {
	apiconnect.UnimplementedKeeperServiceHandler
}

func (watchedKeeper) Watch(ctx context.Context, _ *connect.Request[api.WatchRequest], st *connect.ServerStream[api.Guest]) error {
	if err := st.Send(new(api.Guest)); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// Output comes by a connection that is gone a moment after it, and not by that by which
// a guest is watched.
func TestOutputLeavesNoConnection(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	type own struct{}
	by := make(chan any, 2)
	closed := make(chan net.Conn, 2)
	mux := http.NewServeMux()
	mux.Handle(apiconnect.NewKeeperServiceHandler(watchedKeeper{}))
	mux.Handle(apiconnect.NewTaskServiceHandler(sayingKeeper{}))
	srv := &http.Server{
		Handler:     http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { by <- r.Context().Value(own{}); mux.ServeHTTP(w, r) }),
		Protocols:   new(http.Protocols),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, own{}, c) },
		ConnState: func(c net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				closed <- c
			}
		},
	}
	srv.Protocols.SetUnencryptedHTTP2(true)
	go srv.Serve(ln)
	defer srv.Close()
	k := newKeeper(socket)
	defer k.close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch, err := k.own.Watch(ctx, connect.NewRequest(&api.WatchRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	if !watch.Receive() {
		t.Fatal(watch.Err())
	}
	st := k.tasks.Attach(ctx)
	if err := st.Send(&api.AttachRequest{Kind: &api.AttachRequest_Open{Open: new(api.AttachOpen)}}); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = st.Receive()
	}
	st.CloseRequest()
	st.CloseResponse()
	watched, said := <-by, <-by
	if watched == said {
		t.Fatal("output came by the connection by which the guest is watched")
	}
	if c := <-closed; c != said {
		t.Error("another connection than that of the output was closed")
	}
}
