package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/images/bundle"
)

// Why a bundle is not taken, see package bundle.
var (
	ErrUntrusted  = bundle.ErrUntrusted
	ErrRolledBack = bundle.ErrRolledBack
)

// Bundle says where an image comes from that a bundle brought.
type Bundle struct {
	Digest  string // sha256:... of the bundle's index
	Version uint64
	Created time.Time
	Expires time.Time // of the signature; zero: never
	// Key names the key that counts, and KeyID tells it from others; both are empty in a store that looks at none.
	Key, KeyID string
	// From is the reference that was pulled, or the absolute path that was imported.
	From     string
	Imported bool

	signed bundle.Signed
}

// bundleRecord is bundle.json, beside the parts: the whole chain from the signature to the manifest, so that it
// can be verified without asking anybody.
type bundleRecord struct {
	From     string        `json:"from"`
	Imported bool          `json:"imported,omitempty"`
	Signed   bundle.Signed `json:"signed"`
	Index    []byte        `json:"index"`
	Manifest []byte        `json:"manifest"`
}

const (
	bundleName = "bundle.json"
	maxRecord  = 2 << 20 // bytes: two documents and a payload, in base64, and a path
)

// WithBundles returns a store that takes bundles: trust is the folder of the keys that must have signed
// them, seen the one in which it remembers their versions. Without, images that a bundle brought are taken as they are.
func (s *Store) WithBundles(trust, seen string) *Store {
	out := *s
	out.trust, out.seen = trust, seen
	return &out
}

// loadBundle reads bundle.json and follows it from the index, whose digest is signed, to the manifest.json
// beside it, whose parts are its parts. The signature is trusted's to judge.
func loadBundle(dir string, m *Manifest, text []byte) (*Bundle, error) {
	raw, err := readSmall(filepath.Join(dir, bundleName), maxRecord)
	if err != nil {
		return nil, err
	}
	var r bundleRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", bundleName, err)
	}
	b := &Bundle{Digest: bundle.DigestOf(r.Index), From: r.From, Imported: r.Imported, signed: r.Signed}
	if err := follow(r.Index, r.Manifest, m.Arch, text, m); err != nil {
		return nil, fmt.Errorf("%s: %w", bundleName, err)
	}
	return b, nil
}

// follow checks that an index leads, by way of a manifest, to an image's manifest.json and its parts.
func follow(index, manifest []byte, arch string, text []byte, m *Manifest) error {
	archs, err := bundle.ParseIndex(index)
	if err != nil {
		return err
	}
	if at, ok := archs[arch]; !ok || at != bundle.BlobOf(bundle.TypeManifest, manifest) {
		return fmt.Errorf("it does not lead to the manifest for %s", arch)
	}
	bm, err := bundle.ParseManifest(manifest)
	if err != nil {
		return err
	}
	if bm.Config != bundle.BlobOf(bundle.TypeConfig, text) {
		sum := sha256.Sum256(text)
		return fmt.Errorf("%s: sha256 %s, expected %s", manifestName, hex.EncodeToString(sum[:]), strings.TrimPrefix(bm.Config.Digest, digestPrefix))
	}
	for i, p := range m.Parts {
		if bm.Parts[i] != (bundle.Blob{MediaType: bundle.TypePart, Digest: digestPrefix + p.SHA256, Size: p.Size}) {
			return fmt.Errorf("part %s: the bundle has another one than its image names", p.Name)
		}
	}
	return nil
}

// trusted refuses an image that a bundle brought and that no trusted key has signed, or none any more. That
// its signature has expired meanwhile is no reason: whoever is offline goes on working.
func (s *Store) trusted(img *Image) error {
	b := img.Bundle
	if b == nil || s.trust == "" {
		return nil
	}
	keys, err := bundle.LoadKeys(s.trust)
	if err != nil {
		return err
	}
	st, err := bundle.Verify([]bundle.Signed{b.signed}, keys, b.Digest, time.Now())
	if err == nil && st.Name != img.Name {
		err = fmt.Errorf("%w: it was signed as %s (carrel image pull brings it anew)", ErrUntrusted, st.Name)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", img.Name, err)
	}
	b.Version, b.Created, b.Expires = st.Version, st.Created, st.Expires
	b.Key, b.KeyID = st.Key.Name, st.Key.ID()
	return nil
}

// again is the command that brings an image in dir again that a bundle has brought, or "": from where bundle.json
// says, and if that is damaged, from where the last one of that name came.
func (s *Store) again(dir, id string) string {
	if CheckName(id) != nil {
		return ""
	}
	mem, err := bundle.Recall(s.seen, id)
	if s.seen == "" || err != nil {
		mem = bundle.Memory{}
	}
	var r bundleRecord
	raw, err := readSmall(filepath.Join(dir, bundleName), maxRecord)
	if errors.Is(err, os.ErrNotExist) && !isBundled(dir) {
		return "" // it was built here since
	}
	digest := ""
	if err == nil && json.Unmarshal(raw, &r) == nil {
		digest = bundle.DigestOf(r.Index)
	}
	if r.From == "" || !bytes.Contains(r.Signed.Payload, []byte(digest)) { // what is damaged leads nowhere
		r.From, r.Imported, digest = mem.From, mem.Imported, mem.Digest
	}
	if r.From == "" || len(r.From) > maxPath || strings.ContainsFunc(r.From, func(c rune) bool { return !strconv.IsPrint(c) }) {
		return ""
	}
	words := []string{"carrel image import", shellWord(r.From)}
	if !r.Imported {
		ref, err := ParseReference(r.From)
		if err != nil {
			return ""
		}
		words = []string{"carrel image pull", ref.Pinned(digest).key()}
	}
	// After a deliberate step back the one that is here is older than what was seen.
	if mem.Version > 0 && mem.Digest != digest {
		words = slices.Insert(words, 1, "--allow-rollback")
	}
	return strings.Join(words, " ")
}

// maxPath bounds a path that is printed in a command: Linux's PATH_MAX.
const maxPath = 4096

// isBundled says whether an image's manifest is one that a bundle brought.
func isBundled(dir string) bool {
	b, err := readSmall(filepath.Join(dir, manifestName), maxManifest)
	if err != nil {
		return true // who knows; what was seen of it last says more than a guess
	}
	m, err := parseManifest(b)
	return err != nil || m.Version == bundledVersion
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=,-]+$`)

// shellWord writes a path as a shell reads it as one word.
func shellWord(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func (s *Store) previous(name string) string { return filepath.Join(s.cache, "previous", name) }

// Previous returns the image that Restore would bring back, or an error that wraps ErrNotFound.
func (s *Store) Previous(name string) (*Image, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	img, err := s.loadFrom(s.previous(name), name)
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("image %s: the one before: %w: none is kept (carrel image ls shows those that there are)", name, ErrNotFound)
	}
	if err == nil {
		err = s.trusted(img)
	}
	return img, err
}
