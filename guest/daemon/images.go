package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
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
	if b := i.Bundle; b != nil {
		out.Bundle = &api.ImageBundle{Digest: b.Digest, Version: b.Version, Key: b.Key, KeyId: b.KeyID, From: b.From, Signed: timeOf(b.Created), Expires: timeOf(b.Expires)}
	}
	if o := i.Manifest.Origin; o != nil {
		out.Digest, out.Name = o.Digest, o.Digest
		for _, l := range o.Layers {
			out.LayersSize += l.Size
		}
		out.Config = &api.ImageConfig{Entrypoint: o.Config.Entrypoint, Cmd: o.Config.Cmd, Env: o.Config.Env, User: o.Config.User, Workdir: o.Config.WorkingDir}
	}
	return out
}

// listed returns images as a listing has them: a pulled one under each of its references, with what it
// shares with others.
func listed(all []images.Image) (out []*api.Image) {
	users := map[string]int{}
	for _, i := range all {
		for _, l := range i.Layers() {
			users[l.Digest]++
		}
	}
	for n := range all {
		img := toImage(&all[n])
		for _, l := range all[n].Layers() {
			if users[l.Digest] > 1 {
				img.LayersShared += l.Size
			}
		}
		if len(all[n].Refs) == 0 {
			out = append(out, img)
		}
		for _, r := range all[n].Refs {
			named := proto.Clone(img).(*api.Image)
			named.Name = r
			out = append(out, named)
		}
	}
	return out
}

// List implements ImageService.
func (s *imageService) List(ctx context.Context, _ *connect.Request[api.ListImagesRequest]) (*connect.Response[api.ListImagesResponse], error) {
	all, err := s.d.opts.Images.List(ctx)
	if err != nil {
		return nil, refusal(err)
	}
	return connect.NewResponse(&api.ListImagesResponse{Images: listed(all)}), nil
}

// Build implements ImageService.
func (s *imageService) Build(ctx context.Context, r *connect.Request[api.BuildImageRequest], st *connect.ServerStream[api.BuildImageEvent]) error {
	if err := s.d.roomByFile("build image "+imageName(r.Msg.Name), s.d.opts.Place.Cache); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	img, err := s.d.opts.Images.Build(ctx, images.BuildOptions{
		Name: imageName(r.Msg.Name), Arch: r.Msg.Arch, Agent: s.d.opts.Agent,
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

// Pull implements ImageService.
func (s *imageService) Pull(ctx context.Context, r *connect.Request[api.PullImageRequest], st *connect.ServerStream[api.PullImageResponse]) error {
	if err := s.d.roomByFile("pull an image", s.d.opts.Place.Cache); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	progress := func(e images.Event) {
		if err := st.Send(&api.PullImageResponse{Kind: &api.PullImageResponse_Progress{Progress: toProgress(e)}}); err != nil {
			cancel(err)
		}
	}
	img, ref, err := s.d.opts.Images.Pull(ctx, r.Msg.Reference, progress)
	if images.IsBundle(err) {
		img, err = s.d.opts.Images.PullBundle(ctx, r.Msg.Reference, images.BundleOptions{AllowRollback: r.Msg.AllowRollback, Progress: progress})
		if err == nil {
			return st.Send(&api.PullImageResponse{Kind: &api.PullImageResponse_Image{Image: s.withPrevious(img)}})
		}
	}
	if err != nil {
		return imageError("image_pull", err)
	}
	return st.Send(&api.PullImageResponse{Kind: &api.PullImageResponse_Image{Image: named(img, ref)}})
}

// Import implements ImageService.
func (s *imageService) Import(ctx context.Context, r *connect.Request[api.ImportImageRequest], st *connect.ServerStream[api.ImportImageResponse]) error {
	if !filepath.IsAbs(r.Msg.Path) {
		return api.NewError(connect.CodeInvalidArgument, "bad_path", "the path of what is imported is not absolute", "")
	}
	if err := s.d.roomByFile("import an image", s.d.opts.Place.Cache); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	progress := func(e images.Event) {
		if err := st.Send(&api.ImportImageResponse{Kind: &api.ImportImageResponse_Progress{Progress: toProgress(e)}}); err != nil {
			cancel(err)
		}
	}
	img, ref, err := s.d.opts.Images.Import(ctx, r.Msg.Path, r.Msg.Reference, progress)
	if images.IsBundle(err) && r.Msg.Reference != "" {
		return api.NewError(connect.CodeInvalidArgument, "bad_name", "it is a bundle, which is called as it was signed", "leave --name out")
	}
	if images.IsBundle(err) {
		img, err = s.d.opts.Images.ImportBundle(ctx, r.Msg.Path, images.BundleOptions{AllowRollback: r.Msg.AllowRollback, Progress: progress})
		if err == nil {
			return st.Send(&api.ImportImageResponse{Kind: &api.ImportImageResponse_Image{Image: s.withPrevious(img)}})
		}
	}
	if err != nil {
		return imageError("image_import", err)
	}
	return st.Send(&api.ImportImageResponse{Kind: &api.ImportImageResponse_Image{Image: named(img, ref)}})
}

func toProgress(e images.Event) *api.Progress {
	return &api.Progress{Stage: e.Stage, Done: e.Done, Total: e.Total, Line: e.Line}
}

func named(img *images.Image, r images.Reference) *api.Image {
	out := toImage(img)
	out.Name = r.Name
	return out
}

// imageError is why an image did not come.
func imageError(code string, err error) error {
	cause, cure := apart(err.Error())
	switch {
	case errors.Is(err, images.ErrName):
		return api.NewError(connect.CodeInvalidArgument, "bad_name", cause, cure)
	case errors.Is(err, images.ErrInUse):
		return api.NewError(connect.CodeFailedPrecondition, "in_use", cause, cure)
	case errors.Is(err, images.ErrUntrusted):
		return api.NewError(connect.CodePermissionDenied, "image_untrusted", cause, cure)
	case errors.Is(err, images.ErrRolledBack):
		return api.NewError(connect.CodeFailedPrecondition, "image_rolled_back", cause, cure)
	}
	return api.NewError(connect.CodeFailedPrecondition, code, cause, cure)
}

// pin lets a guest that is to start from an image of a registry start from the one with the digest that
// the name leads to now, and brings it if it is not here. A guest that starts again has its digest already.
func (d *Daemon) pin(ctx context.Context, e *entry, st *connect.ServerStream[api.StartGuestEvent]) error {
	info, _, _ := e.get()
	image := imageName(info.Spec.GetImage())
	_, r, err := d.opts.Images.Find(image)
	if hypervisor.ValidName(image) && r.Digest == "" {
		return nil // built here, or nowhere
	}
	if _, err := d.decide(info.Spec); err != nil {
		return err // before anything is downloaded for it
	}
	if errors.Is(err, images.ErrNotFound) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		_, r, err = d.opts.Images.Pull(ctx, image, func(ev images.Event) {
			if err := st.Send(&api.StartGuestEvent{Kind: &api.StartGuestEvent_Progress{Progress: toProgress(ev)}}); err != nil {
				cancel(err)
			}
		})
		if images.IsBundle(err) {
			return api.NewError(connect.CodeFailedPrecondition, "image_pull", image+" is a bundle, whose image has a name of its own", "carrel image pull "+image+" brings it")
		}
		if err != nil {
			return imageError("image_pull", err)
		}
	}
	if err != nil {
		return imageError("image_pull", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.info = proto.Clone(e.info).(*api.Guest)
	e.info.Spec.Image = r.String()
	return nil
}

// sameImage says whether a guest that is made from an image, by its digest, is what one would be that is
// asked for by name.
func sameImage(asked, is string) bool {
	a, err1 := images.ParseReference(asked)
	b, err2 := images.ParseReference(is)
	if err1 != nil || err2 != nil || b.Digest == "" {
		return asked == is
	}
	return (a.Name == b.Name || a.Name == "") && (a.Digest == "" || a.Digest == b.Digest)
}

// Verify implements ImageService.
func (s *imageService) Verify(ctx context.Context, r *connect.Request[api.VerifyImageRequest]) (*connect.Response[api.VerifyImageResponse], error) {
	id, ref, err := s.d.opts.Images.Find(imageName(r.Msg.Name))
	if err != nil {
		return nil, refusal(err)
	}
	if err := s.d.opts.Images.Verify(ctx, id); err != nil {
		return nil, refusal(err)
	}
	img, err := s.d.opts.Images.Get(ctx, id)
	if err != nil {
		return nil, refusal(err)
	}
	out := s.withPrevious(img)
	if ref.Digest != "" {
		out.Name = ref.String()
	}
	return connect.NewResponse(&api.VerifyImageResponse{Image: out}), nil
}

// Remove implements ImageService. An image stays that a guest runs from, and a pulled one that a guest
// would start from again: nobody else may have it any more.
func (s *imageService) Remove(ctx context.Context, r *connect.Request[api.RemoveImageRequest]) (*connect.Response[api.RemoveImageResponse], error) {
	name := imageName(r.Msg.Name)
	id, ref, err := s.d.opts.Images.Find(name)
	if err != nil && !errors.Is(err, images.ErrNotFound) {
		return nil, imageError("image_remove", err)
	}
	for n, u := range s.d.imageUsers(ctx) {
		switch {
		case id != "" && u.image == id && u.running:
			return nil, api.NewError(connect.CodeFailedPrecondition, "in_use", "guest "+n+" runs from image "+name, "carrel stop "+n)
		case ref.Digest != "" && strings.HasSuffix(u.image, "@"+ref.Digest) && s.d.opts.Images.Last(ref):
			return nil, api.NewError(connect.CodeFailedPrecondition, "in_use", "guest "+n+" is made from image "+name, "carrel rm "+n)
		}
	}
	if err := s.d.opts.Images.Remove(ctx, name); err != nil {
		if errors.Is(err, images.ErrInUse) {
			return nil, imageError("in_use", err)
		}
		return nil, refusal(err)
	}
	return connect.NewResponse(&api.RemoveImageResponse{}), nil
}

// imageUser is a guest as a user of an image.
type imageUser struct {
	image   string
	running bool
}

// imageUsers returns every guest. One that goes with its only task, when that has ended, is waited for:
// whoever has just seen the end of a run would not know of it any more.
func (d *Daemon) imageUsers(ctx context.Context) map[string]imageUser {
	ctx, cancel := context.WithTimeout(ctx, guest.StopBound)
	defer cancel()
	users := map[string]imageUser{}
	for _, e := range d.entries() { // one in the pool gives its image up: a claim looks at it again
		info, k, _ := e.get()
		if info.GetSpec().GetEphemeral() {
			ts, err := d.tasks(ctx, e)
			if err == nil && len(ts) > 0 && !slices.ContainsFunc(ts, func(t *api.Task) bool { return t.Ending == nil }) {
				e.wait(ctx, func(_ *api.Guest, k *keeper) bool { return k == nil })
			}
			if info, k, _ = e.get(); k == nil && !e.starts() && info.Kept == api.GuestKept_GUEST_KEPT_UNSPECIFIED {
				continue
			}
		}
		users[e.name] = imageUser{imageName(info.GetSpec().GetImage()), k != nil || e.isBusy()}
	}
	return users
}

// Prune implements ImageService.
func (s *imageService) Prune(ctx context.Context, r *connect.Request[api.PruneImagesRequest]) (*connect.Response[api.PruneImagesResponse], error) {
	p, err := s.d.pruneImages(ctx, r.Msg.All, r.Msg.DryRun)
	if err != nil {
		return nil, refusal(err)
	}
	return connect.NewResponse(&api.PruneImagesResponse{Images: listed(p.Images), Blobs: int32(p.Blobs), Freed: p.Bytes}), nil
}

func (d *Daemon) pruneImages(ctx context.Context, all, dry bool) (*images.Pruned, error) {
	users := d.imageUsers(ctx)
	inUse := func(digest string) bool {
		for _, u := range users {
			if strings.HasSuffix(u.image, "@"+digest) || u.image == digest {
				return true
			}
		}
		return false
	}
	return d.opts.Images.Prune(ctx, inUse, all, dry)
}

func (e *entry) isBusy() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.busy != ""
}

func (e *entry) starts() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.busy == "started"
}
