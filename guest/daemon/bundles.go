package daemon

import (
	"context"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/images"
)

func timeOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// withPrevious is an image with what Restore would bring back in its place.
func (s *imageService) withPrevious(img *images.Image) *api.Image {
	out := toImage(img)
	if before, err := s.d.opts.Images.Previous(img.Name); err == nil && out.Bundle != nil {
		out.Bundle.HasPrevious = true
		if before.Bundle != nil {
			out.Bundle.PreviousVersion = before.Bundle.Version
		}
	}
	return out
}

func signing(m *api.ImageSigning, progress func(images.Event)) (images.SignOptions, error) {
	if m == nil || !filepath.IsAbs(m.KeyPath) {
		return images.SignOptions{}, api.NewError(connect.CodeInvalidArgument, "bad_path", "the path of the key to sign with is not absolute", "")
	}
	if m.ExpiresNanos < 0 {
		return images.SignOptions{}, api.NewError(connect.CodeInvalidArgument, "bad_time", "a signature that has expired already", "")
	}
	return images.SignOptions{Key: m.KeyPath, Version: m.Version, Expires: time.Duration(m.ExpiresNanos), As: m.As, Progress: progress}, nil
}

func published(p *images.Published) *api.PublishedImage {
	return &api.PublishedImage{Name: p.Name, Digest: p.Digest, Version: p.Version, Archs: p.Archs, Size: p.Size}
}

// Push implements ImageService.
func (s *imageService) Push(ctx context.Context, r *connect.Request[api.PushImageRequest], st *connect.ServerStream[api.PushImageResponse]) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	o, err := signing(r.Msg.Signing, func(e images.Event) {
		if err := st.Send(&api.PushImageResponse{Kind: &api.PushImageResponse_Progress{Progress: toProgress(e)}}); err != nil {
			cancel(err)
		}
	})
	if err != nil {
		return err
	}
	p, err := s.d.opts.Images.PushBundle(ctx, r.Msg.Names, r.Msg.Reference, o)
	if err != nil {
		return imageError("image_push", err)
	}
	return st.Send(&api.PushImageResponse{Kind: &api.PushImageResponse_Published{Published: published(p)}})
}

// Export implements ImageService.
func (s *imageService) Export(ctx context.Context, r *connect.Request[api.ExportImageRequest], st *connect.ServerStream[api.ExportImageResponse]) error {
	if !filepath.IsAbs(r.Msg.Path) {
		return api.NewError(connect.CodeInvalidArgument, "bad_path", "the path to export to is not absolute", "")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	o, err := signing(r.Msg.Signing, func(e images.Event) {
		if err := st.Send(&api.ExportImageResponse{Kind: &api.ExportImageResponse_Progress{Progress: toProgress(e)}}); err != nil {
			cancel(err)
		}
	})
	if err != nil {
		return err
	}
	out, err := once(ctx, s.d, apiconnect.ImageServiceExportProcedure, r.Msg, func(made) (*api.PublishedImage, error) {
		p, err := s.d.opts.Images.ExportBundle(ctx, r.Msg.Names, r.Msg.Path, o)
		if err != nil {
			return nil, imageError("image_export", err)
		}
		return published(p), nil
	})
	if err != nil {
		return err
	}
	return st.Send(&api.ExportImageResponse{Kind: &api.ExportImageResponse_Published{Published: out}})
}

// Restore implements ImageService.
func (s *imageService) Restore(ctx context.Context, r *connect.Request[api.RestoreImageRequest]) (*connect.Response[api.RestoreImageResponse], error) {
	img, err := s.d.opts.Images.Restore(ctx, imageName(r.Msg.Name))
	if err != nil {
		return nil, refusal(err)
	}
	return connect.NewResponse(&api.RestoreImageResponse{Image: s.withPrevious(img)}), nil
}

func toKey(k images.TrustedKey) *api.ImageKey {
	return &api.ImageKey{Name: k.Name, Id: k.ID, Path: k.Path, Images: k.For}
}

func keyError(err error) error {
	cause, cure := apart(err.Error())
	return api.NewError(connect.CodeFailedPrecondition, "key", cause, cure)
}

// ListKeys implements ImageService.
func (s *imageService) ListKeys(context.Context, *connect.Request[api.ListKeysRequest]) (*connect.Response[api.ListKeysResponse], error) {
	keys, err := s.d.opts.Images.Keys()
	if err != nil {
		return nil, keyError(err)
	}
	out := &api.ListKeysResponse{}
	for _, k := range keys {
		out.Keys = append(out.Keys, toKey(k))
	}
	return connect.NewResponse(out), nil
}

// CreateKey implements ImageService.
func (s *imageService) CreateKey(ctx context.Context, r *connect.Request[api.CreateKeyRequest]) (*connect.Response[api.CreateKeyResponse], error) {
	out, err := once(ctx, s.d, apiconnect.ImageServiceCreateKeyProcedure, r.Msg, func(by made) (*api.CreateKeyResponse, error) { return s.createKey(r, by) })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

func (s *imageService) createKey(r *connect.Request[api.CreateKeyRequest], by made) (*api.CreateKeyResponse, error) {
	if !filepath.IsAbs(r.Msg.Path) {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_path", "the path of the key is not absolute", "")
	}
	if by.again { // it may have been made
		if k, err := images.KeyAt(r.Msg.Path); err == nil {
			return &api.CreateKeyResponse{Key: toKey(k)}, nil
		}
	}
	k, err := images.CreateKey(r.Msg.Path)
	if err != nil {
		return nil, keyError(err)
	}
	return &api.CreateKeyResponse{Key: toKey(k)}, nil
}

// TrustKey implements ImageService.
func (s *imageService) TrustKey(_ context.Context, r *connect.Request[api.TrustKeyRequest]) (*connect.Response[api.TrustKeyResponse], error) {
	if !filepath.IsAbs(r.Msg.Path) {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_path", "the path of the key is not absolute", "")
	}
	s.d.policyMu.Lock()
	defer s.d.policyMu.Unlock()
	k, err := s.d.opts.Images.TrustKey(r.Msg.Path, r.Msg.Name, r.Msg.Images)
	if err != nil {
		return nil, keyError(err)
	}
	return connect.NewResponse(&api.TrustKeyResponse{Key: toKey(k)}), nil
}

// ForgetKey implements ImageService.
func (s *imageService) ForgetKey(_ context.Context, r *connect.Request[api.ForgetKeyRequest]) (*connect.Response[api.ForgetKeyResponse], error) {
	s.d.policyMu.Lock()
	defer s.d.policyMu.Unlock()
	if err := s.d.opts.Images.ForgetKey(r.Msg.Name); err != nil {
		return nil, keyError(err)
	}
	return connect.NewResponse(&api.ForgetKeyResponse{}), nil
}
