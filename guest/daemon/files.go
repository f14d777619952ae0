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
	var begun, ended error // what is not made again: a copy of which something was handed on
	_, err := needs(ctx, s.d, r.Msg.Guest, func(k *keeper) (any, error) {
		sent := false
		down, err := k.files.Get(ctx, connect.NewRequest(r.Msg))
		if err != nil {
			return nil, err
		}
		defer down.Close()
		for down.Receive() {
			sent = true
			if ended = st.Send(down.Msg()); ended != nil {
				return nil, nil
			}
		}
		if err = down.Err(); sent {
			begun, err = err, nil
		}
		return nil, err
	})
	switch {
	case ended != nil:
		return ended
	case begun != nil:
		return s.d.handOn(&entry{name: r.Msg.Guest}, begun)
	}
	return err
}

// List implements FileService.
func (s *fileService) List(ctx context.Context, r *connect.Request[api.ListFilesRequest]) (*connect.Response[api.ListFilesResponse], error) {
	return asked(needs(ctx, s.d, r.Msg.Guest, func(k *keeper) (*connect.Response[api.ListFilesResponse], error) {
		return k.files.List(ctx, connect.NewRequest(r.Msg))
	}))
}

// Read implements FileService.
func (s *fileService) Read(ctx context.Context, r *connect.Request[api.ReadFileRequest]) (*connect.Response[api.ReadFileResponse], error) {
	return asked(needs(ctx, s.d, r.Msg.Guest, func(k *keeper) (*connect.Response[api.ReadFileResponse], error) {
		return k.files.Read(ctx, connect.NewRequest(r.Msg))
	}))
}

// asked is a keeper's answer without what else came with it.
func asked[A any](out *connect.Response[A], err error) (*connect.Response[A], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out.Msg), nil
}
