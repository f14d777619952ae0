package daemon

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/images"
)

// imageService implements ImageService over the store.
type imageService struct{ d *Daemon }

func imageName(name string) string {
	if name == "" {
		return policy.DefaultImage
	}
	return name
}

func toImage(i *images.Image) *api.Image {
	out := &api.Image{Name: i.Name, KernelVersion: i.Manifest.KernelVersion, Arch: i.Manifest.Arch, RootUncompressed: i.Manifest.RootUncompressed}
	if t, err := time.Parse(time.RFC3339, i.Manifest.Created); err == nil {
		out.Created = timestamppb.New(t)
	}
	for _, p := range i.Manifest.Parts {
		out.Parts = append(out.Parts, &api.ImagePart{Name: p.Name, Sha256: p.SHA256, Size: p.Size})
	}
	return out
}

// List implements ImageService.
func (s *imageService) List(ctx context.Context, _ *connect.Request[api.ListImagesRequest]) (*connect.Response[api.ListImagesResponse], error) {
	all, err := s.d.opts.Images.List(ctx)
	if err != nil {
		return nil, refusal(err)
	}
	out := new(api.ListImagesResponse)
	for i := range all {
		out.Images = append(out.Images, toImage(&all[i]))
	}
	return connect.NewResponse(out), nil
}

// Build implements ImageService.
func (s *imageService) Build(ctx context.Context, r *connect.Request[api.BuildImageRequest], st *connect.ServerStream[api.BuildImageEvent]) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	img, err := s.d.opts.Images.Build(ctx, images.BuildOptions{
		Name: imageName(r.Msg.Name), Agent: s.d.opts.Agent,
		Progress: func(e images.Event) {
			p := &api.Progress{Stage: e.Stage, Done: e.Done, Total: e.Total, Line: e.Line}
			if err := st.Send(&api.BuildImageEvent{Kind: &api.BuildImageEvent_Progress{Progress: p}}); err != nil {
				cancel(err)
			}
		},
	})
	if err != nil {
		return api.NewError(connect.CodeInternal, "image_build", err.Error(), "")
	}
	return st.Send(&api.BuildImageEvent{Kind: &api.BuildImageEvent_Image{Image: toImage(img)}})
}

// Verify implements ImageService.
func (s *imageService) Verify(ctx context.Context, r *connect.Request[api.VerifyImageRequest]) (*connect.Response[api.VerifyImageResponse], error) {
	name := imageName(r.Msg.Name)
	if err := s.d.opts.Images.Verify(ctx, name); err != nil {
		return nil, refusal(err)
	}
	img, err := s.d.opts.Images.Get(ctx, name)
	if err != nil {
		return nil, refusal(err)
	}
	return connect.NewResponse(&api.VerifyImageResponse{Image: toImage(img)}), nil
}

// Remove implements ImageService. An image that a running guest uses stays.
func (s *imageService) Remove(ctx context.Context, r *connect.Request[api.RemoveImageRequest]) (*connect.Response[api.RemoveImageResponse], error) {
	name := imageName(r.Msg.Name)
	s.d.mu.Lock()
	user := ""
	for n, e := range s.d.table {
		if info, k, _ := e.get(); (k != nil || e.isBusy()) && imageName(info.GetSpec().GetImage()) == name {
			user = n
		}
	}
	s.d.mu.Unlock()
	if user != "" {
		return nil, api.NewError(connect.CodeFailedPrecondition, "in_use", "guest "+user+" runs from image "+name, "carrel stop "+user)
	}
	if err := s.d.opts.Images.Remove(ctx, name); err != nil {
		return nil, refusal(err)
	}
	return connect.NewResponse(&api.RemoveImageResponse{}), nil
}

func (e *entry) isBusy() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.busy != ""
}
