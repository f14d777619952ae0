package images

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/carrel-vm/carrel/images/bundle"
	"github.com/carrel-vm/carrel/images/oci"
)

// SignOptions say how images become a bundle.
type SignOptions struct {
	// Key is the path of the private key that signs.
	Key string
	// Version of the bundle; 0: the seconds since 1970.
	Version uint64
	// Expires is how long the signature is taken for new images; 0: for ever.
	Expires time.Duration
	// As is what the bundle is called; empty: as the first image.
	As string
	// Progress may be nil.
	Progress func(Event)
}

// bundled is a bundle to be published: documents and blobs by digest, and where the bytes of each are.
type bundled struct {
	statement         bundle.Statement
	index, signatures []byte
	docs              [][]byte // manifests, before the index
	blobs             []oci.Upload
}

// Published says what was pushed or exported.
type Published struct {
	Name, Digest string
	Version      uint64
	Archs        []string
	Size         int64 // bytes of all blobs
}

// PushBundle signs images, one for each architecture, and brings them to a registry. The bundle is named
// as the first, unless o.As says otherwise. The signature goes before the tag, so that whoever pulls by the tag finds it.
func (s *Store) PushBundle(ctx context.Context, names []string, reference string, o SignOptions) (*Published, error) {
	r, err := ParseReference(reference)
	if err != nil {
		return nil, err
	}
	if r.Digest != "" {
		return nil, fmt.Errorf("%w %.80q: what is pushed has the digest that it has (leave @sha256:... out)", ErrName, reference)
	}
	tag, err := oci.TagOf(r.Name)
	if err != nil {
		return nil, err
	}
	var out *Published
	err = s.bundle(ctx, names, o, func(b *bundled) error {
		var docs []oci.Document
		for _, d := range b.docs {
			docs = append(docs, oci.Document{MediaType: bundle.TypeManifest, Raw: d})
		}
		docs = append(docs,
			oci.Document{MediaType: bundle.TypeIndex, Raw: b.index},
			oci.Document{Tag: bundle.SignatureTag(b.statement.Digest), MediaType: bundle.TypeManifest, Raw: b.signatures},
			oci.Document{Tag: tag, MediaType: bundle.TypeIndex, Raw: b.index})
		out = b.published()
		return oci.Push(ctx, r.Name, s.registry(r), b.blobs, docs, o.report())
	})
	if err != nil {
		return nil, fmt.Errorf("push image to %s: %w", r, err)
	}
	return out, nil
}

// ExportBundle does the same into a file: an OCI layout in a tar, which is there wholly or not at all.
func (s *Store) ExportBundle(ctx context.Context, names []string, path string, o SignOptions) (*Published, error) {
	if _, err := os.Lstat(path); err == nil { // before minutes are spent on it; giveName decides
		return nil, fmt.Errorf("export image to %s: %w", path, errTaken)
	}
	var out *Published
	err := s.bundle(ctx, names, o, func(b *bundled) error {
		f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
		if err != nil {
			return err
		}
		err = errors.Join(b.write(ctx, f, o.report()), f.Sync(), f.Close())
		if err == nil {
			err = s.at("exported")
		}
		if err == nil {
			err = giveName(f.Name(), path)
		}
		if err != nil {
			os.Remove(f.Name())
			return err
		}
		out = b.published()
		return syncFolder(filepath.Dir(path))
	})
	if errors.Is(err, os.ErrExist) {
		err = errTaken
	}
	if err != nil {
		return nil, fmt.Errorf("export image to %s: %w", path, err)
	}
	return out, nil
}

var errTaken = errors.New("it is there already (remove it, or choose another name)")

// giveName gives a file that is whole its name, in one step, unless something has it: what somebody else has put there
// meanwhile is not replaced. A file system without hard links (exFAT) reserves the name first, with an empty file.
func giveName(from, to string) error {
	err := os.Link(from, to)
	if err == nil {
		return os.Remove(from)
	}
	if errors.Is(err, os.ErrExist) {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(f.Close(), os.Rename(from, to))
	if err != nil {
		os.Remove(to)
	}
	return err
}

func (o SignOptions) report() func(oci.Progress) {
	return func(p oci.Progress) {
		if o.Progress != nil {
			o.Progress(Event{Stage: p.Step, Done: p.Done, Total: p.Total})
		}
	}
}

// bundle makes a bundle of images that are held until do returns. What is signed was hashed just before.
func (s *Store) bundle(ctx context.Context, names []string, o SignOptions, do func(*bundled) error) error {
	if len(names) == 0 {
		return fmt.Errorf("%w: no image was named", ErrName)
	}
	key, err := bundle.ReadPrivate(o.Key)
	if err != nil {
		return err
	}
	if o.As != "" {
		if err := CheckName(o.As); err != nil {
			return err
		}
	}
	now := time.Now()
	b := &bundled{statement: bundle.Statement{Name: cmp.Or(o.As, names[0]), Version: o.Version, Created: now}}
	if b.statement.Version == 0 {
		b.statement.Version = uint64(now.Unix())
	}
	if o.Expires > 0 {
		b.statement.Expires = now.Add(o.Expires)
	}
	archs := map[string]bundle.Blob{}
	for _, name := range names {
		if o.Progress != nil {
			o.Progress(Event{Stage: "verify", Line: name})
		}
		img, release, err := s.Use(ctx, name)
		if err != nil {
			return err
		}
		defer release()
		if img.Manifest.Origin != nil {
			return fmt.Errorf("image %s: %w: it has no kernel and no initrd, and needs no bundle (push it with the tool that made it)", name, ErrName)
		}
		if err := s.verifyParts(ctx, s.dir(name), img, true); err != nil {
			return err
		}
		arch := img.Manifest.Arch
		if _, twice := archs[arch]; twice {
			return fmt.Errorf("image %s: it is for %s, and so is another one (a bundle has one image for each architecture)", name, arch)
		}
		if archs[arch], err = b.add(img, s.dir(name)); err != nil {
			return err
		}
	}
	if b.index, err = bundle.WriteIndex(archs); err != nil {
		return err
	}
	b.statement.Digest = bundle.DigestOf(b.index)
	return b.sign(key, do)
}

// add takes an image for one architecture, under the bundle's name.
func (b *bundled) add(img *Image, dir string) (bundle.Blob, error) {
	m := img.Manifest
	m.Version, m.Name = bundledVersion, b.statement.Name
	if err := m.check(); err != nil {
		return bundle.Blob{}, fmt.Errorf("image %s: %w", img.Name, err)
	}
	text, err := json.Marshal(m)
	if err != nil {
		return bundle.Blob{}, err
	}
	bm := bundle.Manifest{Config: b.small(bundle.TypeConfig, text)}
	for _, p := range m.Parts {
		part := bundle.Blob{MediaType: bundle.TypePart, Digest: digestPrefix + p.SHA256, Size: p.Size}
		path := filepath.Join(dir, p.Name)
		b.blobs = append(b.blobs, oci.Upload{Blob: oci.Blob(part), Open: func() (io.ReadCloser, error) { return oci.OpenRegular(path) }})
		bm.Parts = append(bm.Parts, part)
	}
	doc, err := bundle.WriteManifest(bm)
	if err != nil {
		return bundle.Blob{}, err
	}
	if _, err := bundle.ParseManifest(doc); err != nil { // what nobody could pull is not signed
		return bundle.Blob{}, err
	}
	b.docs = append(b.docs, doc)
	return bundle.BlobOf(bundle.TypeManifest, doc), nil
}

func (b *bundled) small(mediaType string, content []byte) bundle.Blob {
	d := bundle.BlobOf(mediaType, content)
	b.blobs = append(b.blobs, oci.Upload{Blob: oci.Blob(d), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }})
	return d
}

func (b *bundled) sign(key ed25519.PrivateKey, do func(*bundled) error) error {
	signed, err := bundle.Sign(key, b.statement)
	if err != nil {
		return err
	}
	if b.signatures, err = bundle.WriteSignatures([]bundle.Signed{signed}); err != nil {
		return err
	}
	b.small("application/octet-stream", signed.Payload)
	b.small("application/octet-stream", bundle.Empty)
	return do(b)
}

func (b *bundled) published() *Published {
	p := &Published{Name: b.statement.Name, Digest: b.statement.Digest, Version: b.statement.Version}
	archs, _ := bundle.ParseIndex(b.index)
	for _, a := range bundle.Archs {
		if _, ok := archs[a]; ok {
			p.Archs = append(p.Archs, a)
		}
	}
	for _, u := range b.blobs {
		p.Size += u.Size
	}
	return p
}

// write writes an OCI image layout as a tar (image-spec, image-layout.md). Parts that two architectures share are written once.
func (b *bundled) write(ctx context.Context, w io.Writer, report func(oci.Progress)) error {
	tw := tar.NewWriter(w)
	put := func(name string, size int64, r io.Reader) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: b.statement.Created.Truncate(time.Second)}); err != nil {
			return err
		}
		n, err := io.Copy(tw, r)
		if err == nil && n != size {
			err = fmt.Errorf("%s: %d bytes, expected %d", name, n, size)
		}
		return err
	}
	bytesOf := func(name string, content []byte) error {
		return put(name, int64(len(content)), bytes.NewReader(content))
	}
	index, err := bundle.WriteLayout(b.index, b.signatures)
	if err != nil {
		return err
	}
	if err := errors.Join(bytesOf("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)), bytesOf("index.json", index)); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, doc := range append([][]byte{b.index, b.signatures}, b.docs...) {
		d := bundle.DigestOf(doc)
		seen[d] = true
		if err := bytesOf(blobPath(d), doc); err != nil {
			return err
		}
	}
	total := b.published().Size
	done := int64(0)
	for _, u := range b.blobs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if seen[u.Digest] {
			continue
		}
		seen[u.Digest] = true
		r, err := u.Open()
		if err != nil {
			return err
		}
		err = put(blobPath(u.Digest), u.Size, &counting{r: r, ctx: ctx, add: func(n int64) {
			done += n
			report(oci.Progress{Step: "export", Done: done, Total: total})
		}})
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return tw.Close()
}

func blobPath(digest string) string { return "blobs/sha256/" + digest[len(digestPrefix):] }

// counting says how much was read, and stops when ctx ends.
type counting struct {
	r   io.Reader
	ctx context.Context
	add func(int64)
}

func (c *counting) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p[:min(len(p), 1<<20)])
	c.add(int64(n))
	return n, err
}
