package images

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Reference names an image of a registry.
type Reference struct {
	// Name is its full name with its tag: docker.io/library/python:3.13. One that was given with a
	// digest and without a tag has none.
	Name string
	// Digest pins it: sha256:...; empty: what the tag leads to.
	Digest string
}

// dockerHub is a registry with two names; people write the second.
const (
	dockerHub     = "index.docker.io/"
	dockerHubName = "docker.io/"
)

// maxReference is above what registries allow: 255 bytes of repository, 128 of tag
// (distribution-spec, "Pulling manifests").
const maxReference = 512

// validRepository is the grammar of a repository, with its registry's host where it has one (distribution-spec,
// "Pulling manifests"; the host as the docker CLI reads it). What parses references for us takes more.
var validRepository = regexp.MustCompile(`^((localhost|[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?/)?` +
	`[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

// ParseReference reads what a person writes: python, python:3.13, ghcr.io/me/it@sha256:...
func ParseReference(s string) (Reference, error) {
	if len(s) > maxReference {
		return Reference{}, fmt.Errorf("%w: a reference of %d bytes", ErrName, len(s))
	}
	base, digest, pinned := strings.Cut(s, "@")
	bad := func() (Reference, error) {
		return Reference{}, fmt.Errorf("%w %.80q (a reference is like python:3.13, ghcr.io/owner/name:tag or NAME@sha256:DIGEST)", ErrName, s)
	}
	if pinned {
		if _, err := idOf(digest); err != nil {
			return bad()
		}
	}
	repo := base
	if i := strings.LastIndexByte(base, ':'); i > strings.LastIndexByte(base, '/') {
		repo = base[:i]
	}
	t, err := name.NewTag(base)
	if err != nil || !validRepository.MatchString(repo) {
		return bad()
	}
	full := t.Name()
	if pinned && !strings.HasSuffix(base, ":"+t.TagStr()) {
		full = t.Context().Name() // no tag was named, so none led to it
	}
	if rest, ok := strings.CutPrefix(full, dockerHub); ok {
		full = dockerHubName + rest
	}
	return Reference{Name: full, Digest: digest}, nil
}

// String returns the reference as it can be given again.
func (r Reference) String() string {
	if r.Digest == "" {
		return r.Name
	}
	return r.Name + "@" + r.Digest
}

// Pinned returns the reference with a digest.
func (r Reference) Pinned(digest string) Reference { return Reference{Name: r.Name, Digest: digest} }

// key is what is asked of a registry, and how the store remembers it: with a digest the tag says nothing.
func (r Reference) key() string {
	if r.Digest == "" {
		return r.Name
	}
	repo := r.Name
	if i := strings.LastIndexByte(repo, ':'); i > strings.LastIndexByte(repo, '/') {
		repo = repo[:i]
	}
	return repo + "@" + r.Digest
}

// digestPrefix is the only algorithm that there is here.
const digestPrefix = "sha256:"

// idOf is the name of a pulled image in the store: sha256-<hex>, which no built one can have.
func idOf(digest string) (string, error) {
	h, ok := strings.CutPrefix(digest, digestPrefix)
	if !ok || !isHash(h) {
		return "", fmt.Errorf("%.80q is not a digest (sha256: and 64 hexadecimal digits)", digest)
	}
	return "sha256-" + h, nil
}

// checkID says whether id can be an image of the store, built or pulled.
func checkID(id string) error {
	if h, ok := strings.CutPrefix(id, "sha256-"); ok && isHash(h) {
		return nil
	}
	return CheckName(id)
}
