package daemon

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/review"
	sharerules "github.com/carrel-vm/carrel/guest/share/rules"
)

// shareService implements ShareService.
type shareService struct{ d *Daemon }

// List implements ShareService. Of a guest that does not run it is what its
// next start will share.
func (s *shareService) List(_ context.Context, r *connect.Request[api.ListSharesRequest]) (*connect.Response[api.ListSharesResponse], error) {
	e, err := s.d.find(r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	info, _, _ := e.get()
	out := new(api.ListSharesResponse)
	for _, sh := range info.GetSpec().GetShares() {
		out.Shares = append(out.Shares, s.d.sharedFolder(e, sh))
	}
	return connect.NewResponse(out), nil
}

// Add implements ShareService. It is kept with the guest: the next start has
// the share, too. One that is there already, just so, is no error.
func (s *shareService) Add(ctx context.Context, r *connect.Request[api.AddShareRequest]) (*connect.Response[api.AddShareResponse], error) {
	out, err := once(ctx, s.d, apiconnect.ShareServiceAddProcedure, r.Msg, func(made) (*api.AddShareResponse, error) { return s.add(ctx, r) })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

func (s *shareService) add(ctx context.Context, r *connect.Request[api.AddShareRequest]) (*api.AddShareResponse, error) {
	e, err := s.d.find(r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	if r.Msg.Share == nil {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_request", "there is no share in the request", "")
	}
	if err := e.finished(ctx); err != nil {
		return nil, err
	}
	if err := e.take("changed"); err != nil {
		return nil, err
	}
	defer e.release()
	info, k, _ := e.get()
	spec := proto.Clone(info.Spec).(*api.GuestSpec)
	want := proto.Clone(r.Msg.Share).(*api.Share)
	spec.Shares = append(spec.Shares, want)
	alone, err := s.d.decideAgain(&api.GuestSpec{Name: e.name, Shares: []*api.Share{want}}) // fills in what is left open
	if err != nil {
		return nil, refusal(err)
	}
	want = alone.grant.Spec().Shares[0]
	if i := shareAt(info.Spec.GetShares(), want.GuestPath); i >= 0 && proto.Equal(info.Spec.Shares[i], want) {
		return &api.AddShareResponse{Share: s.d.sharedFolder(e, want)}, nil
	}
	x, err := s.d.decideAgain(spec)
	if err != nil {
		return nil, refusal(err)
	}
	n := len(spec.Shares) - 1
	if err := makeStores(s.d.dir(e), x.grant); err != nil {
		return nil, api.NewError(connect.CodeInternal, "disk", err.Error(), "make room on the disk that holds "+s.d.guests)
	}
	if k != nil {
		if err := s.d.attach(ctx, e, k, x.grant, n); err != nil {
			return nil, err
		}
	}
	if err := s.d.respec(e, func(spec *api.GuestSpec) { spec.Shares = append(spec.Shares, want) }); err != nil {
		if k != nil {
			s.d.detach(context.WithoutCancel(ctx), e, k, want)
		}
		return nil, api.NewError(connect.CodeInternal, "disk", err.Error(), "")
	}
	s.d.record(e, "share.added", want)
	s.d.log.Info("share added", "guest", e.name, "path", want.Path, "mode", want.Mode, "live", k != nil)
	return &api.AddShareResponse{Share: s.d.sharedFolder(e, want)}, nil
}

// Remove implements ShareService. What waits of the share in the review is not
// thrown away unsaid: it must be applied or discarded first, or left behind by force.
func (s *shareService) Remove(ctx context.Context, r *connect.Request[api.RemoveShareRequest]) (*connect.Response[api.RemoveShareResponse], error) {
	e, err := s.d.find(r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	if err := e.finished(ctx); err != nil {
		return nil, err
	}
	if err := e.take("changed"); err != nil {
		return nil, err
	}
	defer e.release()
	sh, err := s.d.shareOf(e, r.Msg.Path)
	if err != nil {
		return nil, err
	}
	_, k, _ := e.get()
	if sh.Mode == api.ShareMode_SHARE_MODE_REVIEW && len(s.d.opts.Review) > 0 && !r.Msg.Force {
		if err := s.d.nothingWaitsIn(ctx, e, sh); err != nil {
			return nil, err
		}
	}
	if k != nil {
		if err := s.d.detach(ctx, e, k, sh); err != nil {
			return nil, err
		}
	}
	err = s.d.respec(e, func(spec *api.GuestSpec) {
		spec.Shares = slices.DeleteFunc(spec.Shares, func(x *api.Share) bool { return x.GuestPath == sh.GuestPath })
	})
	if err != nil {
		return nil, api.NewError(connect.CodeInternal, "disk", err.Error(), "")
	}
	s.d.record(e, "share.removed", sh)
	s.d.log.Info("share removed", "guest", e.name, "path", sh.Path, "live", k != nil)
	return connect.NewResponse(&api.RemoveShareResponse{}), nil
}

// nothingWaitsIn refuses to take away a share whose changes nobody has answered.
func (d *Daemon) nothingWaitsIn(ctx context.Context, e *entry, sh *api.Share) error {
	done, err := e.turn(ctx, readers)
	if err != nil {
		return err
	}
	defer done()
	if err := d.importReview(ctx, e, false); err != nil {
		return err
	}
	m, n := new(api.Change), int32(0)
	err = d.runReview(ctx, e, review.Request{Diff: &api.DiffRequest{Guest: e.name, Paths: []string{sh.Path}, NoText: true}}, m, func() error { n++; return nil })
	if err != nil || n == 0 {
		return err
	}
	return api.NewError(connect.CodeFailedPrecondition, "changes_waiting", fmt.Sprintf("guest %s has %s in %s that nobody has applied or discarded", e.name, files(n), sh.Path),
		"carrel apply or carrel discard them first ("+e.name+" "+sh.Path+"), or leave them behind: carrel share rm --force "+e.name+" "+sh.Path)
}

// Refresh implements ShareService.
func (s *shareService) Refresh(ctx context.Context, r *connect.Request[api.RefreshShareRequest]) (*connect.Response[api.RefreshShareResponse], error) {
	e, err := s.d.find(r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	_, k, _ := e.get()
	if k == nil {
		return nil, notRunning(e.name)
	}
	req := &api.RefreshShareRequest{Guest: e.name}
	if r.Msg.Path != "" {
		sh, err := s.d.shareOf(e, r.Msg.Path)
		if err != nil {
			return nil, err
		}
		req.Path = sh.Path
	}
	rctx, cancel := context.WithTimeout(ctx, importTime)
	defer cancel()
	if _, err := k.own.RefreshShare(rctx, connect.NewRequest(req)); err != nil {
		return nil, s.d.handOn(e, err)
	}
	return connect.NewResponse(&api.RefreshShareResponse{}), nil
}

// Explain implements ShareService.
func (s *shareService) Explain(_ context.Context, r *connect.Request[api.ExplainShareRequest]) (*connect.Response[api.ExplainShareResponse], error) {
	p := r.Msg.Path
	if !filepath.IsAbs(p) || filepath.Clean(p) != p {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_path", fmt.Sprintf("%.200q is not an absolute, clean path", p), "give the path of a file below the shared folder, on this machine")
	}
	spec := &api.GuestSpec{Name: "explain", Shares: []*api.Share{r.Msg.Share}}
	if r.Msg.Guest != "" {
		e, err := s.d.find(r.Msg.Guest)
		if err != nil {
			return nil, err
		}
		info, _, _ := e.get()
		spec = &api.GuestSpec{Name: e.name, Shares: info.GetSpec().GetShares()}
	} else if r.Msg.Share == nil {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_request", "neither a guest nor a share is named", "")
	}
	x, err := s.d.decideAgain(spec)
	if err != nil {
		return nil, refusal(err)
	}
	out, err := explain(x.grant, p)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// explain judges a path of the host by the rules of the innermost share that it
// lies in.
func explain(g *policy.Grant, p string) (*api.ExplainShareResponse, error) {
	best, rel := -1, ""
	for i, pin := range g.Pins() {
		r, err := filepath.Rel(pin.Path, p)
		if err == nil && filepath.IsLocal(r) && (best < 0 || len(r) < len(rel)) {
			best, rel = i, r
		}
	}
	if best < 0 {
		return nil, api.NewError(connect.CodeInvalidArgument, "not_shared", fmt.Sprintf("%.200q lies in no shared folder: the guest does not see it at all", p), "")
	}
	set, err := sharerules.Compile(g.ShareRules(best))
	if err != nil {
		return nil, err
	}
	if rel == "." {
		rel = ""
	}
	v := set.Judge(filepath.ToSlash(rel))
	out := &api.ExplainShareResponse{Hidden: v.Hidden, Protected: v.Protected, Pattern: v.Pattern, Origin: v.Origin, Reason: v.Reason}
	if mode := g.Spec().Shares[best].Mode; v.Protected && filepath.Base(rel) == "config" && mode != api.ShareMode_SHARE_MODE_REVIEW {
		out.Reason += "; so git init, clone, config and remote add are refused here (share the folder in review, or with --protect '!" + v.Pattern + "' if you mean it)"
	}
	if set.Plain() {
		out.Reason = "the share is plain: no name in it is hidden or protected"
	}
	return out, nil
}

// shareAt finds a share by where the guest sees it.
func shareAt(shares []*api.Share, guestPath string) int {
	return slices.IndexFunc(shares, func(s *api.Share) bool { return s.GuestPath == guestPath })
}

// shareOf finds a guest's share by its folder, or by where the guest sees it.
func (d *Daemon) shareOf(e *entry, path string) (*api.Share, error) {
	info, _, _ := e.get()
	var found []*api.Share
	for _, sh := range info.GetSpec().GetShares() {
		if sh.GuestPath == path {
			return sh, nil
		}
		if sh.Path == path {
			found = append(found, sh)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, api.NewError(connect.CodeNotFound, "not_shared", fmt.Sprintf("guest %s does not share %.200q", e.name, path), "carrel share ls "+e.name+" shows what it does")
	}
	return nil, api.NewError(connect.CodeInvalidArgument, "ambiguous", fmt.Sprintf("guest %s shares %.200q at %d places", e.name, path, len(found)), "name the place in the guest instead: carrel share ls "+e.name)
}
