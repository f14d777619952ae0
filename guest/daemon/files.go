package daemon

import (
	"context"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// fileService implements FileService by handing copies on to keepers.
type fileService struct{ d *Daemon }

// Put implements FileService.
func (s *fileService) Put(ctx context.Context, st *connect.ClientStream[api.PutRequest]) (*connect.Response[api.PutResponse], error) {
	if !st.Receive() {
		return nil, st.Err()
	}
	e, k, err := s.d.up(ctx, st.Msg().GetOpen().GetGuest())
	if err != nil {
		return nil, err
	}
	up := k.files.Put(ctx)
	for more := true; more; more = st.Receive() {
		if up.Send(st.Msg()) != nil {
			break // the answer says why
		}
	}
	if err := st.Err(); err != nil {
		up.CloseAndReceive()
		return nil, err
	}
	out, err := up.CloseAndReceive()
	if err != nil {
		return nil, s.d.handOn(e, err)
	}
	return connect.NewResponse(out.Msg), nil
}

// Get implements FileService.
func (s *fileService) Get(ctx context.Context, r *connect.Request[api.GetRequest], st *connect.ServerStream[api.GetResponse]) error {
	e, k, err := s.d.up(ctx, r.Msg.Guest)
	if err != nil {
		return err
	}
	down, err := k.files.Get(ctx, connect.NewRequest(r.Msg))
	if err != nil {
		return s.d.handOn(e, err)
	}
	defer down.Close()
	for down.Receive() {
		if err := st.Send(down.Msg()); err != nil {
			return err
		}
	}
	if err := down.Err(); err != nil {
		return s.d.handOn(e, err)
	}
	return nil
}

// List implements FileService.
func (s *fileService) List(ctx context.Context, r *connect.Request[api.ListFilesRequest]) (*connect.Response[api.ListFilesResponse], error) {
	e, k, err := s.d.up(ctx, r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	out, err := k.files.List(ctx, connect.NewRequest(r.Msg))
	if err != nil {
		return nil, s.d.handOn(e, err)
	}
	return connect.NewResponse(out.Msg), nil
}

// Read implements FileService.
func (s *fileService) Read(ctx context.Context, r *connect.Request[api.ReadFileRequest]) (*connect.Response[api.ReadFileResponse], error) {
	e, k, err := s.d.up(ctx, r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	out, err := k.files.Read(ctx, connect.NewRequest(r.Msg))
	if err != nil {
		return nil, s.d.handOn(e, err)
	}
	return connect.NewResponse(out.Msg), nil
}
