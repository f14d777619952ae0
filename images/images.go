// Package images makes, keeps and checks what a guest boots from: a kernel, an initrd with the agent, and a root file system.
//
// A store is one folder that the user owns:
//
//	images/<name>/         vmlinuz, initrd, root.erofs, manifest.json: a built image, complete or absent
//	images/sha256-<hex>/   root.erofs, manifest.json: one that was pulled or imported, by its digest
//	refs/                  which digest a reference such as python:3.13 leads to
//	oci/                   manifests, configs and layers; see package oci
//	kernel/<key>/          a built kernel, root/<key>/ a built root: kept by the hash of all that went into them;
//	                       kernel-arm64/<key>/ and root-arm64/<key>/ are those for that architecture
//	previous/<name>/       what images/<name> was before the last bundle of that name, for Restore
//	tmp/, half/            builds and pulls under way; what is found there without a living one is rubbish
//	locks/                 see hold
//
// The manifest guards against damage and mix-ups, not against the user: whoever may write here
// may start guests anyway.
package images

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"

	"github.com/carrel-vm/carrel/images/oci"
)

// Errors of a store; each is wrapped with what was tried and what would mend it.
var (
	ErrNotFound = errors.New("no such image")
	ErrDamaged  = errors.New("image is damaged")
	ErrName     = errors.New("bad image name")
	ErrTool     = errors.New("a tool is missing")
	ErrArch     = errors.New("wrong architecture")
)

// The parts of an image: these files and no others.
const (
	Kernel = "vmlinuz"
	Initrd = "initrd"
	Root   = "root.erofs"

	manifestName = "manifest.json"
	recordName   = "verified.json"
)

// validName is the same for every image, so that a name is never a path or a flag.
var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

// CheckName says whether an image may be called name.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("%w %.40q (a name is 1 to 31 of a-z, 0-9 and -, and starts with a letter or digit)", ErrName, name)
	}
	return nil
}

// Store keeps images, one folder each. Its methods may be called from many goroutines and processes at once.
type Store struct {
	cache  string
	arch   string             // of this host, as GOARCH
	trust  string             // folder of the keys that bundles must be signed with; empty: signatures are not looked at
	seen   string             // folder of what was seen of each bundle; see package bundle's Memory
	unpack oci.Unpacker       // nil: layers are parsed in this process
	roots  *x509.CertPool     // of registries, in tests; nil: the system's
	step   func(string) error // see at
}

// Open returns the store in cacheDir, which is made at the first build.
func Open(cacheDir string) *Store {
	if abs, err := filepath.Abs(cacheDir); err == nil {
		cacheDir = abs
	}
	return &Store{cache: cacheDir, arch: runtime.GOARCH}
}

// Image is one complete image. The paths are absolute. One that was pulled has no Kernel and no Initrd:
// it starts with a built one's, see UseKernel.
type Image struct {
	Name, Kernel, Initrd, Root string
	Manifest                   Manifest
	// Bundle is where an image comes from that a bundle brought; nil: from elsewhere.
	Bundle *Bundle
	// Refs are the references that lead to a pulled image, sorted; List fills them in.
	Refs []string
}

func (s *Store) dir(name string) string { return filepath.Join(s.cache, "images", name) }

// List returns the images of the store by name, without hashing their parts.
// Those that cannot be read are left out, and err, which wraps ErrDamaged, names each.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	entries, err := os.ReadDir(filepath.Join(s.cache, "images"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	refs, err := s.refs()
	if err != nil {
		return nil, err
	}
	var all []Image
	var bad []error
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if checkID(e.Name()) != nil {
			continue // not ours
		}
		img, err := s.load(e.Name())
		if err != nil {
			bad = append(bad, err)
			continue
		}
		if o := img.Manifest.Origin; o != nil {
			img.Refs = refs[o.Digest]
		}
		_ = s.trusted(img) // one that is not is listed as without a key, and says why when it is used
		all = append(all, *img)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all, errors.Join(bad...)
}

// Remove deletes an image by its name, or takes a reference away: the image that it led to goes with
// the last one, and so does what is called by its digest. What it was made from stays: a build's parts until
// they have not been used for a while, layers until Prune. Errors wrap ErrNotFound or ErrInUse.
func (s *Store) Remove(ctx context.Context, image string) error {
	unlock, err := s.lock(ctx, nil)
	if err != nil {
		return err
	}
	defer unlock()
	if CheckName(image) == nil {
		if _, err := os.Lstat(s.dir(image)); err == nil {
			return s.removeAlone(ctx, image)
		}
	}
	id, r, err := s.Find(image)
	if err != nil {
		return err
	}
	refs, err := s.refs()
	if err != nil {
		return err
	}
	all := refs[r.Digest]
	if r.Name != "" && !s.Last(r) {
		return errors.Join(s.dropRef(r.Name, r.Digest), s.dropRef(r.key(), r.Digest))
	}
	if err := s.removeAlone(ctx, id); err != nil {
		return err
	}
	for _, n := range all {
		if err := s.dropRef(n, r.Digest); err != nil {
			return err
		}
	}
	return nil
}

// removeAlone removes an image that nobody holds.
func (s *Store) removeAlone(ctx context.Context, id string) error {
	free, err := s.alone(ctx, id, endPatience)
	if err != nil {
		return err
	}
	defer free()
	if err := removeAll(s.previous(id)); err != nil {
		return fmt.Errorf("remove the image before %s: %w", id, err)
	}
	if err := s.takeAway(id); errors.Is(err, os.ErrNotExist) {
		return notFound(id) // somebody else has removed it meanwhile
	} else if err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return nil
}

// Fits refuses an image that no guest of this host can start from.
func (s *Store) Fits(img *Image) error {
	if img.Manifest.Arch != s.arch {
		return fmt.Errorf("image %s: %w: it is for %s hosts, and this one is %s (carrel image push and export bring it there; carrel image ls shows those that there are)",
			img.Name, ErrArch, img.Manifest.Arch, s.arch)
	}
	return nil
}

func (s *Store) temp(prefix string) (string, error) {
	dir := filepath.Join(s.cache, "tmp")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("image store: %w", err)
	}
	d, err := os.MkdirTemp(dir, prefix)
	if err != nil {
		return "", fmt.Errorf("image store: %w", err)
	}
	return d, nil
}

func notFound(id string) error {
	if CheckName(id) != nil {
		return fmt.Errorf("image %s: %w (carrel image ls shows those that there are)", id, ErrNotFound)
	}
	return fmt.Errorf("image %s: %w (carrel image build %s)", id, ErrNotFound, id)
}
