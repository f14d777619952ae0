package client

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// Images lists the images that are built.
func (c *Client) Images(ctx context.Context) ([]*api.Image, error) {
	res, err := c.images.List(ctx, connect.NewRequest(&api.ListImagesRequest{}))
	if err != nil {
		return nil, wrap("list images", err)
	}
	return res.Msg.Images, nil
}

// BuildImage makes an image and tells onProgress, which may be nil, how far it
// is.
func (c *Client) BuildImage(ctx context.Context, name string, onProgress func(*api.Progress)) (*api.Image, error) {
	if err := CheckName("image", name); err != nil {
		return nil, err
	}
	op := "build image " + name
	st, err := c.images.Build(ctx, connect.NewRequest(&api.BuildImageRequest{Name: name}))
	if err != nil {
		return nil, wrap(op, err)
	}
	defer st.Close()
	var img *api.Image
	for st.Receive() {
		if p := st.Msg().GetProgress(); p != nil && onProgress != nil {
			onProgress(p)
		}
		if i := st.Msg().GetImage(); i != nil {
			img = i
		}
	}
	if err := st.Err(); err != nil {
		return nil, wrap(op, err)
	}
	if img == nil {
		return nil, &Error{Code: "truncated", Message: op, Cause: "the daemon's answer ended without the image", Cure: "see `carrel image ls`"}
	}
	return img, nil
}

// VerifyImage compares every part of an image with its digest.
func (c *Client) VerifyImage(ctx context.Context, name string) (*api.Image, error) {
	if err := CheckName("image", name); err != nil {
		return nil, err
	}
	res, err := c.images.Verify(ctx, connect.NewRequest(&api.VerifyImageRequest{Name: name}))
	if err != nil {
		return nil, wrap("verify image "+name, err)
	}
	return res.Msg.Image, nil
}

// RemoveImage removes an image that no guest uses.
func (c *Client) RemoveImage(ctx context.Context, name string) error {
	if err := CheckName("image", name); err != nil {
		return err
	}
	_, err := c.images.Remove(ctx, connect.NewRequest(&api.RemoveImageRequest{Name: name}))
	return wrap("remove image "+name, err)
}

// Doctor looks at everything that a guest needs and calls f with each finding.
func (c *Client) Doctor(ctx context.Context, f func(*api.Finding)) error {
	const op = "look for what is missing"
	st, err := c.system.Doctor(ctx, connect.NewRequest(&api.DoctorRequest{}))
	if err != nil {
		return wrap(op, err)
	}
	defer st.Close()
	for st.Receive() {
		f(st.Msg())
	}
	return wrap(op, st.Err())
}

// Status returns how the daemon is.
func (c *Client) Status(ctx context.Context) (*api.StatusResponse, error) {
	res, err := c.system.Status(ctx, connect.NewRequest(&api.StatusRequest{}))
	if err != nil {
		return nil, wrap("ask the daemon how it is", err)
	}
	return res.Msg, nil
}

// shutdownTimeout bounds how long Shutdown waits for the daemon to be gone: the
// stop of a guest takes 10 s at most, and guests are stopped side by side.
const shutdownTimeout = 30 * time.Second

// Shutdown ends the daemon and returns when it is gone; with guests it stops
// every guest first.
func (c *Client) Shutdown(ctx context.Context, guests bool) error {
	const op = "stop the daemon"
	ctx, cancel := context.WithTimeout(ctx, shutdownTimeout)
	defer cancel()
	// No client may start a new daemon while we wait for the old one's lock,
	// which the kernel takes from it when it ends, however it ends.
	unlock, err := lockFile(ctx, filepath.Join(c.place.Run, startLock))
	if err != nil {
		return fmt.Errorf("wait for another start of the daemon: %w", err)
	}
	defer unlock()
	if _, err := c.system.Shutdown(ctx, connect.NewRequest(&api.ShutdownRequest{Guests: guests})); err != nil {
		return wrap(op, err)
	}
	c.transport.CloseIdleConnections()
	gone, err := lockFile(ctx, filepath.Join(c.place.Run, daemonLock))
	if err != nil {
		return &Error{Code: "timeout", Message: op, Cause: "it answered, but is still there: " + err.Error(), Cure: "see `carrel daemon status`"}
	}
	gone()
	return nil
}
