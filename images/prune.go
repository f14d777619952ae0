package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Pruned is what Prune has removed, or would.
type Pruned struct {
	Images []Image
	Blobs  int   // layers, manifests and configs that no image needs
	Bytes  int64 // of both, as they were on the disk
}

// Prune removes pulled images to which no reference leads and that inUse does not name by its digest,
// with all also those to which one leads; and then the layers that no image needs. Built images stay.
// One that somebody holds stays, too. With dry it only says what would go.
func (s *Store) Prune(ctx context.Context, inUse func(digest string) bool, all, dry bool) (*Pruned, error) {
	unlock, err := s.pruning(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	list, err := s.List(ctx)
	if err != nil && !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("prune: what a damaged image needs is not known: %w", err)
	}
	out := new(Pruned)
	var keep []string
	for _, img := range list {
		o := img.Manifest.Origin
		if o == nil {
			if all {
				out.Bytes += s.prunePrevious(ctx, img.Name, dry)
			}
			continue
		}
		if len(img.Refs) > 0 && !all || inUse(o.Digest) {
			keep = append(keep, o.Digest)
			continue
		}
		size := folderSize(s.dir(img.Name))
		if gone, err := s.pruneOne(ctx, img, dry); err != nil {
			return nil, err
		} else if !gone {
			keep = append(keep, o.Digest)
			continue
		}
		out.Images = append(out.Images, img)
		out.Bytes += size
	}
	if !dry {
		s.sweep()
	}
	freed, err := s.blobs().Prune(ctx, keep, dry)
	if err != nil {
		return nil, fmt.Errorf("prune layers: %w", err)
	}
	out.Blobs, out.Bytes = freed.Blobs+freed.Partials, out.Bytes+freed.Bytes
	return out, nil
}

// pruneOne removes an image and its references, unless somebody holds it.
func (s *Store) pruneOne(ctx context.Context, img Image, dry bool) (bool, error) {
	free, err := s.alone(ctx, img.Name, 0)
	if errors.Is(err, ErrInUse) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer free()
	if dry {
		return true, nil
	}
	// The image first: a reference that leads nowhere is mended by a pull, an image
	// without one is what the next Prune looks for.
	if err := s.takeAway(img.Name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("remove image %s: %w", img.Name, err)
	}
	for _, n := range img.Refs {
		if err := s.dropRef(n, img.Manifest.Origin.Digest); err != nil {
			return false, err
		}
	}
	return true, nil
}

// prunePrevious removes the image before one, and says how many bytes only it has had.
func (s *Store) prunePrevious(ctx context.Context, name string, dry bool) (n int64) {
	free, err := s.alone(ctx, name, 0)
	if err != nil {
		return 0 // another time
	}
	defer free()
	for _, f := range []string{Kernel, Initrd, Root} {
		fi, err := os.Stat(filepath.Join(s.previous(name), f))
		now, err1 := os.Stat(filepath.Join(s.dir(name), f))
		if err == nil && (err1 != nil || !os.SameFile(fi, now)) {
			n += fi.Size()
		}
	}
	if !dry {
		_ = removeAll(s.previous(name))
	}
	return n
}

// sweep removes what pulls and removals have left that were cut off. What it cannot remove costs disk
// space only.
func (s *Store) sweep() {
	entries, _ := os.ReadDir(filepath.Join(s.cache, "half"))
	for _, e := range entries {
		id := strings.TrimPrefix(strings.TrimSuffix(e.Name(), ".aside"), "removed-")
		lock := id
		if name, _, ok := strings.Cut(id, "."); ok { // NAME.bundle or NAME.previous
			id, lock = name, name+bundleSuffix
		}
		l, err := s.newLock(lock, ".making")
		if checkID(id) != nil || err != nil {
			continue
		}
		if ok, err := l.TryLock(); err == nil && ok {
			_ = removeAll(filepath.Join(s.cache, "half", e.Name()))
		}
		l.Close()
	}
}

// folderSize is how many bytes the files of a folder have.
func folderSize(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if fi, err := e.Info(); err == nil {
				n += fi.Size()
			}
		}
		return nil
	})
	return n
}
