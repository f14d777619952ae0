package client

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
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

// BuildOption says more about an image that is built.
type BuildOption func(*api.BuildImageRequest)

// ForArch builds an image for hosts of another architecture, as GOARCH calls it: "amd64" or "arm64".
func ForArch(arch string) BuildOption {
	return func(r *api.BuildImageRequest) { r.Arch = arch }
}

// BuildImage makes an image and tells onProgress, which may be nil, how far it
// is.
func (c *Client) BuildImage(ctx context.Context, name string, onProgress func(*api.Progress), opts ...BuildOption) (*api.Image, error) {
	if err := CheckName("image", name); err != nil {
		return nil, err
	}
	op := "build image " + name
	r := &api.BuildImageRequest{Name: name}
	for _, o := range opts {
		o(r)
	}
	st, err := c.images.Build(ctx, connect.NewRequest(r))
	if err != nil {
		return nil, wrap(op, err)
	}
	return imageOf(st, op, onProgress)
}

// PullOption widens what is taken of a bundle.
type PullOption int

// AllowRollback takes a version below the highest that this machine has had.
const AllowRollback PullOption = 1

// PullImage brings an image from a registry, or a bundle, and tells onProgress, which may be nil, how far it is.
func (c *Client) PullImage(ctx context.Context, reference string, onProgress func(*api.Progress), opts ...PullOption) (*api.Image, error) {
	if CheckName("image", reference) != nil { // a bare name is Docker Hub's
		if err := CheckImage(reference); err != nil {
			return nil, err
		}
	}
	op := "pull image " + reference
	st, err := c.images.Pull(ctx, connect.NewRequest(&api.PullImageRequest{Reference: reference, AllowRollback: slices.Contains(opts, AllowRollback)}))
	if err != nil {
		return nil, wrap(op, err)
	}
	return imageOf(st, op, onProgress)
}

// ImportImage brings an image from an OCI layout's folder or a tarball that docker save wrote, or a bundle's file. reference
// is what it is to be called, or empty, as it must be for a bundle.
func (c *Client) ImportImage(ctx context.Context, path, reference string, onProgress func(*api.Progress), opts ...PullOption) (*api.Image, error) {
	op := "import image " + path
	st, err := c.images.Import(ctx, connect.NewRequest(&api.ImportImageRequest{Path: path, Reference: reference, AllowRollback: slices.Contains(opts, AllowRollback)}))
	if err != nil {
		return nil, wrap(op, err)
	}
	return imageOf(st, op, onProgress)
}

// imageOf reads a stream of progress whose last event is an image.
func imageOf[T any, P interface {
	*T
	GetProgress() *api.Progress
	GetImage() *api.Image
}](st *connect.ServerStreamForClient[T], op string, onProgress func(*api.Progress)) (*api.Image, error) {
	defer st.Close()
	var img *api.Image
	for st.Receive() {
		m := P(st.Msg())
		if p := m.GetProgress(); p != nil && onProgress != nil {
			onProgress(p)
		}
		if i := m.GetImage(); i != nil {
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
func (c *Client) VerifyImage(ctx context.Context, image string) (*api.Image, error) {
	if err := checkStored(image); err != nil {
		return nil, err
	}
	res, err := c.images.Verify(ctx, connect.NewRequest(&api.VerifyImageRequest{Name: image}))
	if err != nil {
		return nil, wrap("verify image "+image, err)
	}
	return res.Msg.Image, nil
}

// RemoveImage removes an image that no guest uses, or one of several references to it.
func (c *Client) RemoveImage(ctx context.Context, image string) error {
	if err := checkStored(image); err != nil {
		return err
	}
	_, err := c.images.Remove(ctx, connect.NewRequest(&api.RemoveImageRequest{Name: image}))
	return wrap("remove image "+image, err)
}

// PruneImages removes pulled images that nothing needs, with all also those that have a name, and the
// layers that no image needs; with dry it only says what would go.
func (c *Client) PruneImages(ctx context.Context, all, dry bool) (*api.PruneImagesResponse, error) {
	res, err := c.images.Prune(ctx, connect.NewRequest(&api.PruneImagesRequest{All: all, DryRun: dry}))
	if err != nil {
		return nil, wrap("prune images", err)
	}
	return res.Msg, nil
}

func checkStored(image string) error {
	if CheckName("image", image) == nil {
		return nil
	}
	return CheckImage(image)
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

// Bounds of Shutdown.
const (
	// shutdownTimeout is how long it waits for the daemon to be gone.
	shutdownTimeout = 30 * time.Second
	// stopTimeout is how much longer with the guests, which are stopped side by side. One
	// takes 95 s at most: it goes on first, if it stands still, tells what it has changed
	// and writes its last. One that boots comes up first, in 60 s.
	stopTimeout = 3 * time.Minute
)

// Shutdown ends the daemon and returns when it is gone; with guests it stops
// every guest first.
func (c *Client) Shutdown(ctx context.Context, guests bool) error {
	const op = "stop the daemon"
	bound := shutdownTimeout
	if guests {
		bound += stopTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
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
