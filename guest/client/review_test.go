//go:build unix

package client

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// reviewed is a daemon whose guest "g" has changed "/p/a" and "/p/b".
type reviewed struct {
	apiconnect.UnimplementedReviewServiceHandler
	apiconnect.UnimplementedShareServiceHandler
	saw any
}

func (r *reviewed) Diff(_ context.Context, q *connect.Request[api.DiffRequest], st *connect.ServerStream[api.Change]) error {
	r.saw = q.Msg
	for _, p := range []string{"/p/a", "/p/b"} {
		if err := st.Send(&api.Change{Path: p}); err != nil {
			return err
		}
	}
	return nil
}

func (r *reviewed) Apply(_ context.Context, q *connect.Request[api.ApplyRequest], st *connect.ServerStream[api.ApplyEvent]) error {
	r.saw = q.Msg
	if err := st.Send(&api.ApplyEvent{Path: "/p/a", Refused: "a conflict"}); err != nil {
		return err
	}
	return api.NewError(connect.CodeFailedPrecondition, "disk_full", "the disk is full", "make room")
}

func (r *reviewed) Undo(_ context.Context, q *connect.Request[api.UndoRequest], st *connect.ServerStream[api.ApplyEvent]) error {
	r.saw = q.Msg
	return st.Send(&api.ApplyEvent{Path: "/p/a"})
}

func (r *reviewed) Discard(_ context.Context, q *connect.Request[api.DiscardRequest]) (*connect.Response[api.DiscardResponse], error) {
	return connect.NewResponse(&api.DiscardResponse{Discarded: int32(len(q.Msg.Paths))}), nil
}

func (r *reviewed) Summary(context.Context, *connect.Request[api.ReviewSummaryRequest]) (*connect.Response[api.ReviewSummary], error) {
	return connect.NewResponse(&api.ReviewSummary{Added: 2}), nil
}

func (r *reviewed) List(context.Context, *connect.Request[api.ListSharesRequest]) (*connect.Response[api.ListSharesResponse], error) {
	return connect.NewResponse(&api.ListSharesResponse{Shares: []*api.SharedFolder{{Carrier: "fuse"}}}), nil
}

func (r *reviewed) Add(_ context.Context, q *connect.Request[api.AddShareRequest]) (*connect.Response[api.AddShareResponse], error) {
	return connect.NewResponse(&api.AddShareResponse{Share: &api.SharedFolder{Share: q.Msg.Share}}), nil
}

func (r *reviewed) Remove(context.Context, *connect.Request[api.RemoveShareRequest]) (*connect.Response[api.RemoveShareResponse], error) {
	return nil, api.NewError(connect.CodeFailedPrecondition, "changes_waiting", "changes wait", "carrel diff g")
}

func (r *reviewed) Refresh(_ context.Context, q *connect.Request[api.RefreshShareRequest]) (*connect.Response[api.RefreshShareResponse], error) {
	r.saw = q.Msg
	return connect.NewResponse(&api.RefreshShareResponse{}), nil
}

func (r *reviewed) Explain(_ context.Context, q *connect.Request[api.ExplainShareRequest]) (*connect.Response[api.ExplainShareResponse], error) {
	return connect.NewResponse(&api.ExplainShareResponse{Hidden: q.Msg.Path == "/p/.env"}), nil
}

func reviewClient(t *testing.T) (*Client, *reviewed) {
	t.Helper()
	p := home(t)
	r := new(reviewed)
	mux := http.NewServeMux()
	mux.Handle("/", newFake().handler())
	mux.Handle(apiconnect.NewReviewServiceHandler(r))
	mux.Handle(apiconnect.NewShareServiceHandler(r))
	srv, done := serveOn(listen(t, p), mux)
	c, err := Connect(t.Context(), Options{Home: p.Home, NoStart: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); srv.Close(); <-done })
	return c, r
}

func TestReview(t *testing.T) {
	c, r := reviewClient(t)
	ctx := t.Context()
	var got []string
	if err := c.Diff(ctx, "g", DiffOptions{Paths: []string{"/p"}, NoText: true, Ignored: true}, func(ch *api.Change) error { got = append(got, ch.Path); return nil }); err != nil || len(got) != 2 {
		t.Error(got, err)
	}
	if q := r.saw.(*api.DiffRequest); q.Guest != "g" || len(q.Paths) != 1 || !q.NoText || !q.Ignored {
		t.Errorf("%v", q)
	}
	own := errors.New("enough")
	if err := c.Diff(ctx, "g", DiffOptions{}, func(*api.Change) error { return own }); err != own {
		t.Error(err)
	}
	var ev *api.ApplyEvent
	err := c.Apply(ctx, "g", ApplyOptions{AcceptWarnings: true, Overwrite: true, Git: true, DryRun: true}, func(e *api.ApplyEvent) error { ev = e; return nil })
	if q := r.saw.(*api.ApplyRequest); CodeOf(err) != "disk_full" || ev.GetRefused() != "a conflict" || !q.AcceptWarnings || !q.Overwrite || !q.Git || !q.DryRun {
		t.Error(ev, err, q)
	}
	if err := c.Undo(ctx, "g", UndoOptions{Task: "T"}, func(e *api.ApplyEvent) error { return nil }); err != nil || r.saw.(*api.UndoRequest).Task != "T" {
		t.Error(err)
	}
	if n, err := c.Discard(ctx, "g", "/p/a", "/p/b"); err != nil || n != 2 {
		t.Error(n, err)
	}
	if s, err := c.ReviewSummary(ctx, "g"); err != nil || s.Added != 2 {
		t.Error(s, err)
	}
	if _, err := c.ReviewSummary(ctx, "Not A Name"); CodeOf(err) != "bad_name" {
		t.Error(err)
	}
}

func TestShares(t *testing.T) {
	c, r := reviewClient(t)
	ctx := t.Context()
	if l, err := c.Shares(ctx, "g"); err != nil || len(l) != 1 || l[0].Carrier != "fuse" {
		t.Error(l, err)
	}
	if f, err := c.AddShare(ctx, "g", &api.Share{Path: "/p"}); err != nil || f.GetShare().GetPath() != "/p" {
		t.Error(f, err)
	}
	if err := c.RemoveShare(ctx, "g", "/p", false); CodeOf(err) != "changes_waiting" {
		t.Error(err)
	}
	if x, err := c.ExplainShare(ctx, "", &api.Share{Path: "/p"}, "/p/.env"); err != nil || !x.Hidden {
		t.Error(x, err)
	}
	err := c.RefreshShares(ctx, "g", "/p")
	if q, ok := r.saw.(*api.RefreshShareRequest); err != nil || !ok || q.Guest != "g" || q.Path != "/p" {
		t.Error(r.saw, err)
	}
}
