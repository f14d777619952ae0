package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/review"
)

// reviewService implements ReviewService. Change sets are read and written by a
// process that is started for each request and has the shared folders, their
// stores and nothing else; what it answers is bounded and handed on.
type reviewService struct{ d *Daemon }

const (
	// importTime bounds how long a running guest may take to tell its changes.
	importTime = 90 * time.Second
	// turnTime bounds how long one operation waits for another on the same
	// guest: a diff may stay open as long as its reader likes.
	turnTime = 10 * time.Second
	// leaveTime bounds how long a review process may take to end when nobody
	// listens to it any more.
	leaveTime = 10 * time.Second
)

// readers is how many operations that only read may run on one guest at a time.
const readers = 8

// turn waits for the guest's changes: share of them to read, all to change them.
func (e *entry) turn(ctx context.Context, share int64) (done func(), err error) {
	tctx, cancel := context.WithTimeout(ctx, turnTime)
	defer cancel()
	if e.review.Acquire(tctx, share) == nil {
		return func() { e.review.Release(share) }, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, api.NewError(connect.CodeAborted, "busy", "the changes of guest "+e.name+" are being looked at or applied by somebody else", "try again when that is done: a diff that is open in another window counts")
}

// Diff implements ReviewService.
func (s *reviewService) Diff(ctx context.Context, r *connect.Request[api.DiffRequest], st *connect.ServerStream[api.Change]) error {
	e, done, err := s.begin(ctx, r.Msg.Guest, 1, r.Msg.Ignored)
	if err != nil {
		return err
	}
	defer done()
	m := new(api.Change)
	return s.d.runReview(ctx, e, review.Request{Diff: r.Msg}, m, func() error { return st.Send(m) })
}

// Summary implements ReviewService.
func (s *reviewService) Summary(ctx context.Context, r *connect.Request[api.ReviewSummaryRequest]) (*connect.Response[api.ReviewSummary], error) {
	e, done, err := s.begin(ctx, r.Msg.Guest, 1, false)
	if err != nil {
		return nil, err
	}
	defer done()
	sum, err := s.d.summarize(ctx, e)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(sum), nil
}

// Apply implements ReviewService.
func (s *reviewService) Apply(ctx context.Context, r *connect.Request[api.ApplyRequest], st *connect.ServerStream[api.ApplyEvent]) error {
	e, done, err := s.begin(ctx, r.Msg.Guest, readers, r.Msg.Ignored)
	if err != nil {
		return err
	}
	defer done()
	c := counted{}
	m := new(api.ApplyEvent)
	run := s.d.runChange
	if r.Msg.DryRun {
		run = s.d.runReview
	}
	err = run(ctx, e, review.Request{Apply: r.Msg}, m, func() error {
		c.add(m, !r.Msg.DryRun)
		return st.Send(m)
	})
	if !r.Msg.DryRun {
		s.changed(ctx, e, "review.applied", map[string]any{
			"applied": c.done, "refused": c.refused, "accept_warnings": r.Msg.AcceptWarnings, "overwrite": r.Msg.Overwrite, "git": r.Msg.Git, "failed": err != nil,
		}, c.paths)
	}
	return err
}

// Discard implements ReviewService.
func (s *reviewService) Discard(ctx context.Context, r *connect.Request[api.DiscardRequest]) (*connect.Response[api.DiscardResponse], error) {
	e, done, err := s.begin(ctx, r.Msg.Guest, readers, false)
	if err != nil {
		return nil, err
	}
	defer done()
	var paths []string // for a guest, each entry by its own name
	if len(r.Msg.Paths) > 0 {
		ch := new(api.Change)
		all := &api.DiffRequest{Guest: e.name, Paths: r.Msg.Paths, NoText: true, Ignored: true}
		if err := s.d.runReview(ctx, e, review.Request{Diff: all}, ch, func() error { paths = append(paths, ch.Path); return nil }); err != nil {
			return nil, err
		}
	}
	m, out := new(api.DiscardResponse), new(api.DiscardResponse)
	err = s.d.runReview(ctx, e, review.Request{Discard: r.Msg}, m, func() error {
		proto.Merge(out, m)
		return nil
	})
	if err != nil {
		return nil, err
	}
	paths = append(paths, r.Msg.Paths...)
	if len(paths) == 0 {
		info, _, _ := e.get()
		for _, sh := range info.GetSpec().GetShares() {
			paths = append(paths, sh.Path)
		}
	}
	if err := s.changed(ctx, e, "review.discarded", map[string]any{"discarded": out.Discarded, "all": len(r.Msg.Paths) == 0}, paths); err != nil {
		return nil, api.NewError(connect.CodeUnavailable, "import_failed", "what waited is thrown away, and guest "+e.name+" does not forget it: "+ownText(err), "carrel discard "+e.name+", once more")
	}
	return connect.NewResponse(out), nil
}

// Undo implements ReviewService.
func (s *reviewService) Undo(ctx context.Context, r *connect.Request[api.UndoRequest], st *connect.ServerStream[api.ApplyEvent]) error {
	e, done, err := s.begin(ctx, r.Msg.Guest, readers, false)
	if err != nil {
		return err
	}
	defer done()
	c := counted{}
	m := new(api.ApplyEvent)
	err = s.d.runChange(ctx, e, review.Request{Undo: r.Msg}, m, func() error {
		c.add(m, false)
		return st.Send(m)
	})
	s.changed(ctx, e, "review.undone", map[string]any{"undone": c.done, "refused": c.refused, "task": fmt.Sprintf("%.64q", r.Msg.Task), "overwrite": r.Msg.Overwrite, "failed": err != nil}, nil)
	return err
}

// counted is what an operation has done so far.
type counted struct {
	done, refused int
	paths         []string
}

func (c *counted) add(m *api.ApplyEvent, keep bool) {
	if m.Refused != "" {
		c.refused++
		return
	}
	c.done++
	if keep {
		c.paths = append(c.paths, m.Path)
	}
}

// begin finds the guest, takes its turn, and has a guest that runs tell what it
// has changed. What a task changed came over when it ended; what else did, as a
// copy into the guest, comes now; with ignored the contents of what the host's
// ignore rules leave out, too.
func (s *reviewService) begin(ctx context.Context, name string, share int64, ignored bool) (*entry, func(), error) {
	e, err := s.d.find(name)
	if err != nil {
		return nil, nil, err
	}
	done, err := e.turn(ctx, share)
	if err != nil {
		return nil, nil, err
	}
	if now, err := s.d.find(name); now != e { // it was removed meanwhile
		done()
		if err == nil {
			err = api.NewError(connect.CodeAborted, "busy", "guest "+name+" was removed, and another has its name", "try again")
		}
		return nil, nil, err
	}
	if err := s.d.importReview(ctx, e, ignored); err != nil {
		done()
		return nil, nil, err
	}
	return e, done, nil
}

func (d *Daemon) importReview(ctx context.Context, e *entry, ignored bool) error {
	info, k, _ := e.get()
	if k == nil || info.State != api.GuestState_GUEST_STATE_READY || !inReview(info.Spec) {
		return nil
	}
	if info.Spec.Ephemeral && len(info.Tasks) == 0 {
		return nil // its task has ended, and the guest is about to
	}
	ictx, cancel := context.WithTimeout(ctx, importTime)
	defer cancel()
	_, err := k.own.ImportReview(ictx, connect.NewRequest(&api.ImportReviewRequest{Ignored: ignored}))
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// A guest that ends, or ended meanwhile, has told what it had to. Its keeper
	// knows that before the daemon does, and may itself be gone.
	code := connect.CodeOf(err)
	if _, now, _ := e.get(); now != k || code == connect.CodeFailedPrecondition || code == connect.CodeUnavailable {
		return nil
	}
	return api.NewError(connect.CodeUnavailable, "import_failed", "guest "+e.name+" does not tell what it has changed: "+ownText(err), "carrel stop "+e.name+", and what is known of it until then can be looked at")
}

// ownText is an error's own text, without the transport's.
func ownText(err error) string {
	var ce *connect.Error
	if errors.As(err, &ce) {
		return ce.Message()
	}
	return err.Error()
}

// inReview says whether any share of a guest is in review.
func inReview(spec *api.GuestSpec) bool {
	for _, sh := range spec.GetShares() {
		if sh.Mode == api.ShareMode_SHARE_MODE_REVIEW {
			return true
		}
	}
	return false
}

// changed follows what was applied, discarded or undone: it is recorded, a
// guest that runs forgets it, and what waits is counted again. An err is what it does
// not forget.
func (s *reviewService) changed(ctx context.Context, e *entry, kind string, fields map[string]any, paths []string) (err error) {
	ctx = context.WithoutCancel(ctx)
	s.d.record(e, kind, fields)
	s.d.log.Info(kind, "guest", e.name, "counts", fmt.Sprint(fields))
	err = s.d.dropReview(ctx, e, paths)
	if _, k, _ := e.get(); k == nil {
		s.d.leave(s.d.ctx, e, true) // it may have been kept for this alone
		return err
	}
	if _, err := s.d.summarize(ctx, e); err != nil {
		s.d.log.Error("count what waits", "guest", e.name, "error", err)
	}
	return err
}

// dropped sorts paths of the host by the shares in review that they lie in, in
// messages of a bounded size.
func dropped(shares []*api.Share, paths []string) (out []*api.DropReviewRequest) {
	const most = 1 << 20 // bytes of names in a message
	for _, sh := range shares {
		if sh.Mode != api.ShareMode_SHARE_MODE_REVIEW {
			continue
		}
		var now *api.DropReviewRequest
		size, all := 0, false
		for _, p := range paths {
			rel, err := filepath.Rel(sh.Path, p)
			switch {
			case err != nil || !filepath.IsLocal(rel):
				continue
			case rel == ".":
				all = true
				continue
			case now == nil || size > most:
				now, size = &api.DropReviewRequest{Share: sh.Path}, 0
				out = append(out, now)
			}
			now.Names = append(now.Names, filepath.ToSlash(rel))
			size += len(rel)
		}
		if all {
			out = append(out, &api.DropReviewRequest{Share: sh.Path})
		}
	}
	return out
}

// summarize counts what waits, and keeps it with the guest.
func (d *Daemon) summarize(ctx context.Context, e *entry) (*api.ReviewSummary, error) {
	m, sum := new(api.ReviewSummary), (*api.ReviewSummary)(nil)
	err := d.runReview(ctx, e, review.Request{Summary: &api.ReviewSummaryRequest{Guest: e.name}}, m, func() error {
		sum = proto.Clone(m).(*api.ReviewSummary)
		return nil
	})
	if err == nil && sum == nil {
		err = api.NewError(connect.CodeInternal, "review_failed", "the review process counted nothing", "")
	}
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.waits = sum
	e.changedLocked()
	e.mu.Unlock()
	return sum, nil
}

// runReview starts a process for one request and calls each with every answer,
// which is in m then.
func (d *Daemon) runReview(ctx context.Context, e *entry, req review.Request, m proto.Message, each func() error) error {
	if len(d.opts.Review) == 0 {
		return api.NewError(connect.CodeUnimplemented, "no_review", "changes cannot be reviewed on this system yet", "")
	}
	shares, err := d.reviewShares(e)
	if r := (*policy.Refusal)(nil); errors.As(err, &r) && r.Code == "share_refused" { // no other folder can be chosen for what was changed in this one
		err = &policy.Refusal{Code: r.Code, Reason: r.Reason, Cure: "put the folder back where it was, or give up what waits of it: carrel rm --force " + e.name}
	}
	if err != nil {
		return refusal(err)
	}
	return d.runReviewOf(ctx, e, req, shares, m, each)
}

// runReviewOf is runReview for some of the guest's shares.
func (d *Daemon) runReviewOf(ctx context.Context, e *entry, req review.Request, shares []review.ShareRef, m proto.Message, each func() error) error {
	req.Guest, req.Shares = e.name, shares
	c, err := d.launch("review", d.opts.Review, nil, d.dir(e), func(w io.Writer) error { return review.WriteRequest(w, req) }, nil, nil)
	if err != nil {
		return api.NewError(connect.CodeInternal, "review_failed", err.Error(), "")
	}
	defer c.leave()
	defer context.AfterFunc(ctx, func() {
		c.word.Close()
		// On Windows that does not end a read that waits.
		time.AfterFunc(leaveTime, func() { c.cmd.Process.Kill() })
	})()
	in := bufio.NewReaderSize(c.word, 64<<10)
	for {
		proto.Reset(m)
		switch err := review.ReadAnswer(in, m); {
		case err == io.EOF:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return reviewError(err, c.log)
		}
		if err := each(); err != nil {
			return err
		}
	}
}

// leave returns when the process has ended: it notices at its next answer that
// nobody listens, and then stops at a place from which it can go on.
func (c *child) leave() {
	c.word.Close()
	t := time.AfterFunc(leaveTime, func() { c.cmd.Process.Kill() })
	defer t.Stop()
	<-c.done
}

func reviewError(err error, log string) error {
	var own *review.Error
	if !errors.As(err, &own) {
		return api.NewError(connect.CodeInternal, "review_failed", err.Error(), "see "+log)
	}
	code := connect.CodeFailedPrecondition
	switch own.Code {
	case "not_found":
		code = connect.CodeNotFound
	case "bad_path", "bad_request":
		code = connect.CodeInvalidArgument
	case "review_failed":
		code = connect.CodeInternal
	}
	return api.NewError(code, own.Code, own.Cause, own.Cure)
}

// reviewShares names the guest's shares as they are granted now, each with its
// store. One that is not granted any more, as a folder that is gone, is left
// out, unless there is no other.
func (d *Daemon) reviewShares(e *entry) (refs []review.ShareRef, err error) {
	info, _, _ := e.get()
	if len(info.GetSpec().GetShares()) == 0 {
		return nil, api.NewError(connect.CodeFailedPrecondition, "nothing_shared", "guest "+e.name+" shares no folder", "")
	}
	var first error
	for _, sh := range info.Spec.Shares {
		x, err := d.decideAgain(&api.GuestSpec{Name: e.name, Shares: []*api.Share{sh}})
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		pin, s := x.grant.Pins()[0], x.grant.Spec().Shares[0]
		refs = append(refs, review.ShareRef{
			Path: s.Path, Dev: pin.Dev, Ino: pin.Ino, Store: guest.ReviewDir(d.dir(e), x.grant.Layer(0)), GuestPath: s.GuestPath, Rules: x.grant.ShareRules(0),
		})
	}
	if len(refs) == 0 {
		return nil, first
	}
	return refs, nil
}

// makeStores makes the folders of the stores of all shares.
func makeStores(dir string, g *policy.Grant) error {
	for i := range g.Pins() {
		if err := place.MakePrivate(guest.ReviewDir(dir, g.Layer(i))); err != nil {
			return err
		}
	}
	return nil
}
