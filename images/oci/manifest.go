package oci

import (
	"fmt"
	"slices"
	"strings"
)

// descriptor names a blob (image-spec, descriptor.md). The fields that are left out are not needed:
// urls would have a manifest tell the host where to connect, and data is the blob once more.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Platform     *platform         `json:"platform,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// The media types that are taken: OCI's, and Docker's of schema 2.
const (
	typeManifest       = "application/vnd.oci.image.manifest.v1+json"
	typeIndex          = "application/vnd.oci.image.index.v1+json"
	typeConfig         = "application/vnd.oci.image.config.v1+json"
	typeLayer          = "application/vnd.oci.image.layer.v1.tar"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	typeDockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

var (
	manifestTypes = []string{typeManifest, typeDockerManifest}
	indexTypes    = []string{typeIndex, typeDockerIndex}
	layerTypes    = []string{
		typeLayer, typeLayer + "+gzip", typeLayer + "+zstd",
		typeDockerLayer, typeDockerLayer + ".gzip", typeDockerLayer + ".zstd",
	}
)

// document is a manifest or an index: which of the two is said by its fields, never by a header alone.
type document struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	ArtifactType  string       `json:"artifactType"`
	Manifests     []descriptor `json:"manifests"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

func (d *document) isIndex() bool { return d.Manifests != nil }

// parseDocument checks what both kinds have. A document that could be read as either is refused
// (CVE-2021-41190), and so are Docker's manifests of schema 1, which have no digests of configs.
func parseDocument(raw []byte) (*document, error) {
	if len(raw) > maxManifest {
		return nil, fmt.Errorf("%w: a manifest of %d bytes", ErrTooBig, len(raw))
	}
	var d document
	if err := decode(raw, &d); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	index, image := d.Manifests != nil, d.Layers != nil || d.Config.MediaType != "" || d.Config.Digest != ""
	switch {
	case d.SchemaVersion == 1:
		return nil, fmt.Errorf("a manifest of schema 1: %w: push the image again with a tool of this decade", ErrUnsupported)
	case d.SchemaVersion != 2:
		return nil, fmt.Errorf("%w: manifest: schemaVersion %d", ErrMalformed, d.SchemaVersion)
	case index == image:
		return nil, fmt.Errorf("%w: manifest: both or neither of an index and an image", ErrMalformed)
	case index && d.MediaType != "" && !slices.Contains(indexTypes, d.MediaType),
		image && d.MediaType != "" && !slices.Contains(manifestTypes, d.MediaType):
		return nil, fmt.Errorf("manifest: media type %q: %w", clip(d.MediaType), ErrUnsupported)
	case len(d.Manifests) > maxDescs:
		return nil, fmt.Errorf("%w: an index of %d manifests", ErrTooBig, len(d.Manifests))
	case len(d.Layers) > maxLayers:
		return nil, fmt.Errorf("%w: %d layers", ErrTooBig, len(d.Layers))
	}
	return &d, nil
}

// parseManifest returns an image's manifest whose digests, sizes and types are good.
func parseManifest(raw []byte) (*document, error) {
	d, err := parseDocument(raw)
	if err != nil {
		return nil, err
	}
	if d.isIndex() {
		return nil, fmt.Errorf("%w: an index where an image was to be", ErrMalformed)
	}
	if t := d.Config.MediaType; !isConfig(t) {
		if d.ArtifactType != "" {
			return nil, &ArtifactError{d.ArtifactType}
		}
		return nil, fmt.Errorf("a config of type %q: %w: it is no image that runs", clip(t), ErrUnsupported)
	}
	if err := d.Config.check(maxConfig); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if len(d.Layers) == 0 {
		return nil, fmt.Errorf("%w: it has no layers, so nothing to run", ErrMalformed)
	}
	for i, l := range d.Layers {
		if !slices.Contains(layerTypes, l.MediaType) {
			return nil, fmt.Errorf("layer %d of type %q: %w", i+1, clip(l.MediaType), ErrUnsupported)
		}
		if err := l.check(maxBlob); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	return d, nil
}

// isConfig says whether a type is that of the config of an image that runs. Some tools write it as an image's artifactType, too.
func isConfig(t string) bool { return t == typeConfig || t == typeDockerConfig }

func (d descriptor) check(limit int64) error {
	if _, err := checkDigest(d.Digest); err != nil {
		return err
	}
	if d.Size <= 0 {
		return fmt.Errorf("%w: %d bytes", ErrMalformed, d.Size)
	}
	if d.Size > limit {
		return fmt.Errorf("%w: %d bytes", ErrTooBig, d.Size)
	}
	return nil
}

// choose returns the manifest of an index that is for p. The first that fits counts; the order of an
// index is its author's. One without a platform, as some layouts have, counts if it is alone.
func choose(d *document, p Platform) (descriptor, error) {
	var found []string
	var artifact string
	var bare []descriptor
	for _, m := range d.Manifests {
		if !isConfig(m.ArtifactType) && m.ArtifactType != "" {
			artifact = m.ArtifactType
			continue
		}
		if !slices.Contains(manifestTypes, m.MediaType) && !slices.Contains(indexTypes, m.MediaType) {
			continue // an attestation, a signature
		}
		if m.Platform == nil {
			bare = append(bare, m)
			continue
		}
		has := Platform{m.Platform.OS, m.Platform.Architecture, m.Platform.Variant}
		if fits(has, p) {
			return m, m.check(maxManifest)
		}
		if len(found) < 20 {
			found = append(found, clip(has.String()))
		}
	}
	if artifact != "" && len(found) == 0 { // what has no platform is its signature, then
		return descriptor{}, &ArtifactError{artifact}
	}
	if len(bare) == 1 && len(found) == 0 {
		return bare[0], bare[0].check(maxManifest)
	}
	return descriptor{}, fmt.Errorf("for %s: %w: the index has images for [%s] and %d for no platform", p, ErrNotFound, strings.Join(found, ", "), len(bare))
}

// fits says whether an image for has runs where want is asked for. A variant that nobody asks for is
// not looked at, and arm64 is v8 (image-spec, image-index.md).
func fits(has, want Platform) bool {
	variant := func(p Platform) string {
		if p.Arch == "arm64" && p.Variant == "v8" {
			return ""
		}
		return p.Variant
	}
	return has.OS == want.OS && has.Arch == want.Arch && (variant(want) == "" || variant(has) == variant(want))
}

// parseConfig returns what a config says, checked, and the digests of its layers' tars.
func parseConfig(raw []byte, layers int) (Config, Platform, []string, error) {
	var c struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
		Config       struct {
			Entrypoint, Cmd, Env []string
			User, WorkingDir     string
			StopSignal           string
			Labels               map[string]string
		} `json:"config"`
		RootFS struct {
			Type    string   `json:"type"`
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	fail := func(err error) (Config, Platform, []string, error) { return Config{}, Platform{}, nil, err }
	if len(raw) > maxConfig {
		return fail(fmt.Errorf("%w: a config of %d bytes", ErrTooBig, len(raw)))
	}
	if err := decode(raw, &c); err != nil {
		return fail(fmt.Errorf("config: %w", err))
	}
	if len(c.RootFS.DiffIDs) != layers {
		return fail(fmt.Errorf("%w: config: %d diff_ids for %d layers", ErrMalformed, len(c.RootFS.DiffIDs), layers))
	}
	for _, d := range c.RootFS.DiffIDs {
		if _, err := checkDigest(d); err != nil {
			return fail(fmt.Errorf("config: diff_ids: %w", err))
		}
	}
	p := Platform{c.OS, c.Architecture, c.Variant}
	cfg := Config(c.Config)
	if err := cfg.check(); err != nil {
		return fail(err)
	}
	if len(p.String()) > maxName || p.OS == "" || p.Arch == "" || strings.IndexByte(p.String(), 0) >= 0 {
		return fail(fmt.Errorf("%w: config: platform %q", ErrMalformed, clip(p.String())))
	}
	return cfg, p, c.RootFS.DiffIDs, nil
}

// check bounds every string, and all of them together.
func (c *Config) check() error {
	all := slices.Concat(c.Entrypoint, c.Cmd, c.Env, []string{c.User, c.WorkingDir, c.StopSignal})
	for k, v := range c.Labels {
		all = append(all, k, v)
	}
	if len(all) > maxStrings {
		return fmt.Errorf("%w: config: %d strings", ErrTooBig, len(all))
	}
	sum := 0
	for _, s := range all {
		if sum += len(s); len(s) > maxString || sum > maxConfigSum {
			return fmt.Errorf("%w: config: a string of %d bytes, %d so far", ErrTooBig, len(s), sum)
		}
		if strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("%w: config: NUL in %q", ErrMalformed, clip(s))
		}
	}
	if len(c.User) > maxName || len(c.WorkingDir) > maxPath || len(c.StopSignal) > maxName {
		return fmt.Errorf("%w: config: User, WorkingDir or StopSignal of %d, %d, %d bytes", ErrMalformed, len(c.User), len(c.WorkingDir), len(c.StopSignal))
	}
	for _, e := range c.Env {
		if strings.IndexByte(e, '=') <= 0 {
			return fmt.Errorf("%w: config: Env %q is not KEY=VALUE", ErrMalformed, clip(e))
		}
	}
	return nil
}
