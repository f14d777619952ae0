package client

import (
	"context"
	"crypto/rand"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// SignOptions say how images become a bundle.
type SignOptions struct {
	// Key is the absolute path of the private key.
	Key string
	// Version of the bundle; versions only grow. 0: the seconds since 1970.
	Version uint64
	// Expires is how long the signature is taken for new images; 0: for ever.
	Expires time.Duration
	// As is what the bundle, and so the image that it brings, is called; empty: as the first image.
	As string
}

func (o SignOptions) message() *api.ImageSigning {
	return &api.ImageSigning{KeyPath: o.Key, Version: o.Version, ExpiresNanos: int64(o.Expires), As: o.As}
}

// PushImages signs built images, one for each architecture, and brings them to a registry as one bundle
// that is called as the first, or as o.As.
func (c *Client) PushImages(ctx context.Context, images []string, reference string, o SignOptions, onProgress func(*api.Progress)) (*api.PublishedImage, error) {
	op := "push to " + reference
	st, err := c.images.Push(ctx, connect.NewRequest(&api.PushImageRequest{Names: images, Reference: reference, Signing: o.message()}))
	if err != nil {
		return nil, wrap(op, err)
	}
	return publishedOf(st, op, onProgress)
}

// ExportImages does the same into a file, at an absolute path where nothing is yet.
func (c *Client) ExportImages(ctx context.Context, images []string, path string, o SignOptions, onProgress func(*api.Progress)) (*api.PublishedImage, error) {
	op := "export to " + path
	st, err := c.images.Export(ctx, connect.NewRequest(&api.ExportImageRequest{Names: images, Path: path, Signing: o.message()}))
	if err != nil {
		return nil, wrap(op, err)
	}
	return publishedOf(st, op, onProgress)
}

// publishedOf reads a stream of progress whose last event says what was published.
func publishedOf[T any, P interface {
	*T
	GetProgress() *api.Progress
	GetPublished() *api.PublishedImage
}](st *connect.ServerStreamForClient[T], op string, onProgress func(*api.Progress)) (*api.PublishedImage, error) {
	defer st.Close()
	var out *api.PublishedImage
	for st.Receive() {
		m := P(st.Msg())
		if p := m.GetProgress(); p != nil && onProgress != nil {
			onProgress(p)
		}
		if p := m.GetPublished(); p != nil {
			out = p
		}
	}
	if err := st.Err(); err != nil {
		return nil, wrap(op, err)
	}
	if out == nil {
		return nil, &Error{Code: "truncated", Message: op, Cause: "the daemon's answer ended without saying what was published", Cure: "do it again"}
	}
	return out, nil
}

// RestoreImage lets an image and the one before it change places.
func (c *Client) RestoreImage(ctx context.Context, image string) (*api.Image, error) {
	if err := CheckName("image", image); err != nil {
		return nil, err
	}
	res, err := c.images.Restore(ctx, connect.NewRequest(&api.RestoreImageRequest{Name: image}))
	if err != nil {
		return nil, wrap("restore image "+image, err)
	}
	return res.Msg.Image, nil
}

// Keys lists the keys whose bundles are taken.
func (c *Client) Keys(ctx context.Context) ([]*api.ImageKey, error) {
	res, err := c.images.ListKeys(ctx, connect.NewRequest(&api.ListKeysRequest{}))
	if err != nil {
		return nil, wrap("list keys", err)
	}
	return res.Msg.Keys, nil
}

// CreateKey makes a pair of files to sign with: the private key at an absolute path, the public one beside
// it with .pub after its name.
func (c *Client) CreateKey(ctx context.Context, path string) (*api.ImageKey, error) {
	req := &api.CreateKeyRequest{Path: path, IdempotencyKey: rand.Text()}
	res, err := twice(ctx, c, func() (*connect.Response[api.CreateKeyResponse], error) {
		return c.images.CreateKey(ctx, connect.NewRequest(req))
	})
	if err != nil {
		return nil, wrap("make a key", err)
	}
	return res.Msg.Key, nil
}

// TrustKey takes from now on what the key at an absolute path has signed, of the images that are said: names, beginnings
// of names with * after them, or * for any. An empty name: as its file.
func (c *Client) TrustKey(ctx context.Context, path, name string, images []string) (*api.ImageKey, error) {
	res, err := c.images.TrustKey(ctx, connect.NewRequest(&api.TrustKeyRequest{Path: path, Name: name, Images: images}))
	if err != nil {
		return nil, wrap("trust a key", err)
	}
	return res.Msg.Key, nil
}

// ForgetKey takes no more what a key has signed.
func (c *Client) ForgetKey(ctx context.Context, name string) error {
	_, err := c.images.ForgetKey(ctx, connect.NewRequest(&api.ForgetKeyRequest{Name: name}))
	return wrap("forget key "+name, err)
}
