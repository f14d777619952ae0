package client

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// EventOptions say which events are wanted.
type EventOptions struct {
	// After is the sequence of the last event that the caller has; 0: none, all
	// that are kept come.
	After uint64
	// OnlyNew begins with what happens from now on.
	OnlyNew bool
	// Follow goes on with new ones until ctx ends.
	Follow bool
	// Guest: only events of this guest; empty: all.
	Guest string
}

// Events calls f, in order and from one goroutine, with what happens to guests,
// tasks, reviews, egress and images. When the daemon goes away while events are
// followed, another is found or started, and they go on after the last one.
func (c *Client) Events(ctx context.Context, o EventOptions, f func(*api.Event) error) error {
	if o.Guest != "" {
		if err := CheckName("guest", o.Guest); err != nil {
			return err
		}
	}
	req := &api.WatchEventsRequest{After: o.After, OnlyNew: o.OnlyNew, NoFollow: !o.Follow, Guest: o.Guest}
	for tries := 0; ; tries++ {
		n, err := c.watchEvents(ctx, req, f)
		if own := (*stopped)(nil); errors.As(err, &own) {
			return own.error
		}
		if n > 0 {
			tries = 0
		}
		if err == nil || !o.Follow || tries >= connectTries || !broken(ctx, err) {
			return wrap("follow the events", err)
		}
		if err := c.ensure(ctx); err != nil {
			return err
		}
	}
}

// stopped is what the caller's own function said.
type stopped struct{ error }

// watchEvents follows one stream, and returns how many events came.
func (c *Client) watchEvents(ctx context.Context, req *api.WatchEventsRequest, f func(*api.Event) error) (n int, err error) {
	st, err := c.events.Watch(ctx, connect.NewRequest(req))
	if err != nil {
		return 0, err
	}
	defer st.Close()
	// The HTTP/2 transport looks at a request's context only while it writes,
	// and this one has been written.
	defer context.AfterFunc(ctx, func() { st.Close() })()
	for st.Receive() {
		if err := f(st.Msg()); err != nil {
			return n, &stopped{err}
		}
		n++
		req.After, req.OnlyNew = st.Msg().Sequence, false
	}
	if err := ctx.Err(); err != nil {
		return n, err
	}
	return n, st.Err()
}
