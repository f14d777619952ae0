package oci

import (
	"context"
	"fmt"
	"io"
)

// Source is where an image comes from: Registry, Layout or Tarball. All go through the same checks.
type Source interface {
	// open reaches the source. tmp is a folder for what must be unpacked first.
	open(ctx context.Context, tmp string) (origin, error)
	// String is how the user named it.
	String() string
}

// origin is an open Source. What it says is not to be believed: Fetch checks it.
type origin interface {
	// root returns the manifest or index that the source names, and the digest that the user asked for, or "".
	root(ctx context.Context) (raw []byte, pinned string, err error)
	// blob opens a blob at off. It may begin at 0 instead, and says at which of the two it does. Errors
	// that another try may mend are errTemporary.
	blob(ctx context.Context, d descriptor, off int64) (body io.ReadCloser, at int64, err error)
	close()
}

// readBlob returns a small blob of an origin, verified.
func readBlob(ctx context.Context, o origin, d descriptor) ([]byte, error) {
	var raw []byte
	err := retry(ctx, func() error {
		body, at, err := o.blob(ctx, d, 0)
		if err != nil {
			return err
		}
		defer body.Close()
		if at != 0 {
			return fmt.Errorf("it was sent from byte %d: %w", at, ErrMalformed)
		}
		raw, err = io.ReadAll(io.LimitReader(body, d.Size+1))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Digest, err)
	}
	if int64(len(raw)) != d.Size || digestOf(raw) != d.Digest {
		return nil, fmt.Errorf("%s of %d bytes came as %s of %d: %w", d.Digest, d.Size, digestOf(raw), len(raw), ErrDamaged)
	}
	return raw, nil
}
