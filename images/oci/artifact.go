package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
)

// ArtifactError says that what was fetched is no image that runs, but an artifact of a type.
type ArtifactError struct{ Type string }

func (e *ArtifactError) Error() string {
	return fmt.Sprintf("it is no image that runs, but an artifact of type %q", clip(e.Type))
}

func (e *ArtifactError) Unwrap() error { return ErrUnsupported }

// Blob names bytes of an artifact.
type Blob struct {
	MediaType, Digest string
	Size              int64
}

// Artifact is an open source that leads to something else than an image that runs. What it says is
// checked against digests, and not otherwise understood here.
type Artifact struct {
	o    origin
	kind string
}

// OpenArtifact opens what src names, which is to be an artifact of a type: in a layout, which may name
// many things, it is found by that. tmp is a folder for an archive that must be unpacked first.
func OpenArtifact(ctx context.Context, src Source, kind, tmp string) (*Artifact, error) {
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, err
	}
	o, err := src.open(ctx, tmp)
	if err != nil {
		return nil, err
	}
	return &Artifact{o, kind}, nil
}

// Close ends what was opened.
func (a *Artifact) Close() { a.o.close() }

// Root returns the document that the source names, at most 4 MiB. If a digest was asked for, it has that.
func (a *Artifact) Root(ctx context.Context) ([]byte, error) {
	if l, ok := a.o.(*layout); ok && l.tag == "" {
		return l.find(ctx, func(d descriptor) bool { return d.ArtifactType == a.kind }, "an artifact of type "+a.kind)
	}
	raw, pinned, err := a.o.root(ctx)
	if err == nil && pinned != "" && digestOf(raw) != pinned {
		err = fmt.Errorf("manifest %s came as %s: %w", pinned, digestOf(raw), ErrDamaged)
	}
	return raw, err
}

// Tagged returns the document that has a tag beside Root's. Errors wrap ErrNotFound.
func (a *Artifact) Tagged(ctx context.Context, tag string) ([]byte, error) {
	switch o := a.o.(type) {
	case *remote:
		var raw []byte
		err := retry(ctx, func() (err error) {
			raw, err = o.manifest(ctx, tag)
			return err
		})
		return raw, err
	case *layout:
		return o.find(ctx, func(d descriptor) bool { return d.Annotations[refName] == tag }, "tag "+tag)
	}
	return nil, fmt.Errorf("tag %s: %w: an archive of docker save has none", tag, ErrNotFound)
}

// refName is where a layout's index says what its parts are called (image-spec, annotations.md).
const refName = "org.opencontainers.image.ref.name"

// find returns the one document of a layout's index that is meant.
func (l *layout) find(ctx context.Context, meant func(descriptor) bool, what string) ([]byte, error) {
	raw, err := small(l, "index.json", maxManifest)
	if err != nil {
		return nil, fmt.Errorf("image layout: %w", err)
	}
	d, err := parseDocument(raw)
	if err != nil {
		return nil, fmt.Errorf("image layout: index.json: %w", err)
	}
	var found []descriptor
	for _, m := range d.Manifests {
		if meant(m) {
			found = append(found, m)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("image layout: %s: %w", clip(what), ErrNotFound)
	}
	if len(found) > 1 {
		return nil, fmt.Errorf("image layout: %s: %w: %d of them, and one was to be", clip(what), ErrMalformed, len(found))
	}
	if err := found[0].check(maxManifest); err != nil {
		return nil, fmt.Errorf("image layout: %s: %w", clip(what), err)
	}
	return readBlob(ctx, l, found[0])
}

// Read returns a blob of the artifact that is small: its size, which the caller has bounded, and its digest are checked.
func (a *Artifact) Read(ctx context.Context, b Blob) ([]byte, error) {
	d := descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size}
	if err := d.check(maxManifest); err != nil {
		return nil, err
	}
	return readBlob(ctx, a.o, d)
}

// FetchBlobs brings blobs of an artifact into the store, as Fetch does with layers: some at a time,
// taken up where they broke off, and each complete and verified or absent. The caller holds the store.
func (b *Blobs) FetchBlobs(ctx context.Context, a *Artifact, want []Blob, report func(Progress)) error {
	for _, dir := range []string{"tmp", "partial", filepath.Join("blobs", "sha256")} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o700); err != nil {
			return fmt.Errorf("image blobs: %w", err)
		}
	}
	total := int64(0)
	for _, w := range want {
		total += w.Size
	}
	m := newMeter("download", total, report)
	defer m.end()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, w := range want {
		g.Go(func() error {
			d := descriptor{MediaType: w.MediaType, Digest: w.Digest, Size: w.Size}
			if err := d.check(maxBlob); err != nil {
				return err
			}
			if err := b.fetchBlob(ctx, a.o, d, m); err != nil {
				return fmt.Errorf("blob %s: %w", w.Digest, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Take moves a blob out of the store to a path on the same disk, where nothing is.
func (b *Blobs) Take(digest, path string) error {
	sum, err := checkDigest(digest)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("take blob %s: something is at %s already", digest, path)
	}
	return os.Rename(b.path(sum), path)
}
