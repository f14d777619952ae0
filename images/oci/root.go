package oci

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// WriteRoot writes the layers of img as one EROFS file system to dst, which must be empty, writable
// and open for reading too. The same layers give the same bytes on every host. On an error dst holds
// rubbish, which the caller removes; nothing else is left behind. report may be nil.
//
// It needs as much free space in the store as the image's files take, for the spool, besides dst. The
// progress has two halves: the layers' blobs, and the file that is written.
func (b *Blobs) WriteRoot(ctx context.Context, img *Image, dst *os.File, lim Limits, report func(Progress)) (Stats, error) {
	release, err := b.Hold(ctx)
	if err != nil {
		return Stats{}, err
	}
	defer release()
	if fi, err := dst.Stat(); err != nil {
		return Stats{}, err
	} else if fi.Size() != 0 {
		return Stats{}, fmt.Errorf("image %s: its root's file %s is not empty", img.name(), dst.Name())
	}
	sp, err := newSpool(filepath.Join(b.dir, "tmp"), lim.orDefault().Content)
	if err != nil {
		return Stats{}, err
	}
	defer sp.close()
	if b.through != nil {
		return b.through(ctx, b.dir, img, dst, sp.f, lim, report)
	}
	return b.writeRoot(ctx, img, dst, sp, lim, report)
}

// writeRoot does it in this process. The caller holds the store.
func (b *Blobs) writeRoot(ctx context.Context, img *Image, dst *os.File, sp *spool, lim Limits, report func(Progress)) (Stats, error) {
	var total int64
	for _, l := range img.Layers {
		total += l.Size
	}
	m := newMeter("unpack", 2*total, report)
	defer m.end()
	u := &unpacker{tree: newTree(sp, lim.orDefault().Entries), lim: lim.orDefault()}
	for i, l := range img.Layers {
		u.begin(i, l.Size)
		if err := b.layer(ctx, u, l, m.add); err != nil {
			return Stats{}, fmt.Errorf("image %s: layer %d of %d, %s: %w", img.name(), i+1, len(img.Layers), l.Digest, err)
		}
	}
	stats := Stats{Unpacked: u.unpacked}
	var err error
	stats.ImageBytes, err = writeErofs(ctx, u.tree, dst, &stats, func(done, all int64) {
		m.set(total + int64(float64(total)*float64(done)/float64(all)))
	})
	if err != nil {
		return Stats{}, fmt.Errorf("image %s: write its root: %w", img.name(), err)
	}
	return stats, nil
}

// layer verifies one blob, and only then reads what is in it.
func (b *Blobs) layer(ctx context.Context, u *unpacker, l Layer, took func(int64)) error {
	f, err := b.open(ctx, l.Digest, l.Size)
	if err != nil {
		return err
	}
	defer f.Close()
	return u.layer(ctx, f, l.DiffID, took)
}

// name is how errors call an image.
func (i *Image) name() string {
	if i.Ref != "" {
		return i.Ref
	}
	return i.Digest
}
