package oci

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Layout is an image in an OCI image layout, a folder. tag chooses by org.opencontainers.image.ref.name
// or by digest, and may be empty where the folder holds one image.
func Layout(dir, tag string) Source { return layoutDir{dir, tag} }

// Tarball is an image in a file that docker save, podman save or skopeo wrote: an OCI layout or a
// docker archive in a tar, plain or compressed by gzip or zstd. It must hold one image (of a platform).
func Tarball(path string) Source { return tarball(path) }

// files is what a layout lies in. Names are slash-separated and never leave it.
type files interface {
	open(name string) (body io.ReadSeekCloser, size int64, err error)
	close()
}

// layout is an OCI image layout in a folder or a tar (image-spec, image-layout.md).
type layout struct {
	files
	tag string
}

type layoutDir struct{ dir, tag string }

func (l layoutDir) String() string { return strings.TrimSuffix(l.dir+":"+l.tag, ":") }

func (l layoutDir) open(context.Context, string) (origin, error) {
	r, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, fmt.Errorf("image layout: %w", err)
	}
	return &layout{folder{r}, l.tag}, nil
}

// folder is a layout's folder: a link in it that leads out is an error.
type folder struct{ root *os.Root }

func (f folder) close() { f.root.Close() }

func (f folder) open(name string) (io.ReadSeekCloser, int64, error) {
	fi, err := f.root.Stat(name) // before the open, which would wait for a FIFO's writer
	if err != nil {
		return nil, 0, err
	}
	if !fi.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: %w: not a regular file", name, ErrMalformed)
	}
	file, err := f.root.Open(name)
	return file, fi.Size(), err
}

// small reads a whole file of at most limit bytes.
func small(f files, name string, limit int64) ([]byte, error) {
	body, size, err := f.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	defer body.Close()
	if size > limit {
		return nil, fmt.Errorf("%s: %w: %d bytes", name, ErrTooBig, size)
	}
	return io.ReadAll(io.LimitReader(body, limit))
}

func (l *layout) root(context.Context) ([]byte, string, error) {
	raw, err := small(l, "index.json", maxManifest)
	if err != nil {
		return nil, "", fmt.Errorf("image layout: %w", err)
	}
	if l.tag == "" {
		return raw, "", nil
	}
	d, err := parseDocument(raw)
	if err != nil {
		return nil, "", fmt.Errorf("image layout: index.json: %w", err)
	}
	for _, m := range d.Manifests {
		if m.Annotations["org.opencontainers.image.ref.name"] != l.tag && m.Digest != l.tag {
			continue
		}
		if err := m.check(maxManifest); err != nil {
			return nil, "", fmt.Errorf("image layout: tag %q: %w", clip(l.tag), err)
		}
		raw, err := readBlob(context.Background(), l, m)
		if err != nil {
			return nil, "", fmt.Errorf("image layout: manifest %w", err)
		}
		return raw, m.Digest, nil
	}
	return nil, "", fmt.Errorf("image layout: tag %q: %w", clip(l.tag), ErrNotFound)
}

func (l *layout) blob(_ context.Context, d descriptor, off int64) (io.ReadCloser, int64, error) {
	sum, err := checkDigest(d.Digest)
	if err != nil {
		return nil, 0, err
	}
	return opened(l, "blobs/sha256/"+sum, d.Size, off)
}

// opened opens a file that should have size bytes, at off.
func opened(f files, name string, size, off int64) (io.ReadCloser, int64, error) {
	body, has, err := f.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("%s: %w", name, ErrNotFound)
	} else if err != nil {
		return nil, 0, err
	}
	if has != size {
		body.Close()
		return nil, 0, fmt.Errorf("%s: %d bytes instead of %d: %w", name, has, size, ErrDamaged)
	}
	if _, err := body.Seek(off, io.SeekStart); err != nil {
		body.Close()
		return nil, 0, err
	}
	return body, off, nil
}

// tarball is the path of an archive.
type tarball string

func (t tarball) String() string { return string(t) }

const (
	maxMembers = 100_000 // of an archive
	maxArchive = 64 << 30
)

func (t tarball) open(ctx context.Context, tmp string) (origin, error) {
	a, err := openArchive(ctx, string(t), tmp)
	if err != nil {
		return nil, fmt.Errorf("image archive: %w", err)
	}
	if _, ok := a.members["index.json"]; ok {
		return &layout{a, ""}, nil
	}
	o, err := newDockerArchive(ctx, a)
	if err != nil {
		a.close()
		return nil, fmt.Errorf("image archive: %w", err)
	}
	return o, nil
}

// archive is a tar whose members are found by name: where each begins, and links to others.
type archive struct {
	f       *os.File
	tmp     string // to be removed, if the tar had to be unpacked
	members map[string]member
}

type member struct {
	off, size int64
	link      string
}

func openArchive(ctx context.Context, name, tmp string) (a *archive, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	a = &archive{f: f, members: map[string]member{}}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	plain, err := decompress(&metered{r: f, ctx: ctx, took: func(int64) {}})
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	if _, packed := plain.(unpacked); packed {
		defer f.Close()
		if a.f, err = os.CreateTemp(tmp, "archive-*"); err != nil {
			return nil, err
		}
		a.tmp = a.f.Name()
		if n, err := io.Copy(a.f, io.LimitReader(plain, maxArchive+1)); err != nil {
			return nil, tarError(err)
		} else if n > maxArchive {
			return nil, fmt.Errorf("%w: more than %d bytes", ErrTooBig, int64(maxArchive))
		}
	}
	if _, err := a.f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return a, a.scan(ctx)
}

func (a *archive) scan(ctx context.Context) error {
	tr := tar.NewReader(a.f)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return headerError(err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if n == maxMembers {
			return fmt.Errorf("%w: more than %d members", ErrTooBig, maxMembers)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			// tar.Reader reads headers by whole blocks and nothing ahead, so the file stands at the contents.
			off, err := a.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			if h.PAXRecords["GNU.sparse.realsize"] != "" || h.PAXRecords["GNU.sparse.size"] != "" {
				return fmt.Errorf("%w: member %q is sparse", ErrMalformed, clip(name))
			}
			a.members[name] = member{off: off, size: h.Size}
		case tar.TypeSymlink: // docker save's way to name a layer twice
			a.members[name] = member{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			a.members[name] = member{link: path.Clean(h.Linkname)}
		}
	}
}

func (a *archive) close() {
	a.f.Close()
	if a.tmp != "" {
		os.Remove(a.tmp)
	}
}

func (a *archive) open(name string) (io.ReadSeekCloser, int64, error) {
	name = path.Clean(name)
	for range 8 {
		m, ok := a.members[name]
		if !ok {
			return nil, 0, fmt.Errorf("member %q: %w", clip(name), fs.ErrNotExist)
		}
		if m.link == "" {
			return section{io.NewSectionReader(a.f, m.off, m.size)}, m.size, nil
		}
		name = m.link
	}
	return nil, 0, fmt.Errorf("%w: member %q: links without end", ErrMalformed, clip(name))
}

type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

// dockerArchive is what docker save wrote before it wrote layouts: manifest.json names a config and the layers'
// tars. It has no manifest with digests, so one is made of what is there.
type dockerArchive struct {
	*archive
	manifest []byte
	names    map[string]string // by digest
}

func newDockerArchive(ctx context.Context, a *archive) (*dockerArchive, error) {
	raw, err := small(a, "manifest.json", maxManifest)
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("%w: neither index.json nor manifest.json is in it", ErrMalformed)
	} else if err != nil {
		return nil, err
	}
	var images []struct {
		Config string
		Layers []string
	}
	if err := decode(raw, &images); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("%w: %d images in it, and one was to be (docker save one at a time)", ErrMalformed, len(images))
	}
	if len(images[0].Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d layers", ErrTooBig, len(images[0].Layers))
	}
	o := &dockerArchive{archive: a, names: map[string]string{}}
	doc := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{SchemaVersion: 2, MediaType: typeManifest, Layers: []descriptor{}}
	for i, name := range slices.Concat([]string{images[0].Config}, images[0].Layers) {
		body, size, err := a.open(name)
		if err != nil {
			return nil, fmt.Errorf("%w: manifest.json: %w", ErrMalformed, err)
		}
		sum, err := sumOf(ctx, body)
		if err != nil {
			return nil, err
		}
		o.names[sum] = name
		d := descriptor{MediaType: typeLayer, Digest: sum, Size: size}
		if i == 0 {
			d.MediaType = typeConfig
			doc.Config = d
		} else {
			doc.Layers = append(doc.Layers, d)
		}
	}
	o.manifest, err = json.Marshal(doc)
	return o, err
}

func (o *dockerArchive) root(context.Context) ([]byte, string, error) { return o.manifest, "", nil }

func (o *dockerArchive) blob(_ context.Context, d descriptor, off int64) (io.ReadCloser, int64, error) {
	name, ok := o.names[d.Digest]
	if !ok {
		return nil, 0, fmt.Errorf("%s: %w", d.Digest, ErrNotFound)
	}
	return opened(o.archive, name, d.Size, off)
}

func isManifest(mediaType string) bool {
	return slices.Contains(manifestTypes, mediaType) || slices.Contains(indexTypes, mediaType)
}
