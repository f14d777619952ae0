package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/images/oci"
)

// WithUnpacker returns a store that has the layers of images parsed by processes of their own, whose program calls
// Unpack.
func (s *Store) WithUnpacker(p Unpacker) *Store {
	out := *s
	out.unpack = oci.Elsewhere(p)
	return &out
}

// Unpacker is such a process, as it is started.
type Unpacker = oci.Process

// Given is what such a process was started with.
type Given = oci.Given

// Confinement is how such a process gives up what it does not need.
type Confinement = oci.Confinement

// Unpack is what such a process does; see oci.ServeUnpack.
func Unpack(ctx context.Context, given Given, c Confinement) error {
	return oci.ServeUnpack(ctx, given, c)
}

// imported is where references of imported images lie that were given no other name; it is no
// registry's, so nothing is ever pulled in their place.
const imported = "localhost/imported/"

func (s *Store) blobs() *oci.Blobs { return oci.Open(filepath.Join(s.cache, "oci")).Through(s.unpack) }

// Pull brings what a reference leads to from its registry, or finds that it is here and whole. An image
// that is damaged is made again of its layers, and layers that are damaged are downloaded again.
func (s *Store) Pull(ctx context.Context, reference string, progress func(Event)) (*Image, Reference, error) {
	r, err := ParseReference(reference)
	if err != nil {
		return nil, r, err
	}
	src := oci.Registry(r.key(), s.registry(r))
	img, err := s.bring(ctx, src, r, progress)
	if err != nil && strings.HasPrefix(r.Name, imported) {
		return nil, r, fmt.Errorf("pull image %s: it was imported, and what it was made of is gone: %w (carrel image import brings it again)", r, err)
	} else if err != nil {
		return nil, r, fmt.Errorf("pull image %s: %w", r, err)
	}
	return img, r.Pinned(img.Manifest.Origin.Digest), nil
}

// registry says how the registry of a reference is reached. Only one of this machine's own may do without TLS.
func (s *Store) registry(r Reference) oci.RegistryOptions {
	return oci.RegistryOptions{PlainHTTP: s.roots == nil && onLoopback(r.Name), RootCAs: s.roots}
}

// onLoopback says whether a registry is meant that people run beside, without a certificate; whether it
// is one is decided again by the address that is dialled.
func onLoopback(name string) bool {
	host, _, _ := strings.Cut(name, "/")
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		host = host[:i]
	}
	return host == "localhost" || strings.HasPrefix(host, "127.") || host == "[::1]"
}

// Import does the same with an OCI layout's folder, or a tarball that docker save wrote. Without a
// reference the image is called after the file.
func (s *Store) Import(ctx context.Context, path, reference string, progress func(Event)) (*Image, Reference, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, Reference{}, fmt.Errorf("import an image: %w", err)
	}
	if reference == "" {
		reference = imported + plainName(filepath.Base(path))
	}
	r, err := ParseReference(reference)
	if err != nil {
		return nil, r, err
	}
	if r.Digest != "" {
		return nil, r, fmt.Errorf("%w %.80q: what is imported has the digest that it has (leave @sha256:... out)", ErrName, reference)
	}
	src := oci.Tarball(path)
	if fi.IsDir() {
		src = oci.Layout(path, "")
	}
	img, err := s.bring(ctx, src, r, progress)
	if err != nil {
		return nil, r, fmt.Errorf("import image %s: %w", path, err)
	}
	return img, r.Pinned(img.Manifest.Origin.Digest), nil
}

// plainName makes of a file's name what a repository may be called.
func plainName(file string) string {
	for _, ext := range []string{".gz", ".zst", ".tar", ".tgz", ".oci"} {
		file = strings.TrimSuffix(file, ext)
	}
	name := strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			return c
		case c >= 'A' && c <= 'Z':
			return c + 'a' - 'A'
		}
		return '-'
	}, file)
	name = strings.Trim(name[:min(len(name), 100)], "-")
	for strings.Contains(name, "---") {
		name = strings.ReplaceAll(name, "---", "-")
	}
	if name == "" {
		return "image"
	}
	return name
}

// bring makes an image of what src has, step by step; whatever ends it in between leaves nothing that
// is seen:
//
//  1. manifest, config and layers come into the store of blobs, each complete or absent
//  2. the root is written of the layers, in half/<id>, where the next try begins anew
//  3. the manifest is written beside it
//  4. the folder gets its place, in one step: the image is there
//  5. the reference leads to it
func (s *Store) bring(ctx context.Context, src oci.Source, r Reference, progress func(Event)) (*Image, error) {
	if progress == nil {
		progress = func(Event) {}
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
	report := func(p oci.Progress) { progress(Event{Stage: p.Step, Done: p.Done, Total: p.Total}) }
	var o *oci.Image
	local := false
	if r.Digest != "" { // what is here already needs no registry
		if o, err = blobs.Load(r.Digest); err == nil {
			local = true
		}
	}
	platform := oci.Platform{OS: "linux", Arch: s.arch}
	if !local {
		if o, err = blobs.Fetch(ctx, src, platform, report); err != nil {
			return nil, err
		}
	}
	if err := s.at("fetched"); err != nil {
		return nil, err
	}
	id, err := idOf(o.Digest)
	if err != nil {
		return nil, err
	}
	made, err := s.making(ctx, id)
	if err != nil {
		return nil, err
	}
	defer made()
	img, err := s.verify(ctx, id, true)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrDamaged) {
		img, err = s.makeRoot(ctx, id, blobs, o, report)
		if local && (errors.Is(err, oci.ErrDamaged) || errors.Is(err, oci.ErrNotFound)) {
			if o, err = blobs.Fetch(ctx, src, platform, report); err == nil {
				img, err = s.makeRoot(ctx, id, blobs, o, report)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	if err := s.writeRef(r.key(), o.Digest); err != nil {
		return nil, err
	}
	return img, s.at("referenced")
}

func (s *Store) half(id string) string { return filepath.Join(s.cache, "half", id) }

// makeRoot writes an image's folder and puts it in its place. The caller is the only one who makes it.
func (s *Store) makeRoot(ctx context.Context, id string, blobs *oci.Blobs, o *oci.Image, report func(oci.Progress)) (*Image, error) {
	half := s.half(id)
	if err := removeAll(half); err != nil { // of a try that was cut off
		return nil, err
	}
	if err := os.MkdirAll(half, 0o700); err != nil {
		return nil, err
	}
	defer removeAll(half)
	m := &Manifest{
		Version: pulledVersion, Name: id, Created: time.Now().UTC().Format(time.RFC3339), Arch: o.Platform.Arch,
		Origin: &Origin{Digest: o.Digest, Platform: o.Platform.String(), Config: o.Config},
		Tools:  []Item{}, Packages: []Item{},
	}
	m.Origin.Config.Labels = nil // nothing here reads them
	for _, l := range o.Layers {
		m.Origin.Layers = append(m.Origin.Layers, Layer{Digest: l.Digest, Size: l.Size})
	}
	root, err := os.OpenFile(filepath.Join(half, Root), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	st, err := blobs.WriteRoot(ctx, o, root, oci.Limits{}, report)
	if err != nil {
		return nil, err
	}
	m.RootUncompressed = st.Content
	if err := s.at("written"); err != nil {
		return nil, err
	}
	// Closed here, since Windows renames no folder in which a file is open.
	if err := errors.Join(root.Sync(), root.Close()); err != nil {
		return nil, err
	}
	sum, size, err := hashFile(ctx, root.Name())
	if err != nil {
		return nil, err
	}
	m.Parts = []Part{{Name: Root, SHA256: sum, Size: size}}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if len(text) > maxManifest {
		return nil, fmt.Errorf("manifest of %d bytes, more than %d", len(text), maxManifest)
	}
	if err := writeFile(filepath.Join(half, manifestName), func(f *os.File) error { _, err := f.Write(text); return err }); err != nil {
		return nil, err
	}
	if err := s.at("described"); err != nil {
		return nil, err
	}
	if err := s.putInPlace(ctx, half, id); err != nil {
		return nil, err
	}
	if err := s.at("placed"); err != nil {
		return nil, err
	}
	return s.load(id)
}

// putInPlace gives a complete folder its name. What has it is damaged, and is taken away first: between
// the two there is no image, and the next pull of it makes one.
func (s *Store) putInPlace(ctx context.Context, half, id string) error {
	free, err := s.alone(ctx, id, endPatience)
	if err != nil {
		return err
	}
	defer free()
	if err := os.MkdirAll(filepath.Join(s.cache, "images"), 0o700); err != nil {
		return err
	}
	if err := syncFolder(half); err != nil {
		return err
	}
	if _, err := os.Lstat(s.dir(id)); err == nil {
		if err := s.takeAway(id); err != nil {
			return err
		}
	}
	if err := os.Rename(half, s.dir(id)); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(s.dir(id)))
}

// takeAway removes an image that the caller has alone: out of sight in one step, then deleted, so that
// nobody sees half of an image.
func (s *Store) takeAway(id string) error {
	old := s.half("removed-" + id)
	if err := removeAll(old); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(old), 0o700); err != nil {
		return err
	}
	if err := os.Rename(s.dir(id), old); err != nil {
		return err
	}
	if err := s.at("taken away"); err != nil {
		return err
	}
	return removeAll(old)
}

// removeAll removes a tree in which folders may lack their owner's permissions, as those of an image
// that was unpacked do.
func removeAll(root string) error {
	if err := os.RemoveAll(root); err == nil {
		return nil
	}
	_ = filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(root)
}

// at is where a test may end this process or make a step fail.
func (s *Store) at(step string) error {
	if s.step == nil {
		return nil
	}
	return s.step(step)
}
