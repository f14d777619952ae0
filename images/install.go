package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/images/bundle"
	"github.com/carrel-vm/carrel/images/oci"
)

// IsBundle says whether a Pull or an Import has failed because what was named is a bundle.
func IsBundle(err error) bool {
	var a *oci.ArtifactError
	return errors.As(err, &a) && a.Type == bundle.Type
}

// BundleOptions say how a bundle is taken.
type BundleOptions struct {
	// AllowRollback takes a version below the highest that this host has had.
	AllowRollback bool
	// Progress may be nil.
	Progress func(Event)
}

// PullBundle brings the image that a bundle of a registry has for this host's architecture. What is here
// and whole is not downloaded again. Errors wrap ErrUntrusted or bundle.ErrRolledBack where that is why.
func (s *Store) PullBundle(ctx context.Context, reference string, o BundleOptions) (*Image, error) {
	r, err := ParseReference(reference)
	if err != nil {
		return nil, err
	}
	img, err := s.install(ctx, oci.Registry(r.key(), s.registry(r)), bundleRecord{From: r.key()}, o)
	if err != nil {
		return nil, fmt.Errorf("pull image %s: %w", r, err)
	}
	return img, nil
}

// ImportBundle does the same with a file that ExportBundle wrote, or an OCI layout's folder.
func (s *Store) ImportBundle(ctx context.Context, path string, o BundleOptions) (*Image, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("import an image: %w", err)
	}
	src := oci.Tarball(path)
	if fi.IsDir() {
		src = oci.Layout(path, "")
	}
	img, err := s.install(ctx, src, bundleRecord{From: path, Imported: true}, o)
	if err != nil {
		return nil, fmt.Errorf("import image %s: %w", path, err)
	}
	return img, nil
}

// offer is a bundle whose signature was good, for one architecture.
type offer struct {
	statement bundle.Statement
	record    bundleRecord
	manifest  bundle.Manifest
	text      []byte // of manifest.json
	image     Manifest
}

// install takes a bundle, step by step; whatever ends it in between leaves the image that was there, and
// nothing that is seen of the other:
//
//  1. index and signatures are read, and judged: key, what it may sign, expiry, version
//  2. manifest and manifest.json are read, by the digests that lead from the index to them
//  3. parts that are here and whole are linked, the others come into the store of blobs and then into half/<name>.bundle
//  4. the version is remembered
//  5. the image that is there is kept as the previous one
//  6. the new one takes its place
func (s *Store) install(ctx context.Context, src oci.Source, rec bundleRecord, o BundleOptions) (*Image, error) {
	if s.trust == "" {
		return nil, fmt.Errorf("%w: this store takes no bundles", ErrUntrusted)
	}
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	pulled, err := s.pulling(ctx)
	if err != nil {
		return nil, err
	}
	defer pulled()
	blobs := s.blobs()
	release, err := blobs.Hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	o.Progress(Event{Stage: "resolve"})
	a, err := oci.OpenArtifact(ctx, src, bundle.Type, filepath.Join(s.cache, "oci", "tmp"))
	if err != nil {
		return nil, err
	}
	defer a.Close()
	off, err := s.judge(ctx, a, rec, o)
	if err != nil {
		return nil, err
	}
	name := off.statement.Name
	made, err := s.making(ctx, name+bundleSuffix)
	if err != nil {
		return nil, err
	}
	defer made()
	// Once more, since another may have taken a later one meanwhile.
	if err := s.fresh(off.statement, o); err != nil {
		return nil, err
	}
	if img, err := s.verify(ctx, name, true); err == nil && img.Bundle != nil && img.Bundle.Digest == off.statement.Digest && img.Bundle.Version == off.statement.Version {
		return img, bundle.Remember(s.seen, off.statement, rec.From, rec.Imported) // it is here, and whole
	} else if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	half := s.half(name + bundleSuffix)
	if err := removeAll(half); err != nil { // of a try that was cut off
		return nil, err
	}
	if err := os.MkdirAll(half, 0o700); err != nil {
		return nil, err
	}
	defer removeAll(half)
	report := func(p oci.Progress) { o.Progress(Event{Stage: p.Step, Done: p.Done, Total: p.Total}) }
	if err := s.gather(ctx, half, off, blobs, a, report); err != nil {
		return nil, err
	}
	if err := s.at("described"); err != nil {
		return nil, err
	}
	if err := bundle.Remember(s.seen, off.statement, rec.From, rec.Imported); err != nil {
		return nil, err
	}
	if err := s.at("remembered"); err != nil {
		return nil, err
	}
	if err := s.place(ctx, half, name, off.statement.Digest); err != nil {
		return nil, err
	}
	img, err := s.load(name)
	if err == nil {
		err = s.trusted(img)
	}
	return img, err
}

const bundleSuffix = ".bundle"

// judge reads what leads from a signature to an image, and nothing that no signature vouches for but what
// is needed to find it.
func (s *Store) judge(ctx context.Context, a *oci.Artifact, rec bundleRecord, o BundleOptions) (*offer, error) {
	keys, err := bundle.LoadKeys(s.trust)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 { // before anything is asked of anybody
		_, err := bundle.Verify(nil, nil, "", time.Now())
		return nil, err
	}
	off := &offer{record: rec}
	if off.record.Index, err = a.Root(ctx); err != nil {
		return nil, err
	}
	digest := bundle.DigestOf(off.record.Index)
	read := func(b bundle.Blob) ([]byte, error) {
		return a.Read(ctx, oci.Blob{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size})
	}
	var all []bundle.Signed
	raw, err := a.Tagged(ctx, bundle.SignatureTag(digest))
	if err == nil {
		all, err = bundle.ParseSignatures(raw, read)
	}
	if err != nil && !errors.Is(err, oci.ErrNotFound) {
		return nil, err
	}
	now := time.Now()
	proof, err := bundle.Verify(all, keys, digest, now)
	if err != nil {
		return nil, err
	}
	off.statement, off.record.Signed = proof.Statement, proof.Signed
	if err := off.statement.Expired(now); err != nil {
		return nil, err
	}
	if err := s.fresh(off.statement, o); err != nil {
		return nil, err
	}
	archs, err := bundle.ParseIndex(off.record.Index)
	if err != nil {
		return nil, err
	}
	at, ok := archs[s.arch]
	if !ok {
		var has []string
		for arch := range archs {
			has = append(has, arch)
		}
		return nil, fmt.Errorf("%w: the bundle is for %s, and this host is %s", ErrNotFound, strings.Join(has, ", "), s.arch)
	}
	if off.record.Manifest, err = read(at); err != nil {
		return nil, fmt.Errorf("manifest %w", err)
	}
	if off.manifest, err = bundle.ParseManifest(off.record.Manifest); err != nil {
		return nil, err
	}
	if off.text, err = read(off.manifest.Config); err != nil {
		return nil, fmt.Errorf("config %w", err)
	}
	m, err := parseManifest(off.text)
	if err != nil {
		return nil, err
	}
	if m.Version != bundledVersion || m.Name != off.statement.Name || m.Arch != s.arch {
		return nil, fmt.Errorf("%w: a manifest of version %d for image %s on %s, expected %d, %s and %s", bundle.ErrMalformed,
			m.Version, m.Name, m.Arch, bundledVersion, off.statement.Name, s.arch)
	}
	off.image = *m
	return off, follow(off.record.Index, off.record.Manifest, m.Arch, off.text, m)
}

// fresh refuses a roll-back, unless it is meant.
func (s *Store) fresh(st bundle.Statement, o BundleOptions) error {
	mem, err := bundle.Recall(s.seen, st.Name)
	if err != nil {
		return err
	}
	if err := mem.Judge(st); err != nil && !o.AllowRollback {
		return err
	}
	return nil
}

// gather makes a complete image in half.
func (s *Store) gather(ctx context.Context, half string, off *offer, blobs *oci.Blobs, a *oci.Artifact, report func(oci.Progress)) error {
	var want []oci.Blob
	for i, p := range off.image.Parts {
		if !s.linkPart(ctx, off.statement.Name, p, filepath.Join(half, p.Name)) {
			b := off.manifest.Parts[i]
			want = append(want, oci.Blob{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size})
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := blobs.FetchBlobs(ctx, a, want, report); err != nil {
		return err
	}
	if err := s.at("fetched"); err != nil {
		return err
	}
	for _, p := range off.image.Parts {
		to := filepath.Join(half, p.Name)
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		if err := blobs.Take(digestPrefix+p.SHA256, to); err != nil {
			return err
		}
	}
	if err := s.at("taken"); err != nil {
		return err
	}
	rec, err := json.Marshal(off.record)
	if err != nil {
		return err
	}
	if len(rec) > maxRecord {
		return fmt.Errorf("%s of %d bytes, more than %d", bundleName, len(rec), maxRecord)
	}
	for name, b := range map[string][]byte{manifestName: off.text, bundleName: rec} {
		if err := writeFile(filepath.Join(half, name), func(f *os.File) error { _, err := f.Write(b); return err }); err != nil {
			return err
		}
	}
	return nil
}

// linkPart takes a part from the image of that name, or the one before it, if one of them has it whole.
func (s *Store) linkPart(ctx context.Context, name string, p Part, to string) bool {
	for _, dir := range []string{s.dir(name), s.previous(name)} {
		path := filepath.Join(dir, p.Name)
		if _, err := checkPart(ctx, path, p); err != nil {
			continue
		}
		if err := linkOrCopy(path, to); err != nil {
			_ = os.Remove(to)
			continue
		}
		if _, err := checkPart(ctx, to, p); err == nil {
			return true
		}
		_ = os.Remove(to)
	}
	return false
}

// linkOrCopy shares the bytes of a file where the file system can.
func linkOrCopy(from, to string) error {
	if err := os.Link(from, to); err == nil {
		return nil
	}
	in, err := oci.OpenRegular(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return writeFile(to, func(f *os.File) error { _, err := io.Copy(f, in); return err })
}

// place keeps the image that is there as the previous one, unless it is damaged or the same bundle, and
// gives the new one its name. In between, the one that is there is both; at no moment is half of one seen.
func (s *Store) place(ctx context.Context, half, name, digest string) error {
	for _, dir := range []string{"images", "previous"} {
		if err := os.MkdirAll(filepath.Join(s.cache, dir), 0o700); err != nil {
			return err
		}
	}
	free, err := s.alone(ctx, name, startPatience)
	if err != nil {
		return err
	}
	defer free()
	old, err := s.load(name)
	if err == nil && (old.Bundle == nil || old.Bundle.Digest != digest) && s.verifyParts(ctx, s.dir(name), old, true) == nil {
		if err := s.keep(s.dir(name), name); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.at("kept"); err != nil {
		return err
	}
	if err := replace(half, s.dir(name)); err != nil {
		return err
	}
	return s.at("placed")
}

// keep makes what lies in dir the previous image of a name.
func (s *Store) keep(dir, name string) error {
	half := s.half(name + ".previous")
	if err := s.linkImage(dir, half); err != nil {
		return err
	}
	defer removeAll(half)
	return replace(half, s.previous(name))
}

// linkImage makes a folder with the files of an image.
func (s *Store) linkImage(dir, to string) error {
	if err := removeAll(to); err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, f := range []string{Kernel, Initrd, Root, manifestName, bundleName} {
		err := linkOrCopy(filepath.Join(dir, f), filepath.Join(to, f))
		if err != nil && !(f == bundleName && errors.Is(err, os.ErrNotExist)) {
			return errors.Join(err, removeAll(to))
		}
	}
	return nil
}

// Restore lets an image and the one before it change places, on Linux in one step. One that is damaged is
// not kept for it.
func (s *Store) Restore(ctx context.Context, name string) (*Image, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	made, err := s.making(ctx, name+bundleSuffix)
	if err != nil {
		return nil, err
	}
	defer made()
	img, err := s.Previous(name)
	if err != nil {
		return nil, err
	}
	if err := s.verifyParts(ctx, s.previous(name), img, true); err != nil {
		return nil, fmt.Errorf("the image before it: %w", err)
	}
	free, err := s.alone(ctx, name, startPatience)
	if err != nil {
		return nil, err
	}
	defer free()
	old, err := s.load(name)
	whole := err == nil && s.verifyParts(ctx, s.dir(name), old, true) == nil
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := replace(s.previous(name), s.dir(name)); err != nil {
		return nil, fmt.Errorf("restore image %s: %w", name, err)
	}
	if err := s.at("restored"); err != nil {
		return nil, err
	}
	if !whole {
		if err := removeAll(s.previous(name)); err != nil {
			return nil, fmt.Errorf("restore image %s: remove what was damaged: %w", name, err)
		}
	}
	return s.verify(ctx, name, false)
}
