package oci

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	pushing "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// Upload is a blob to be pushed. Open may be called more than once.
type Upload struct {
	Blob
	Open func() (io.ReadCloser, error)
}

// Document is a manifest or an index to be pushed, under a tag, or under its digest if Tag is empty.
type Document struct {
	Tag, MediaType string
	Raw            []byte
}

// Push brings blobs and then documents, in their order, to the repository of ref, whose own tag counts only
// where a document names it. Blobs that the registry has are not sent again.
func Push(ctx context.Context, ref string, opt RegistryOptions, blobs []Upload, docs []Document, report func(Progress)) error {
	var opts []name.Option
	if opt.PlainHTTP {
		opts = append(opts, name.Insecure)
	}
	to, err := name.NewTag(ref, opts...)
	if err != nil || len(ref) > maxRef {
		return fmt.Errorf("%w: %q (NAME[:TAG], with the registry's host before it)", ErrMalformed, clip(ref))
	}
	repo := to.Context()
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, repo)
	if err != nil {
		return fmt.Errorf("credentials for %s: %w (see ~/.docker/config.json and the helper that it names)", repo.Registry, err)
	}
	base := newTransport(repo.RegistryStr(), opt)
	defer base.CloseIdleConnections()
	guard := &guarded{next: base, registry: repo.RegistryStr(), plain: opt.PlainHTTP}
	// Under the library's own: what it is given already is not wrapped again.
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, guard, []string{repo.Scope(transport.PushScope)})
	if err != nil {
		return fmt.Errorf("registry %s: %w", repo.Registry, classify(ctx, err))
	}
	p, err := pushing.NewPusher(pushing.WithContext(ctx), pushing.WithTransport(rt), pushing.WithJobs(parallel))
	if err != nil {
		return err
	}
	total := int64(0)
	for _, b := range blobs {
		total += b.Size
	}
	m := newMeter("upload", total, report)
	defer m.end()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, b := range blobs {
		hash, err := v1.NewHash(b.Digest)
		if err != nil {
			return fmt.Errorf("%w: digest %q", ErrMalformed, clip(b.Digest))
		}
		g.Go(func() error {
			ctx, cancel := context.WithCancelCause(gctx)
			defer cancel(nil)
			u := &uploading{Upload: b, hash: hash, m: m, cancel: cancel}
			if err := p.Upload(ctx, repo, u); err != nil {
				return fmt.Errorf("blob %s: %w", b.Digest, classify(ctx, err))
			}
			m.add(b.Size - u.sent.Load()) // nothing was sent of what the registry has
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, d := range docs {
		var at name.Reference = repo.Digest(digestOf(d.Raw))
		if d.Tag != "" {
			at = repo.Tag(d.Tag)
		}
		if err := p.Put(ctx, at, putting{d}); err != nil {
			return fmt.Errorf("manifest %s: %w", at, classify(ctx, err))
		}
	}
	return nil
}

// TagOf is the tag that a reference has, or "latest".
func TagOf(ref string) (string, error) {
	t, err := name.NewTag(ref)
	if err != nil {
		return "", fmt.Errorf("%w: %q (NAME[:TAG], with the registry's host before it)", ErrMalformed, clip(ref))
	}
	return t.TagStr(), nil
}

// putting is a Document as the library wants it.
type putting struct{ d Document }

func (p putting) RawManifest() ([]byte, error)        { return p.d.Raw, nil }
func (p putting) MediaType() (types.MediaType, error) { return types.MediaType(p.d.MediaType), nil }

// uploading is an Upload as the library wants it, and ends one of which the registry takes nothing any more.
type uploading struct {
	Upload
	hash   v1.Hash
	m      *meter
	cancel context.CancelCauseFunc
	sent   atomic.Int64 // bytes, in this try
}

func (u *uploading) Digest() (v1.Hash, error) { return u.hash, nil }
func (u *uploading) DiffID() (v1.Hash, error) { return u.hash, nil }
func (u *uploading) Size() (int64, error)     { return u.Blob.Size, nil }
func (u *uploading) MediaType() (types.MediaType, error) {
	return types.MediaType(u.Blob.MediaType), nil
}
func (u *uploading) Uncompressed() (io.ReadCloser, error) { return u.Compressed() }

// Compressed opens the blob, from its start again for each try.
func (u *uploading) Compressed() (io.ReadCloser, error) {
	r, err := u.Open()
	if err != nil {
		return nil, err
	}
	u.m.add(-u.sent.Swap(0))
	s := &sending{ReadCloser: r, u: u}
	s.timer = time.AfterFunc(stall, func() { u.cancel(fmt.Errorf("%w: not a byte was taken for %v", errTemporary, stall)) })
	return s, nil
}

// sending counts the bytes of one try.
type sending struct {
	io.ReadCloser
	u     *uploading
	timer *time.Timer
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.u.sent.Add(int64(n))
	s.u.m.add(int64(n))
	if err != nil {
		s.timer.Stop() // the answer has a bound of its own
	} else {
		s.timer.Reset(stall)
	}
	return n, err
}

func (s *sending) Close() error {
	s.timer.Stop()
	return s.ReadCloser.Close()
}
