package images

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"
)

// ref is one file of refs/: what a reference led to when it was last pulled. One that was pulled by its
// digest has a file, too, which only keeps the image: no tag leads to it.
type ref struct {
	Ref    string `json:"ref"`
	Digest string `json:"digest"`
	Pulled string `json:"pulled"` // RFC 3339, UTC
}

// maxRefs bounds how many references are listed.
const maxRefs = 10000

func (s *Store) refsDir() string { return filepath.Join(s.cache, "refs") }

func (s *Store) refPath(name string) string {
	return filepath.Join(s.refsDir(), fmt.Sprintf("%x.json", sha256.Sum256([]byte(name))))
}

// readRef returns what a reference leads to. Its error wraps os.ErrNotExist if it leads nowhere, which
// is also what is made of a file that cannot be understood: pulling writes it anew.
func readRef(path string) (ref, error) {
	var r ref
	b, err := readSmall(path, 4096)
	if err != nil {
		return ref{}, err
	}
	if json.Unmarshal(b, &r) != nil {
		return ref{}, os.ErrNotExist
	}
	if _, err := idOf(r.Digest); err != nil {
		return ref{}, os.ErrNotExist
	}
	if p, err := ParseReference(r.Ref); err != nil || p.String() != r.Ref || p.Digest != "" && p.Digest != r.Digest {
		return ref{}, os.ErrNotExist
	}
	return r, nil
}

// writeRef lets a reference lead to digest, in one step.
func (s *Store) writeRef(name, digest string) error {
	b, err := json.Marshal(ref{Ref: name, Digest: digest, Pulled: time.Now().UTC().Format(time.RFC3339)})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.refsDir(), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(s.refsDir(), "new-*") // 0600
	if err != nil {
		return err
	}
	_, werr := f.Write(b)
	err = errors.Join(werr, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), s.refPath(name))
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("remember what %s leads to: %w", name, err)
	}
	return syncFolder(s.refsDir())
}

// dropRef forgets a reference, if it leads to digest.
func (s *Store) dropRef(name, digest string) error {
	r, err := readRef(s.refPath(name))
	if errors.Is(err, os.ErrNotExist) || err == nil && r.Digest != digest {
		return nil
	}
	if err := os.Remove(s.refPath(name)); err != nil {
		return fmt.Errorf("forget what %s leads to: %w", name, err)
	}
	return nil
}

// refs returns the references by the digest that they lead to, each list sorted.
func (s *Store) refs() (map[string][]string, error) {
	entries, err := os.ReadDir(s.refsDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list references: %w", err)
	}
	all := map[string][]string{}
	for i, e := range entries {
		if i >= maxRefs {
			return nil, fmt.Errorf("list references: more than %d in %s", maxRefs, s.refsDir())
		}
		if !strings.HasSuffix(e.Name(), ".json") {
			continue // one that is being written, or was when its process died
		}
		r, err := readRef(filepath.Join(s.refsDir(), e.Name()))
		if err == nil && s.refPath(r.Ref) == filepath.Join(s.refsDir(), e.Name()) {
			all[r.Digest] = append(all[r.Digest], r.Ref)
		}
	}
	for _, names := range all {
		sort.Strings(names)
	}
	return all, nil
}

// Find returns the id of the image that a name or reference leads to, and the reference with its
// digest if it is not a built one's name. A digest alone will do for an image that is here. Nothing
// is asked of a registry. Errors wrap ErrNotFound or ErrName.
func (s *Store) Find(image string) (id string, r Reference, err error) {
	if CheckName(image) == nil {
		if _, err := os.Lstat(s.dir(image)); err == nil {
			return image, Reference{}, nil
		}
	}
	if id, err := idOf(image); err == nil {
		if _, err := os.Lstat(s.dir(id)); err != nil {
			return "", r, fmt.Errorf("image %s: %w (carrel image ls shows those that there are)", image, ErrNotFound)
		}
		return id, Reference{Digest: image}, nil
	}
	if r, err = ParseReference(image); err != nil {
		return "", r, err
	}
	if r.Digest == "" {
		known, err := readRef(s.refPath(r.Name))
		if err != nil {
			return "", r, missing(image, r)
		}
		r.Digest = known.Digest
	}
	if id, err = idOf(r.Digest); err != nil {
		return "", r, err
	}
	if _, err := os.Lstat(s.dir(id)); err != nil {
		return "", r, missing(image, r)
	}
	return id, r, nil
}

// missing says how to get what is not there. A bare word may be the name of an image that was not
// built, or one of Docker Hub's.
func missing(image string, r Reference) error {
	if CheckName(image) == nil {
		return fmt.Errorf("image %s: %w (carrel image build %s builds one, carrel image pull %s brings Docker Hub's)", image, ErrNotFound, image, image)
	}
	return fmt.Errorf("image %s: %w (carrel image pull %s)", r, ErrNotFound, r)
}

// Last says whether no other reference leads to what r leads to.
func (s *Store) Last(r Reference) bool {
	refs, err := s.refs()
	return err == nil && !slices.ContainsFunc(refs[r.Digest], func(n string) bool { return n != r.Name && n != r.key() })
}

// Layers are what a pulled image's root was made of.
func (i *Image) Layers() []Layer {
	if i.Manifest.Origin == nil {
		return nil
	}
	return i.Manifest.Origin.Layers
}
