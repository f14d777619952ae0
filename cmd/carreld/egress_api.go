package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/egress"
	"github.com/carrel-vm/carrel/guest/egress/link"
)

// edgeService implements EdgeService for the daemon.
type edgeService struct {
	srv  *egress.Server
	link *link.Conn
	rec  *record

	ports sync.Mutex // held while they are counted and told
}

// Configure implements EdgeService.
func (s *edgeService) Configure(_ context.Context, r *connect.Request[api.ConfigureEdgeRequest]) (*connect.Response[api.ConfigureEdgeResponse], error) {
	closed, err := s.srv.Configure(r.Msg)
	if err == nil {
		err = s.rec.hide(r.Msg.Secrets)
	}
	if err != nil {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_rule", err.Error(), "")
	}
	return connect.NewResponse(&api.ConfigureEdgeResponse{Closed: int32(closed)}), nil
}

// Watch implements EdgeService.
func (s *edgeService) Watch(ctx context.Context, r *connect.Request[api.WatchEgressRequest], st *connect.ServerStream[api.EgressEvent]) error {
	// A client waits for the head of an answer before it takes events.
	if err := st.Send(nil); err != nil {
		return err
	}
	err := s.srv.Watch(ctx, int(r.Msg.Last), r.Msg.Follow, st.Send)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Answer implements EdgeService.
func (s *edgeService) Answer(_ context.Context, r *connect.Request[api.AnswerEgressRequest]) (*connect.Response[api.AnswerEgressResponse], error) {
	if err := s.srv.Answer(r.Msg.Question, r.Msg.Answer); err != nil {
		return nil, api.NewError(connect.CodeNotFound, "no_question", err.Error(), "")
	}
	return connect.NewResponse(&api.AnswerEgressResponse{}), nil
}

// Publish implements EdgeService.
func (s *edgeService) Publish(ctx context.Context, r *connect.Request[api.PublishRequest]) (*connect.Response[api.PublishResponse], error) {
	p, err := s.srv.Publish(ctx, r.Msg.Port, r.Msg.IdempotencyKey, s.forward)
	if errors.Is(err, egress.ErrReused) {
		return nil, guest.Reused()
	}
	if err != nil {
		return nil, api.NewError(connect.CodeFailedPrecondition, "port", err.Error(), "choose another port")
	}
	s.sayPorts()
	return connect.NewResponse(&api.PublishResponse{Port: p}), nil
}

// Unpublish implements EdgeService.
func (s *edgeService) Unpublish(_ context.Context, r *connect.Request[api.UnpublishRequest]) (*connect.Response[api.UnpublishResponse], error) {
	if err := s.srv.Unpublish(r.Msg.HostPort); err != nil {
		return nil, api.NewError(connect.CodeNotFound, "not_found", err.Error(), "")
	}
	s.sayPorts()
	return connect.NewResponse(&api.UnpublishResponse{}), nil
}

// sayPorts tells the keeper how many ports lead into the guest: it is not stopped
// for idleness while one does.
func (s *edgeService) sayPorts() {
	s.ports.Lock()
	defer s.ports.Unlock()
	s.link.Send(&link.Message{Kind: link.Ports, Count: len(s.srv.Ports())}, nil) // or the keeper is gone
}

// forward opens a connection to a port of the guest: the keeper gets the other
// end and connects it.
func (s *edgeService) forward(port uint32) (net.Conn, error) {
	ours, theirs, err := forwardPair()
	if err != nil {
		return nil, fmt.Errorf("connect to port %d of the guest: %w", port, err)
	}
	defer theirs.Close()
	if err := s.link.Send(&link.Message{Kind: link.Forward, Port: uint16(port)}, theirs); err != nil {
		ours.Close()
		return nil, fmt.Errorf("connect to port %d of the guest: %w", port, err)
	}
	return ours, nil
}
