package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// checkDigest returns the hex part of a digest. Only sha256 is taken: no registry of note
// uses another, and what is refused cannot be confused.
func checkDigest(d string) (string, error) {
	algorithm, sum, _ := strings.Cut(d, ":")
	if algorithm != "sha256" {
		return "", fmt.Errorf("digest %q: %w: only sha256 is", clip(d), ErrUnsupported)
	}
	if len(sum) != sha256.Size*2 || strings.Trim(sum, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%w: digest %q is not 64 of 0-9a-f", ErrMalformed, clip(d))
	}
	return sum, nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (b *Blobs) path(sum string) string { return filepath.Join(b.dir, "blobs", "sha256", sum) }

// open returns a blob that has just been read through and is what its digest says.
func (b *Blobs) open(ctx context.Context, digest string, size int64) (*os.File, error) {
	sum, err := checkDigest(digest)
	if err != nil {
		return nil, err
	}
	f, err := OpenRegular(b.path(sum))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w in the store (pull the image again)", digest, ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("blob %s: %w", digest, err)
	}
	if err := verify(ctx, f, sum, size); err != nil {
		f.Close()
		return nil, fmt.Errorf("blob %s: %s: %w (pull the image again: what is damaged is fetched anew)", digest, f.Name(), err)
	}
	return f, nil
}

// verify reads f from its start and leaves it there.
func verify(ctx context.Context, f *os.File, sum string, size int64) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() != size {
		return fmt.Errorf("%d bytes instead of %d: %w", fi.Size(), size, ErrDamaged)
	}
	if got, err := sumOf(ctx, f); err != nil {
		return err
	} else if got != "sha256:"+sum {
		return ErrDamaged
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// sumOf returns the digest of what is left of r.
func sumOf(ctx context.Context, r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.CopyBuffer(h, &metered{r: r, ctx: ctx, took: func(int64) {}}, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// read returns a small blob, verified.
func (b *Blobs) read(ctx context.Context, digest string, limit int64) ([]byte, error) {
	sum, err := checkDigest(digest)
	if err != nil {
		return nil, err
	}
	fi, err := os.Lstat(b.path(sum))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w in the store", digest, ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	if fi.Size() > limit {
		return nil, fmt.Errorf("blob %s: %w: %d bytes", digest, ErrDamaged, fi.Size())
	}
	f, err := b.open(ctx, digest, fi.Size())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// has tells whether a blob is there and sound. One that is not is removed.
func (b *Blobs) has(ctx context.Context, digest string, size int64) (bool, error) {
	f, err := b.open(ctx, digest, size)
	switch {
	case err == nil:
		return true, f.Close()
	case errors.Is(err, ErrNotFound):
		return false, nil
	case errors.Is(err, ErrDamaged):
		sum, _ := checkDigest(digest)
		return false, os.Remove(b.path(sum))
	}
	return false, err
}

// put stores what is small and in memory.
func (b *Blobs) put(data []byte) error {
	d := digestOf(data)
	sum, _ := checkDigest(d)
	tmp := filepath.Join(b.dir, "tmp")
	if err := errors.Join(os.MkdirAll(tmp, 0o700), os.MkdirAll(filepath.Dir(b.path(sum)), 0o700)); err != nil {
		return fmt.Errorf("blob %s: %w", d, err)
	}
	f, err := os.CreateTemp(tmp, "blob-*") // 0600
	if err != nil {
		return fmt.Errorf("blob %s: %w", d, err)
	}
	_, werr := f.Write(data)
	if err := errors.Join(werr, b.show(f, sum)); err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("blob %s: %w", d, err)
	}
	return nil
}

// show closes a file whose bytes are verified and gives it a blob's name, in this order: on disk, then visible.
func (b *Blobs) show(f *os.File, sum string) error {
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), b.path(sum))
}

// lockEvery is how often a waiting process looks again: a file lock can wait by itself, but not end with a context.
const lockEvery = 100 * time.Millisecond

// Hold keeps Prune from removing anything until release is called: hold from before Fetch until the
// image's digest stands among those that are kept. release may be called twice.
func (b *Blobs) Hold(ctx context.Context) (release func(), err error) {
	return b.lock(ctx, (*flock.Flock).TryRLockContext)
}

func (b *Blobs) lock(ctx context.Context, try func(*flock.Flock, context.Context, time.Duration) (bool, error)) (func(), error) {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("image blobs: %w", err)
	}
	l := flock.New(filepath.Join(b.dir, "lock"), flock.SetPermissions(0o600))
	if _, err := try(l, ctx, lockEvery); err != nil {
		l.Close()
		return nil, fmt.Errorf("image blobs: lock %s: %w", l.Path(), err)
	}
	return func() { l.Close() }, nil
}

// Prune removes every blob that no image of keep (digests of manifests) needs, and what cut-off
// downloads have left. It waits for those who Hold. With dry it only counts. An image of keep that is
// not there, or is damaged, keeps nothing and is no error; the caller finds that when it is used.
func (b *Blobs) Prune(ctx context.Context, keep []string, dry bool) (Freed, error) {
	var freed Freed
	release, err := b.lock(ctx, (*flock.Flock).TryLockContext)
	if err != nil {
		return freed, err
	}
	defer release()
	kept := map[string]bool{}
	for _, d := range keep {
		sum, err := checkDigest(d)
		if err != nil {
			return freed, err
		}
		kept[sum] = true
		raw, err := b.read(ctx, d, maxManifest)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrDamaged) {
			continue
		} else if err != nil {
			return freed, err
		}
		m, err := parseManifest(raw)
		if err != nil {
			return freed, fmt.Errorf("image %s: %w", d, err)
		}
		for _, l := range append(m.Layers, m.Config) {
			sum, _ := checkDigest(l.Digest)
			kept[sum] = true
		}
	}
	for _, dir := range []string{filepath.Dir(b.path("x")), filepath.Join(b.dir, "partial"), filepath.Join(b.dir, "tmp")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, fmt.Errorf("image blobs: %w", err)
		}
		blobs := dir == filepath.Dir(b.path("x"))
		for _, e := range entries {
			if ctx.Err() != nil {
				return freed, context.Cause(ctx)
			}
			fi, err := e.Info()
			if err != nil || (blobs && kept[e.Name()]) {
				continue
			}
			if !dry {
				if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
					return freed, fmt.Errorf("image blobs: %w", err)
				}
			}
			switch {
			case blobs:
				freed.Blobs++
			case strings.HasSuffix(e.Name(), lockSuffix):
			default:
				freed.Partials++
			}
			freed.Bytes += fi.Size()
		}
	}
	return freed, nil
}
