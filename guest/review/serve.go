package review

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

// Serve does what a request asks for and emits the answers, in a process that
// has given up everything but the request's folders and stores. An error with
// more than a text is an *Error.
func Serve(ctx context.Context, req Request, emit func(proto.Message) error) error {
	s := &server{req: req, emit: emit}
	defer s.close()
	err := s.serve(ctx)
	var own *Error
	switch {
	case err == nil || errors.As(err, &own) || ctx.Err() != nil:
		return err
	case errors.Is(err, ErrBusy):
		return &Error{Code: "busy", Cause: ErrBusy.Error(), Cure: "wait for it, then try again"}
	case errors.Is(err, ErrDamaged):
		return &Error{Code: "review_damaged", Cause: err.Error(), Cure: "with the guest running, carrel diff imports its changes again"}
	case share.IsFull(err):
		return &Error{
			Code: "disk_full", Cause: fmt.Sprintf("the disk is full; what was told is done (%d), the rest is in the review still: %v", s.done, err),
			Cure: "make room, then do the same again: it goes on from here",
		}
	}
	return err
}

// server is one request under way.
type server struct {
	req  Request
	emit func(proto.Message) error
	open []*opened
	done int
}

// opened is a share with what the request wants of it.
type opened struct {
	Target
	ref     ShareRef
	paths   []string
	closers []io.Closer
}

func (s *server) close() {
	for _, o := range s.open {
		for i := len(o.closers) - 1; i >= 0; i-- {
			o.closers[i].Close()
		}
	}
}

func (s *server) serve(ctx context.Context) error {
	switch r := s.req; {
	case r.Diff != nil:
		return s.diff(ctx, r.Diff)
	case r.Apply != nil:
		return s.apply(ctx, r.Apply)
	case r.Discard != nil:
		n := 0
		err := s.each(r.Discard.GetPaths(), func(o *opened) error {
			some, err := o.Discard(ctx, o.paths)
			n += some
			return err
		})
		if err != nil {
			return err
		}
		return s.emit(&api.DiscardResponse{Discarded: int32(n)})
	case r.Undo != nil:
		return s.undo(ctx, r.Undo)
	case r.Summary != nil:
		return s.summary(ctx)
	case r.Recover != nil:
		return s.each(nil, func(o *opened) error { return o.Recover() })
	}
	return &Error{Code: "bad_request", Cause: "the request asks for nothing"}
}

// each opens the shares that paths of the host lie in, or all, and calls do.
func (s *server) each(paths []string, do func(*opened) error) error {
	if err := s.openAll(paths); err != nil {
		return err
	}
	for _, o := range s.open {
		if err := do(o); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) openAll(paths []string) error {
	hit := make([]bool, len(paths))
	for _, ref := range s.req.Shares {
		var own []string
		for i, p := range paths {
			if name, in := below(ref.Path, p); in {
				own, hit[i] = append(own, name), true
			}
		}
		if len(paths) > 0 && len(own) == 0 {
			continue
		}
		o, err := s.openShare(ref)
		if err != nil {
			return err
		}
		if o != nil {
			o.paths = own
			s.open = append(s.open, o)
		}
	}
	for i, p := range paths {
		if !hit[i] {
			return &Error{Code: "bad_path", Cause: fmt.Sprintf("%q is in none of the guest's shares", p), Cure: "name a path of this host below a folder that carrel share ls shows"}
		}
	}
	return nil
}

// below gives a path of the host as a name in the share at root; "" is all of
// it, also for a path that the share itself lies in.
func below(root, path string) (name string, in bool) {
	rel, err := filepath.Rel(root, path)
	if err != nil || !filepath.IsAbs(path) {
		return "", false
	}
	rel = filepath.ToSlash(rel)
	up := rel // "..", however often; a file may be called "..."
	for strings.HasPrefix(up, "../") {
		up = up[3:]
	}
	switch {
	case rel == ".", up == "..":
		return "", true
	case up != rel:
		return "", false
	}
	return rel, true
}

// openShare opens a share and its store; nil if there is no store. Of the store
// only what the request needs: a base has a line for whatever was served, which
// is read to its end.
func (s *server) openShare(ref ShareRef) (o *opened, err error) {
	if _, err := os.Lstat(ref.Store); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	o = &opened{ref: ref}
	defer func() {
		if err != nil {
			for _, c := range o.closers {
				c.Close()
			}
		}
	}()
	if o.Rules, err = rules.Compile(ref.Rules); err != nil {
		return nil, fmt.Errorf("the rules of %s: %w", ref.Path, err)
	}
	if o.Root, err = share.OpenRoot(ref.Path); err != nil {
		return nil, &Error{Code: "share_gone", Cause: err.Error(), Cure: "bring the folder back under its name"}
	}
	o.closers = append(o.closers, o.Root)
	if dev, ino := o.Root.ID(); dev != ref.Dev || ino != ref.Ino {
		return nil, &Error{Code: "share_replaced", Cause: fmt.Sprintf("%s is another folder than the one that was shared", ref.Path), Cure: "bring the folder back under its name"}
	}
	if o.Store, err = Open(ref.Store); err != nil {
		return nil, err
	}
	o.closers = append(o.closers, o.Store)
	if s.req.Diff == nil && s.req.Summary == nil {
		if o.Base, err = OpenBase(ref.Store); err != nil {
			return nil, err
		}
		o.closers = append(o.closers, o.Base)
	}
	if s.req.Diff == nil {
		if o.Undo, err = OpenUndo(ref.Store); err != nil {
			return nil, err
		}
		o.closers = append(o.closers, o.Undo)
	}
	return o, nil
}

// hostPath is the path of a name on the host, as far as a message can carry it.
func (o *opened) hostPath(name string) string {
	return valid(filepath.Join(o.ref.Path, filepath.FromSlash(name)))
}

// tell emits what became of an entry.
func (s *server) tell(o *opened) func(Event) error {
	return func(e Event) error {
		if e.Refused == "" {
			s.done++
		}
		return s.emit(&api.ApplyEvent{
			Path: o.hostPath(e.Path), Refused: valid(e.Refused), Kind: api.ChangeKind(e.Kind), Applied: e.Applied,
		})
	}
}

func (s *server) apply(ctx context.Context, r *api.ApplyRequest) error {
	group := newID()
	seen, err := parseSeen(r.GetSeen())
	if err != nil {
		return err
	}
	if seen != nil && r.GetGit() {
		return &Error{Code: "bad_request", Cause: "commits are checked as a whole, and are not among the changes that are seen"}
	}
	return s.each(r.GetPaths(), func(o *opened) error {
		if r.GetGit() {
			return o.ImportGit(ctx, s.req.Guest, r.GetDryRun(), s.tell(o))
		}
		return o.Apply(ctx, ApplyOptions{
			Paths: o.paths, Accept: r.GetAcceptWarnings(), Overwrite: r.GetOverwrite(), Ignored: r.GetIgnored(), DryRun: r.GetDryRun(), Group: group, Seen: seen,
		}, s.tell(o))
	})
}

// undo takes back a task's sets, or those of the last apply, or, if there was
// none, those of the last task.
func (s *server) undo(ctx context.Context, r *api.UndoRequest) error {
	if err := s.openAll(r.GetPaths()); err != nil {
		return err
	}
	sets := make([][]Undoing, len(s.open))
	var last *Undoing
	for n, o := range s.open {
		all, err := o.Undo.Undoable(r.GetTask())
		if err != nil {
			return err
		}
		sets[n] = all
		for i := range all {
			u := &all[i]
			if r.GetTask() == "" && (last == nil || u.Apply && !last.Apply || u.Apply == last.Apply && u.At.After(last.At)) {
				last = u
			}
		}
	}
	group, found := newID(), false
	for n, o := range s.open {
		var ids []string
		for _, u := range sets[n] {
			if u.among(r.GetTask(), last) {
				ids = append(ids, u.ID)
			}
		}
		if len(ids) == 0 {
			continue
		}
		found = true
		if err := o.TakeBack(ctx, UndoOptions{Sets: ids, Paths: o.paths, Overwrite: r.GetOverwrite(), Group: group}, s.tell(o)); err != nil {
			return err
		}
	}
	if !found {
		what := "nothing was applied, and no task has changed a live share"
		if r.GetTask() != "" {
			what = fmt.Sprintf("task %.64q has changed nothing that is kept", r.GetTask())
		}
		return &Error{Code: "not_found", Cause: what + ", or it was taken back already, or has made room for newer sets"}
	}
	return nil
}

// among says whether a set is one of those that are meant.
func (u *Undoing) among(task string, last *Undoing) bool {
	switch {
	case task != "":
		return u.Task == task || u.ID == task
	case last == nil:
		return false
	case last.Group != "":
		return u.Group == last.Group
	case last.Task != "":
		return u.Task == last.Task && !u.Apply
	}
	return u.ID == last.ID
}
