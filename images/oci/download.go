package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

// errTemporary marks what another try may mend.
var errTemporary = errors.New("temporary failure")

const (
	lockSuffix = ".lock"
	worthIt    = 1 << 20 // bytes that make a broken try one that does not count
)

// fetchBlob brings one blob. What has come lies in partial/<hex>, and is taken up where it ends by the
// next try, also by another process's; only bytes that were hashed to the blob's digest get its name.
func (b *Blobs) fetchBlob(ctx context.Context, o origin, d descriptor, m *meter) error {
	sum, err := checkDigest(d.Digest)
	if err != nil {
		return err
	}
	partial := filepath.Join(b.dir, "partial", sum)
	// A file of its own, since the partial one is renamed at the end.
	l := flock.New(partial+lockSuffix, flock.SetPermissions(0o600))
	if _, err := l.TryLockContext(ctx, lockEvery); err != nil {
		return fmt.Errorf("lock %s: %w", l.Path(), err)
	}
	defer l.Close()
	if ok, err := b.has(ctx, d.Digest, d.Size); err != nil {
		return err
	} else if ok {
		m.add(d.Size)
		return nil
	}
	f, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	w := &writing{f: f, h: sha256.New(), m: m}
	if err := w.take(ctx, d.Size); err != nil {
		return err
	}
	fresh := w.n == 0
	for {
		err := retry(ctx, func() error {
			for { // a connection that breaks now and then may do so as often as it likes
				had := w.n
				if err := w.fill(ctx, o, d); !errors.Is(err, errTemporary) || w.n-had < worthIt {
					return err
				}
			}
		})
		if err != nil {
			return err // what has come stays for the next time
		}
		if hex.EncodeToString(w.h.Sum(nil)) == sum {
			break
		}
		if err := w.restart(); err != nil {
			return err
		}
		if fresh {
			os.Remove(partial)
			return fmt.Errorf("%d bytes came: %w", d.Size, ErrDamaged)
		}
		fresh = true // what lay there was something else; once more from the start
	}
	if err := b.show(f, sum); err != nil {
		return err
	}
	return nil
}

// writing is a partial file and the hash of what is in it.
type writing struct {
	f *os.File
	h interface {
		io.Writer
		Sum([]byte) []byte
		Reset()
	}
	n int64
	m *meter
}

// take hashes what an earlier try has left.
func (w *writing) take(ctx context.Context, size int64) error {
	fi, err := w.f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() > size || !fi.Mode().IsRegular() {
		return w.restart()
	}
	w.n, err = io.CopyBuffer(w.h, &metered{r: w.f, ctx: ctx, took: w.m.add}, make([]byte, 256<<10))
	return err
}

func (w *writing) restart() error {
	w.m.add(-w.n)
	w.n = 0
	w.h.Reset()
	if err := w.f.Truncate(0); err != nil {
		return err
	}
	_, err := w.f.Seek(0, io.SeekStart)
	return err
}

// fill asks for the bytes that are missing, and returns nil when there are as many as there should be.
func (w *writing) fill(ctx context.Context, o origin, d descriptor) error {
	if w.n == d.Size {
		return nil
	}
	body, at, err := o.blob(ctx, d, w.n)
	if err != nil {
		return err
	}
	defer body.Close()
	if at != w.n { // it begins anew
		if err := w.restart(); err != nil {
			return err
		}
	}
	buf := make([]byte, 256<<10)
	for {
		k, err := body.Read(buf)
		if w.n+int64(k) > d.Size {
			return errors.Join(w.restart(), fmt.Errorf("more than its %d bytes came: %w", d.Size, ErrDamaged))
		}
		if _, err := w.f.Write(buf[:k]); err != nil {
			return err
		}
		w.h.Write(buf[:k])
		w.n += int64(k)
		w.m.add(int64(k))
		switch {
		case errors.Is(err, io.EOF) && w.n < d.Size:
			return fmt.Errorf("%w: it ended after %d of %d bytes", errTemporary, w.n, d.Size)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("%w: after %d of %d bytes: %w", errTemporary, w.n, d.Size, err)
		}
	}
}

// retry calls do until it succeeds, fails for good, or has been tried often enough. It waits between
// tries, each time twice as long, give or take a half, so that many clients do not come back at once.
func retry(ctx context.Context, do func() error) error {
	wait := firstBackoff
	for try := 1; ; try++ {
		err := do()
		if err == nil || !errors.Is(err, errTemporary) {
			return err
		}
		if try == tries {
			return fmt.Errorf("%w (%d tries were made: see to the network, and do the same again; what has come is kept)", err, tries)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, lastBackoff)
	}
}
