package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
)

// Fetch brings the image of src for p into the store: resolves it, and downloads what is not there
// yet, or is there and damaged. report may be nil. Of two processes that want the same blob, one waits for the other.
func (b *Blobs) Fetch(ctx context.Context, src Source, p Platform, report func(Progress)) (*Image, error) {
	img, err := b.fetch(ctx, src, p, report)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", clip(src.String()), err)
	}
	img.Ref = src.String()
	return img, nil
}

func (b *Blobs) fetch(ctx context.Context, src Source, p Platform, report func(Progress)) (*Image, error) {
	release, err := b.Hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	for _, dir := range []string{"tmp", "partial", filepath.Join("blobs", "sha256")} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("image blobs: %w", err)
		}
	}
	resolving := newMeter("resolve", 0, report)
	o, err := src.open(ctx, filepath.Join(b.dir, "tmp"))
	if err != nil {
		return nil, err
	}
	defer o.close()
	img, raw, config, err := b.resolve(ctx, o, p)
	if err != nil {
		return nil, err
	}
	resolving.end()
	if err := b.download(ctx, o, img, report); err != nil {
		return nil, err
	}
	// Last, so that a manifest in the store means that its blobs came with it.
	if err := errors.Join(b.put(config), b.put(raw)); err != nil {
		return nil, err
	}
	return img, nil
}

// resolve walks from what the source names to the manifest for p, and reads its config.
func (b *Blobs) resolve(ctx context.Context, o origin, p Platform) (img *Image, raw, config []byte, err error) {
	raw, pinned, err := o.root(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	if pinned != "" && digestOf(raw) != pinned {
		return nil, nil, nil, fmt.Errorf("manifest %s came as %s: %w", pinned, digestOf(raw), ErrDamaged)
	}
	for depth := 0; ; depth++ {
		d, err := parseDocument(raw)
		if err != nil {
			return nil, nil, nil, err
		}
		if !d.isIndex() {
			break
		}
		if depth == maxIndexes {
			return nil, nil, nil, fmt.Errorf("%w: indexes within indexes, %d deep", ErrTooBig, depth)
		}
		next, err := choose(d, p)
		if err != nil {
			return nil, nil, nil, err
		}
		if raw, err = readBlob(ctx, o, next); err != nil {
			return nil, nil, nil, fmt.Errorf("manifest %w", err)
		}
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, nil, nil, err
	}
	if config, err = readBlob(ctx, o, m.Config); err != nil {
		return nil, nil, nil, fmt.Errorf("config %w", err)
	}
	img, err = newImage(raw, m, config)
	if err != nil {
		return nil, nil, nil, err
	}
	if !fits(img.Platform, p) {
		return nil, nil, nil, fmt.Errorf("for %s: %w: the image is for %s", p, ErrNotFound, img.Platform)
	}
	return img, raw, config, nil
}

func newImage(raw []byte, m *document, config []byte) (*Image, error) {
	cfg, has, diffs, err := parseConfig(config, len(m.Layers))
	if err != nil {
		return nil, err
	}
	img := &Image{Digest: digestOf(raw), Platform: has, Config: cfg}
	for i, l := range m.Layers {
		img.Layers = append(img.Layers, Layer{Digest: l.Digest, DiffID: diffs[i], MediaType: l.MediaType, Size: l.Size})
	}
	return img, nil
}

// download brings all layers that are not there, some at once.
func (b *Blobs) download(ctx context.Context, o origin, img *Image, report func(Progress)) error {
	want := map[string]Layer{} // a layer may stand in an image twice
	total := int64(0)
	for _, l := range img.Layers {
		if old, ok := want[l.Digest]; ok && old.Size != l.Size {
			return fmt.Errorf("%w: layer %s of %d and of %d bytes", ErrMalformed, l.Digest, old.Size, l.Size)
		} else if !ok {
			total += l.Size
		}
		want[l.Digest] = l
	}
	m := newMeter("download", total, report)
	defer m.end()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, l := range want {
		g.Go(func() error {
			if err := b.fetchBlob(ctx, o, descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size}, m); err != nil {
				return fmt.Errorf("layer %s: %w", l.Digest, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Load returns an image that was fetched before, by the digest of its manifest. Manifest and config
// are verified, and every layer must be there; layers are verified by WriteRoot. Errors wrap ErrNotFound or ErrDamaged.
func (b *Blobs) Load(digest string) (*Image, error) {
	ctx := context.Background() // two small files
	raw, err := b.read(ctx, digest, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("image %s: manifest: %w", clip(digest), err)
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", digest, err)
	}
	config, err := b.read(ctx, m.Config.Digest, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("image %s: config: %w", digest, err)
	}
	img, err := newImage(raw, m, config)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", digest, err)
	}
	for _, l := range img.Layers {
		sum, _ := checkDigest(l.Digest)
		fi, err := os.Lstat(b.path(sum))
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("image %s: layer %s: %w in the store (pull the image again)", digest, l.Digest, ErrNotFound)
		} else if err != nil {
			return nil, fmt.Errorf("image %s: %w", digest, err)
		}
		if fi.Size() != l.Size {
			return nil, fmt.Errorf("image %s: layer %s: %d bytes instead of %d: %w (pull the image again)", digest, l.Digest, fi.Size(), l.Size, ErrDamaged)
		}
	}
	return img, nil
}
