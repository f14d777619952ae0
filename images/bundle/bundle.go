// Package bundle says what a bundle is: kernel, initrd and root as one signed OCI artifact, which a host
// that builds no images starts from.
//
//	index                       artifactType Type; what is signed, by its digest
//	├── linux/amd64: manifest   config: the image's manifest.json; layers: vmlinuz, initrd, root.erofs
//	└── linux/arm64: manifest   …
//	signatures                  a manifest by itself, under SignatureTag of the index: a layer for each signature
//
// Whoever has a bundle in hands may have made it: no byte of it is understood before its digest leads to
// a signature of a trusted key, but for what is needed to find that signature. Sizes, counts and names are
// bounded before anything is made of them.
package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// Errors of a bundle; each is wrapped with what was tried and what would mend it.
var (
	// ErrMalformed says that a document is not what this package writes.
	ErrMalformed = errors.New("malformed bundle")
	// ErrUntrusted says that no trusted key has signed it, or that its signature has expired.
	ErrUntrusted = errors.New("not signed by a trusted key")
	// ErrRolledBack says that this host has seen a later version.
	ErrRolledBack = errors.New("an older version than this host has had")
)

// Media types. Type is the artifactType of indexes and manifests.
const (
	Type       = "application/vnd.carrel.bundle.v1"
	TypeConfig = "application/vnd.carrel.bundle.manifest.v1+json"
	TypePart   = "application/vnd.carrel.bundle.part.v1"

	TypeIndex    = "application/vnd.oci.image.index.v1+json"
	TypeManifest = "application/vnd.oci.image.manifest.v1+json"

	titleKey = "org.opencontainers.image.title"
)

// Bounds of what a bundle may say.
const (
	MaxDocument = 256 << 10 // bytes of an index, a manifest or the signatures' manifest; ours have some 2 KiB
	MaxConfig   = 4 << 20   // bytes of an image's manifest.json, as package images has it
	MaxPart     = 32 << 30  // bytes of one part, as package oci has it for any blob
	maxArchs    = 8
)

// Parts are the files of a bundle, in their order.
var Parts = []string{"vmlinuz", "initrd", "root.erofs"}

// Archs are those that a bundle can be for, as GOARCH.
var Archs = []string{"amd64", "arm64"}

// Blob names some bytes by their digest, "sha256:" and 64 digits.
type Blob struct {
	MediaType string
	Digest    string
	Size      int64
}

// BlobOf is the blob that these bytes are.
func BlobOf(mediaType string, b []byte) Blob {
	return Blob{MediaType: mediaType, Digest: DigestOf(b), Size: int64(len(b))}
}

// DigestOf is the digest of these bytes.
func DigestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Manifest is a bundle for one architecture: the image's manifest.json, and its parts in the order of Parts.
type Manifest struct {
	Config Blob
	Parts  []Blob
}

// descriptor, document and platform are OCI's (image-spec, descriptor.md, manifest.md, image-index.md), with the fields that we write and
// no others.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Platform     *platform         `json:"platform,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type document struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	ArtifactType  string       `json:"artifactType,omitempty"`
	Config        *descriptor  `json:"config,omitempty"`
	Layers        []descriptor `json:"layers,omitempty"`
	Manifests     []descriptor `json:"manifests,omitempty"`
}

// WriteManifest returns the document of a bundle for one architecture.
func WriteManifest(m Manifest) ([]byte, error) {
	d := document{SchemaVersion: 2, MediaType: TypeManifest, ArtifactType: Type, Config: m.Config.descriptor()}
	for i, p := range m.Parts {
		l := p.descriptor()
		l.Annotations = map[string]string{titleKey: Parts[i]}
		d.Layers = append(d.Layers, *l)
	}
	return json.Marshal(d)
}

// WriteIndex returns the document that leads to the manifest of each architecture.
func WriteIndex(archs map[string]Blob) ([]byte, error) {
	d := document{SchemaVersion: 2, MediaType: TypeIndex, ArtifactType: Type}
	for _, arch := range Archs {
		if b, ok := archs[arch]; ok {
			m := b.descriptor()
			m.ArtifactType, m.Platform = Type, &platform{arch, "linux"}
			d.Manifests = append(d.Manifests, *m)
		}
	}
	return json.Marshal(d)
}

func (b Blob) descriptor() *descriptor {
	return &descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size}
}

// ParseIndex returns the manifest of each architecture.
func ParseIndex(raw []byte) (map[string]Blob, error) {
	d, err := parse(raw, TypeIndex, Type)
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	if d.Config != nil || d.Layers != nil || len(d.Manifests) == 0 || len(d.Manifests) > maxArchs {
		return nil, fmt.Errorf("index: %w: %d manifests, or more than these", ErrMalformed, len(d.Manifests))
	}
	archs := map[string]Blob{}
	for _, m := range d.Manifests {
		if m.Platform == nil || m.Platform.OS != "linux" || !slices.Contains(Archs, m.Platform.Architecture) || m.ArtifactType != Type {
			return nil, fmt.Errorf("index: %w: a manifest for no platform that there is", ErrMalformed)
		}
		if _, twice := archs[m.Platform.Architecture]; twice {
			return nil, fmt.Errorf("index: %w: two manifests for %s", ErrMalformed, m.Platform.Architecture)
		}
		if archs[m.Platform.Architecture], err = m.blob(TypeManifest, MaxDocument); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	return archs, nil
}

// ParseManifest returns what a bundle for one architecture is made of.
func ParseManifest(raw []byte) (Manifest, error) {
	d, err := parse(raw, TypeManifest, Type)
	if err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w", err)
	}
	if d.Config == nil || d.Manifests != nil || len(d.Layers) != len(Parts) {
		return Manifest{}, fmt.Errorf("manifest: %w: a config and %d parts were to be in it", ErrMalformed, len(Parts))
	}
	var m Manifest
	if m.Config, err = d.Config.blob(TypeConfig, MaxConfig); err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w", err)
	}
	for i, l := range d.Layers {
		if l.Annotations[titleKey] != Parts[i] || len(l.Annotations) != 1 {
			return Manifest{}, fmt.Errorf("manifest: %w: part %d is not called %s", ErrMalformed, i+1, Parts[i])
		}
		b, err := l.blob(TypePart, MaxPart)
		if err != nil {
			return Manifest{}, fmt.Errorf("manifest: %s: %w", Parts[i], err)
		}
		m.Parts = append(m.Parts, b)
	}
	return m, nil
}

// parse reads one document strictly: what is half understood verifies nothing.
func parse(raw []byte, mediaType, artifactType string) (*document, error) {
	if len(raw) > MaxDocument {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrMalformed, len(raw), MaxDocument)
	}
	var d document
	if err := strict(raw, &d); err != nil {
		return nil, err
	}
	if d.SchemaVersion != 2 || d.MediaType != mediaType || d.ArtifactType != artifactType {
		return nil, fmt.Errorf("%w: of type %.80q, artifact %.80q", ErrMalformed, d.MediaType, d.ArtifactType)
	}
	return &d, nil
}

func strict(raw []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: more follows its end", ErrMalformed)
	}
	return nil
}

var validDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func (d *descriptor) blob(mediaType string, most int64) (Blob, error) {
	switch {
	case d.MediaType != mediaType:
		return Blob{}, fmt.Errorf("%w: %.80q, expected %s", ErrMalformed, d.MediaType, mediaType)
	case !validDigest.MatchString(d.Digest):
		return Blob{}, fmt.Errorf("%w: digest %.80q (sha256 is what is taken)", ErrMalformed, d.Digest)
	case d.Size <= 0 || d.Size > most:
		return Blob{}, fmt.Errorf("%w: %d bytes, of 1 to %d", ErrMalformed, d.Size, most)
	}
	return Blob{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, nil
}

// SignatureTag is where the signatures of what has this digest lie in its repository, as cosign has it.
func SignatureTag(digest string) string { return strings.Replace(digest, ":", "-", 1) + ".sig" }

// WriteLayout returns the index.json of an OCI layout that holds a bundle and its signatures.
func WriteLayout(index, signatures []byte) ([]byte, error) {
	b := BlobOf(TypeIndex, index).descriptor()
	b.ArtifactType = Type
	s := BlobOf(TypeManifest, signatures).descriptor()
	s.Annotations = map[string]string{refName: SignatureTag(b.Digest)}
	return json.Marshal(document{SchemaVersion: 2, MediaType: TypeIndex, Manifests: []descriptor{*b, *s}})
}

// refName is where a layout says what a part of it is called (image-spec, annotations.md).
const refName = "org.opencontainers.image.ref.name"
