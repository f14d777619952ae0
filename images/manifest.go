package images

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/images/oci"
)

// Versions of a manifest that this program reads and writes: of an image that was built here, of
// one that was pulled or imported, and of one that a bundle brought, which says the same as a built one's.
const (
	manifestVersion = 1
	pulledVersion   = 2
	bundledVersion  = 3
)

// Bounds of a manifest. The default image's is about 20 KiB and names some 230 packages; a pulled
// one's is mostly its variables, of which package oci takes 1 MiB.
const (
	maxManifest = 4 << 20
	maxPackages = 10000
	maxTools    = 100
	maxPart     = int64(64) << 30 // bytes
	maxText     = 200             // bytes of a version or a package's name
)

// Manifest says what an image is made of. It is written once, with the image.
type Manifest struct {
	Version       int    `json:"version"`
	Name          string `json:"name"`
	Created       string `json:"created"` // RFC 3339, UTC
	Arch          string `json:"arch"`    // as GOARCH
	KernelVersion string `json:"kernelVersion"`
	Parts         []Part `json:"parts"`
	// RootUncompressed is the sum of the files' sizes in the root file system, in bytes.
	RootUncompressed int64  `json:"rootUncompressed"`
	Tools            []Item `json:"tools"`    // what people ask for first: git, python3, node, go …
	Packages         []Item `json:"packages"` // every Debian package, by name
	Inputs           Inputs `json:"inputs"`
	// Origin is where a pulled image comes from, nil in a built one. A pulled image has a root and no
	// other part, is named by idOf, and leaves the fields that only a built one has empty.
	Origin *Origin `json:"origin,omitempty"`
}

// Origin says what a pulled or imported image is.
type Origin struct {
	Digest   string     `json:"digest"`   // sha256:... of the image's manifest
	Platform string     `json:"platform"` // linux/amd64
	Config   oci.Config `json:"config"`   // what it says of its tasks
	Layers   []Layer    `json:"layers"`
}

// Layer is one blob that the root was made of.
type Layer struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"` // bytes, as downloaded
}

// Part is one file of an image.
type Part struct {
	Name       string `json:"name"`
	SHA256     string `json:"sha256"` // lower-case hex
	Size       int64  `json:"size"`   // bytes, as stored
	Compressed bool   `json:"compressed"`
}

// Item is a package or a tool with its version.
type Item struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Inputs are the hashes of what the image was built from: the same inputs need no new build.
type Inputs struct {
	Kernel string `json:"kernel"`
	Root   string `json:"root"`
	Agent  string `json:"agent"`
	Initrd int    `json:"initrd"` // initrdVersion of the program that wrote it
}

// Part returns the part of that name, or the zero Part.
func (m *Manifest) Part(name string) Part {
	for _, p := range m.Parts {
		if p.Name == name {
			return p
		}
	}
	return Part{}
}

// printable is what versions and package names are made of; an image may come from elsewhere,
// and these texts reach terminals.
var printable = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 .+:~_@()/-]*$`)

// parseManifest reads a manifest strictly: an unknown key, a missing part or a value out of
// bounds is an error, because a manifest that is half understood verifies nothing.
func parseManifest(b []byte) (*Manifest, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("manifest of more than %d bytes", maxManifest)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var m Manifest
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("manifest: more follows its end")
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return &m, nil
}

func (m *Manifest) check() error {
	want := []string{Kernel, Initrd, Root}
	switch {
	case (m.Version == manifestVersion || m.Version == bundledVersion) && m.Origin == nil:
		if err := errors.Join(CheckName(m.Name), checkText("kernelVersion", m.KernelVersion)); err != nil {
			return err
		}
		for _, h := range []string{m.Inputs.Kernel, m.Inputs.Root, m.Inputs.Agent} {
			if !isHash(h) {
				return fmt.Errorf("inputs: %.80q is not a hash", h)
			}
		}
	case m.Version == pulledVersion && m.Origin != nil:
		want = []string{Root}
		if err := m.Origin.check(m.Name, m.Arch); err != nil {
			return fmt.Errorf("origin: %w", err)
		}
	default:
		return fmt.Errorf("version %d, this program reads %d and %d, and %d with an origin", m.Version, manifestVersion, bundledVersion, pulledVersion)
	}
	if t, err := time.Parse(time.RFC3339, m.Created); err != nil || t.Year() < 1970 || t.Year() > 9999 {
		return fmt.Errorf("created: not a time: %.40q", m.Created)
	}
	if m.Arch != "amd64" && m.Arch != "arm64" {
		return fmt.Errorf("arch: %.40q", m.Arch)
	}
	if m.RootUncompressed < 0 || m.RootUncompressed > maxPart {
		return fmt.Errorf("rootUncompressed: %d", m.RootUncompressed)
	}
	if len(m.Parts) != len(want) {
		return fmt.Errorf("%d parts, expected %d", len(m.Parts), len(want))
	}
	for i, name := range want {
		p := m.Parts[i]
		if p.Name != name {
			return fmt.Errorf("part %d: %.40q, expected %s", i, p.Name, name)
		}
		if !isHash(p.SHA256) {
			return fmt.Errorf("part %s: sha256 %.80q", name, p.SHA256)
		}
		if p.Size <= 0 || p.Size > maxPart {
			return fmt.Errorf("part %s: size %d", name, p.Size)
		}
	}
	if err := checkItems("tools", m.Tools, maxTools); err != nil {
		return err
	}
	return checkItems("packages", m.Packages, maxPackages)
}

// maxLayers is what package oci takes, too.
const maxLayers = 512

func (o *Origin) check(name, arch string) error {
	if id, err := idOf(o.Digest); err != nil || id != name {
		return fmt.Errorf("digest %.80q of an image that is named %.80q", o.Digest, name)
	}
	if o.Platform != "linux/"+arch && !strings.HasPrefix(o.Platform, "linux/"+arch+"/") {
		return fmt.Errorf("platform %.40q for %s", o.Platform, arch)
	}
	if err := checkText("platform", o.Platform); err != nil {
		return err
	}
	if len(o.Layers) > maxLayers {
		return fmt.Errorf("%d layers, more than %d", len(o.Layers), maxLayers)
	}
	for _, l := range o.Layers {
		if _, err := idOf(l.Digest); err != nil || l.Size < 0 || l.Size > maxPart {
			return fmt.Errorf("layer %.80q of %d bytes", l.Digest, l.Size)
		}
	}
	c := o.Config
	for _, list := range [][]string{c.Entrypoint, c.Cmd, c.Env, {c.User, c.WorkingDir}} {
		if len(list) > maxStrings {
			return fmt.Errorf("config: %d strings, more than %d", len(list), maxStrings)
		}
		for _, v := range list {
			if len(v) > maxString || strings.ContainsRune(v, 0) {
				return fmt.Errorf("config: %.40q", v)
			}
		}
	}
	return nil
}

// Bounds of a config, as package oci has them.
const (
	maxStrings = 4096
	maxString  = 128 << 10 // bytes
)

func checkItems(field string, items []Item, most int) error {
	if len(items) > most {
		return fmt.Errorf("%s: %d, more than %d", field, len(items), most)
	}
	for _, it := range items {
		if err := checkText(field, it.Name); err != nil {
			return err
		}
		if err := checkText(field, it.Version); err != nil {
			return err
		}
	}
	return nil
}

func checkText(field, s string) error {
	if len(s) > maxText || !printable.MatchString(s) {
		return fmt.Errorf("%s: %.40q is not a name or a version", field, s)
	}
	return nil
}

func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && s == hex.EncodeToString(b)
}
