package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// CheckName says what is wrong with the name of a guest or an image; what names
// it, for the message. It is the rule that the daemon applies.
func CheckName(what, name string) error {
	ok := len(name) >= 1 && len(name) <= 31 && name[0] != '-'
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-'
	}
	if ok {
		return nil
	}
	if len(name) > 64 {
		name = name[:64] + "..."
	}
	return &Error{
		Code: "bad_name", Message: fmt.Sprintf("%s name %q is not possible", what, name),
		Cure: "use lower-case letters, digits and dashes, at most 31, not beginning with a dash",
	}
}

// CheckImage says what is wrong with the name of an image, or a reference to a
// registry's. What a reference means is the daemon's to say.
func CheckImage(image string) error {
	bad := len(image) > 512 || !strings.ContainsAny(image, "/:@") || strings.ContainsAny(image[:min(1, len(image))], "/:@.-_") || strings.Contains(image, "//")
	for i := 0; !bad && i < len(image); i++ {
		c := image[i]
		bad = (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-/:@", rune(c))
	}
	if !bad && !strings.Contains("/"+image+"/", "/../") {
		return nil
	}
	err := CheckName("image", image)
	var own *Error
	if errors.As(err, &own) {
		own.Cure = "an image is named with " + strings.TrimPrefix(own.Cure, "use ") + "; one of a registry like python:3.13 or ghcr.io/owner/name:tag"
	}
	return err
}

// GuestOptions say how StartGuest treats a name that exists.
type GuestOptions struct {
	// OnlyNew refuses a name that exists, even when that guest is stopped.
	OnlyNew bool
	// OnEvent is called, in order and from one goroutine, with what happens
	// until the guest is ready. May be nil.
	OnEvent func(*api.StartGuestEvent)
}

// StartGuest makes a guest, or starts a stopped one of that name again, and
// returns when it is ready.
func (c *Client) StartGuest(ctx context.Context, spec *api.GuestSpec, o GuestOptions) (*api.Guest, error) {
	if spec.GetName() != "" {
		if err := CheckName("guest", spec.Name); err != nil {
			return nil, err
		}
	}
	if spec.GetImage() != "" {
		if err := checkStored(spec.Image); err != nil {
			return nil, err
		}
	}
	const op = "start the guest"
	st, err := c.guests.Start(ctx, connect.NewRequest(&api.StartGuestRequest{Spec: spec, OnlyNew: o.OnlyNew}))
	if err != nil {
		return nil, wrap(op, err)
	}
	defer st.Close()
	var g *api.Guest
	for st.Receive() {
		ev := st.Msg()
		if ev.GetGuest() != nil {
			g = ev.GetGuest()
		}
		if o.OnEvent != nil {
			o.OnEvent(ev)
		}
	}
	if err := st.Err(); err != nil {
		return nil, wrap(op, err)
	}
	if g == nil {
		return nil, &Error{Code: "truncated", Message: op, Cause: "the daemon's answer ended without the guest", Cure: "see `carrel ls`"}
	}
	return g, nil
}

// StopGuest ends a guest: politely for grace (0: the daemon's default, 5 s),
// then by force. One that boots is stopped when it is up, which may take a minute.
func (c *Client) StopGuest(ctx context.Context, name string, grace time.Duration) (*api.Guest, error) {
	if err := CheckName("guest", name); err != nil {
		return nil, err
	}
	res, err := c.guests.Stop(ctx, connect.NewRequest(&api.StopGuestRequest{Name: name, GraceNanos: int64(grace)}))
	if err != nil {
		return nil, wrap("stop guest "+name, err)
	}
	return res.Msg.Guest, nil
}

// RemoveGuest removes a stopped guest and all that is its own; with force a
// running one, too.
func (c *Client) RemoveGuest(ctx context.Context, name string, force bool) error {
	if err := CheckName("guest", name); err != nil {
		return err
	}
	_, err := c.guests.Remove(ctx, connect.NewRequest(&api.RemoveGuestRequest{Name: name, Force: force}))
	return wrap("remove guest "+name, err)
}

// Guests lists this user's guests.
func (c *Client) Guests(ctx context.Context) ([]*api.Guest, error) {
	res, err := c.guests.List(ctx, connect.NewRequest(&api.ListGuestsRequest{}))
	if err != nil {
		return nil, wrap("list guests", err)
	}
	return res.Msg.Guests, nil
}

// Guest returns everything that is known of one guest.
func (c *Client) Guest(ctx context.Context, name string) (*api.Guest, error) {
	if err := CheckName("guest", name); err != nil {
		return nil, err
	}
	res, err := c.guests.Inspect(ctx, connect.NewRequest(&api.InspectGuestRequest{Name: name}))
	if err != nil {
		return nil, wrap("inspect guest "+name, err)
	}
	return res.Msg.Guest, nil
}

// Tasks lists a guest's tasks, the oldest first.
func (c *Client) Tasks(ctx context.Context, guest string) ([]*api.Task, error) {
	if err := CheckName("guest", guest); err != nil {
		return nil, err
	}
	res, err := c.tasks.List(ctx, connect.NewRequest(&api.ListTasksRequest{Guest: guest}))
	if err != nil {
		return nil, wrap("list the tasks of guest "+guest, err)
	}
	return res.Msg.Tasks, nil
}

// Trace returns the parts of a guest's last start and of what came after it, as
// the daemon and the keeper measured them; with ended it waits until the guest
// has ended and what becomes of it is settled.
func (c *Client) Trace(ctx context.Context, name string, ended bool) ([]*api.Span, error) {
	if err := CheckName("guest", name); err != nil {
		return nil, err
	}
	res, err := c.guests.Trace(ctx, connect.NewRequest(&api.TraceGuestRequest{Name: name, Ended: ended}))
	if err != nil {
		return nil, wrap("the timings of guest "+name, err)
	}
	return res.Msg.Spans, nil
}
