package images

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"
)

// manifestVersion is the only version that this program reads and writes.
const manifestVersion = 1

// Bounds of a manifest. The default image's is about 20 KiB and names some 230 packages.
const (
	maxManifest = 1 << 20
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
	if m.Version != manifestVersion {
		return fmt.Errorf("version %d, this program reads %d", m.Version, manifestVersion)
	}
	if err := CheckName(m.Name); err != nil {
		return err
	}
	if t, err := time.Parse(time.RFC3339, m.Created); err != nil || t.Year() < 1970 || t.Year() > 9999 {
		return fmt.Errorf("created: not a time: %.40q", m.Created)
	}
	if m.Arch != "amd64" && m.Arch != "arm64" {
		return fmt.Errorf("arch: %.40q", m.Arch)
	}
	if err := checkText("kernelVersion", m.KernelVersion); err != nil {
		return err
	}
	if m.RootUncompressed < 0 || m.RootUncompressed > maxPart {
		return fmt.Errorf("rootUncompressed: %d", m.RootUncompressed)
	}
	if len(m.Parts) != 3 {
		return fmt.Errorf("%d parts, expected 3", len(m.Parts))
	}
	for i, name := range []string{Kernel, Initrd, Root} {
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
	for _, h := range []string{m.Inputs.Kernel, m.Inputs.Root, m.Inputs.Agent} {
		if !isHash(h) {
			return fmt.Errorf("inputs: %.80q is not a hash", h)
		}
	}
	if err := checkItems("tools", m.Tools, maxTools); err != nil {
		return err
	}
	return checkItems("packages", m.Packages, maxPackages)
}

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
