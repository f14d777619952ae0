package oci

import (
	"context"
	"fmt"
	"os"
)

// Fetch brings the image of src for p into the store: resolves it, and downloads what is not there
// yet. report may be nil.
func (b *Blobs) Fetch(ctx context.Context, src Source, p Platform, report func(Progress)) (*Image, error) {
	_, err := src.open(ctx)
	return nil, err
}

// Load returns an image that was fetched before, by the digest of its manifest. Manifest and config
// are verified, and every layer must be there; layers are verified by WriteRoot. Errors wrap ErrNotFound or ErrDamaged.
func (b *Blobs) Load(digest string) (*Image, error) {
	return nil, fmt.Errorf("load %.80q: %w yet", digest, ErrUnsupported)
}

// WriteRoot writes the layers of img as one EROFS file system to dst, which must be empty, writable
// and open for reading too. The same layers give the same bytes on every host. On an error dst holds rubbish,
// which the caller removes; nothing else is left behind. report may be nil.
func (b *Blobs) WriteRoot(ctx context.Context, img *Image, dst *os.File, lim Limits, report func(Progress)) (Stats, error) {
	return Stats{}, fmt.Errorf("write a root: %w yet", ErrUnsupported)
}

// Hold keeps Prune from removing anything until release is called: hold from before Fetch until the
// image's digest stands among those that are kept. release may be called twice.
func (b *Blobs) Hold(ctx context.Context) (release func(), err error) {
	return nil, fmt.Errorf("hold: %w yet", ErrUnsupported)
}

// Prune removes every blob that no image of keep (digests of manifests) needs, and what cut-off
// downloads have left. It waits for those who Hold. With dry it only counts.
func (b *Blobs) Prune(ctx context.Context, keep []string, dry bool) (Freed, error) {
	return Freed{}, fmt.Errorf("prune: %w yet", ErrUnsupported)
}
