package client

import (
	"bytes"
	"context"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// What these methods return of a change is the guest's word: names, targets and
// the text of diffs are to be escaped before they are shown.

// ReviewSummary counts what a guest has changed in its review shares, and what
// can be undone. It reads no contents.
func (c *Client) ReviewSummary(ctx context.Context, guest string) (*api.ReviewSummary, error) {
	if err := CheckName("guest", guest); err != nil {
		return nil, err
	}
	res, err := c.reviews.Summary(ctx, connect.NewRequest(&api.ReviewSummaryRequest{Guest: guest}))
	if err != nil {
		return nil, wrap("count what guest "+guest+" has changed", err)
	}
	return res.Msg, nil
}

// DiffOptions say which of a guest's changes are wanted, and how much of them.
// The zero value is all, with the text of diffs.
type DiffOptions struct {
	// Paths are absolute paths of the host, each a file or a folder.
	Paths []string
	// NoText leaves the text of diffs out.
	NoText bool
	// Context is how many lines come with each change; 0: 3.
	Context uint32
	// Ignored takes also what the host's ignore rules leave out.
	Ignored bool
	// Beside, if any, is called last, with what the guest has changed beside
	// what a diff of all shows.
	Beside func(*api.Beside) error
}

// Diff calls f, in the order of their paths and from one goroutine, with each
// change that a guest has made. An error of f ends it and is returned.
func (c *Client) Diff(ctx context.Context, guest string, o DiffOptions, f func(*api.Change) error) error {
	if err := CheckName("guest", guest); err != nil {
		return err
	}
	st, err := c.reviews.Diff(ctx, connect.NewRequest(&api.DiffRequest{
		Guest: guest, Paths: o.Paths, NoText: o.NoText, Context: o.Context, Ignored: o.Ignored, Beside: o.Beside != nil,
	}))
	return each(ctx, "show what guest "+guest+" has changed", st, err, func(ch *api.Change) error {
		if ch.Beside != nil && o.Beside != nil {
			return o.Beside(ch.Beside)
		}
		return f(ch)
	})
}

// ApplyOptions say what is applied. The zero value is every change that needs no
// yes of its own and no overwriting.
type ApplyOptions struct {
	// Paths are absolute paths of the host, each a file or a folder.
	Paths []string
	// AcceptWarnings applies also what programs of the host run or obey. The
	// caller has shown it to a person.
	AcceptWarnings bool
	// Overwrite writes over what the host has changed meanwhile.
	Overwrite bool
	// Git brings the commits of the guest's .git as refs/carrel/NAME/.
	Git bool
	// DryRun says what would happen, and does nothing.
	DryRun bool
	// Ignored takes also what the host's ignore rules leave out.
	Ignored bool
	// Seen are api.Change.Seen of all changes that were looked at. If there are
	// any, what came or was changed again since is not applied.
	Seen [][]byte
}

// Apply writes a guest's changes into the host's folders, file by file, and
// calls f with what became of each. What was not applied is in f's event and
// waits on; it is no error.
func (c *Client) Apply(ctx context.Context, guest string, o ApplyOptions, f func(*api.ApplyEvent) error) error {
	if err := CheckName("guest", guest); err != nil {
		return err
	}
	st, err := c.reviews.Apply(ctx, connect.NewRequest(&api.ApplyRequest{
		Guest: guest, Paths: o.Paths, AcceptWarnings: o.AcceptWarnings, Overwrite: o.Overwrite, Git: o.Git, DryRun: o.DryRun, Ignored: o.Ignored,
		Seen: bytes.Join(o.Seen, nil),
	}))
	return each(ctx, "apply what guest "+guest+" has changed", st, err, f)
}

// Discard throws a guest's changes away, in the guest too, and returns how many;
// without paths, all. It cannot be undone.
func (c *Client) Discard(ctx context.Context, guest string, paths ...string) (int, error) {
	if err := CheckName("guest", guest); err != nil {
		return 0, err
	}
	res, err := c.reviews.Discard(ctx, connect.NewRequest(&api.DiscardRequest{Guest: guest, Paths: paths}))
	if err != nil {
		return 0, wrap("discard what guest "+guest+" has changed", err)
	}
	return int(res.Msg.Discarded), nil
}

// UndoOptions say what is taken back. The zero value is the last apply, or, if
// there was none, what the last task changed in shares that it may write to.
type UndoOptions struct {
	// Task is the id of the task whose changes are meant.
	Task string
	// Paths are absolute paths of the host, each a file or a folder.
	Paths []string
	// Overwrite writes over what was changed since.
	Overwrite bool
}

// Undo takes back what was applied, or what tasks changed in shares that they
// may write to, and calls f with what became of each.
func (c *Client) Undo(ctx context.Context, guest string, o UndoOptions, f func(*api.ApplyEvent) error) error {
	if err := CheckName("guest", guest); err != nil {
		return err
	}
	st, err := c.reviews.Undo(ctx, connect.NewRequest(&api.UndoRequest{Guest: guest, Task: o.Task, Paths: o.Paths, Overwrite: o.Overwrite}))
	return each(ctx, "undo what guest "+guest+" has changed", st, err, f)
}

// each calls f with every message of a stream.
func each[M any](ctx context.Context, op string, st *connect.ServerStreamForClient[M], err error, f func(*M) error) error {
	if err != nil {
		return wrap(op, err)
	}
	defer st.Close()
	// The HTTP/2 transport looks at a request's context only while it writes,
	// and this one has been written.
	defer context.AfterFunc(ctx, func() { st.Close() })()
	for st.Receive() {
		if err := f(st.Msg()); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return wrap(op, st.Err())
}
