package bundle

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Statement is what a signature says of an index.
type Statement struct {
	Digest string // of the index
	Name   string // what the image is to be called
	// Version only ever grows: a host takes none below the highest that it has had. The seconds since
	// 1970 will do. 1 to MaxVersion.
	Version uint64
	Created time.Time
	// Expires is when the signature is no longer taken for a new image; the zero time: never.
	Expires time.Time
}

// MaxVersion is what a JSON number holds exactly in every language.
const MaxVersion = 1<<53 - 1

// Signed is a payload and its signature, to be checked with Verify.
type Signed struct {
	Payload   []byte `json:"payload"`
	Signature []byte `json:"signature"` // ed25519, 64 bytes, over the payload as it is
}

// Bounds of what may be signed with one digest.
const (
	maxSignatures = 16
	maxPayload    = 16 << 10 // bytes; ours have 500
)

// The payload is cosign's "simple signing" (github.com/sigstore/cosign, specs/SIGNATURE_SPEC.md), and so are the names of tag, type and
// annotation: what cosign verify --key KEY --insecure-ignore-tlog reads. What is ours stands in optional.
const (
	typePayload  = "application/vnd.dev.cosign.simplesigning.v1+json"
	typeEmpty    = "application/vnd.oci.empty.v1+json"
	signatureKey = "dev.cosignproject.cosign/signature"
	payloadType  = "cosign container image signature"
	identity     = "carrel/"
)

// Empty is the config of the manifest that holds signatures (image-spec, manifest.md, "Guidance for an Empty Descriptor").
var Empty = []byte("{}")

type payload struct {
	Critical struct {
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			Digest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional struct {
		Version string `json:"carrel.version"` // decimal
		Created string `json:"carrel.created"` // RFC 3339, UTC
		Expires string `json:"carrel.expires,omitempty"`
	} `json:"optional"`
}

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

// Sign says s with a key.
func Sign(key ed25519.PrivateKey, s Statement) (Signed, error) {
	var p payload
	p.Critical.Identity.Reference = identity + s.Name
	p.Critical.Image.Digest = s.Digest
	p.Critical.Type = payloadType
	p.Optional.Version = strconv.FormatUint(s.Version, 10)
	p.Optional.Created = s.Created.UTC().Format(time.RFC3339)
	if !s.Expires.IsZero() {
		p.Optional.Expires = s.Expires.UTC().Format(time.RFC3339)
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return Signed{}, err
	}
	if _, err := parsePayload(raw); err != nil {
		return Signed{}, err
	}
	return Signed{Payload: raw, Signature: ed25519.Sign(key, raw)}, nil
}

func parsePayload(raw []byte) (Statement, error) {
	var p payload
	if err := strict(raw, &p); err != nil {
		return Statement{}, err
	}
	s := Statement{Digest: p.Critical.Image.Digest}
	var ours bool
	if s.Name, ours = strings.CutPrefix(p.Critical.Identity.Reference, identity); !ours || !validName.MatchString(s.Name) {
		return Statement{}, fmt.Errorf("%w: signed for %.80q, which is no image of ours", ErrMalformed, p.Critical.Identity.Reference)
	}
	if p.Critical.Type != payloadType || !validDigest.MatchString(s.Digest) {
		return Statement{}, fmt.Errorf("%w: a signature of type %.80q over %.80q", ErrMalformed, p.Critical.Type, s.Digest)
	}
	var err error
	if s.Version, err = strconv.ParseUint(p.Optional.Version, 10, 64); err != nil || s.Version == 0 || s.Version > MaxVersion {
		return Statement{}, fmt.Errorf("%w: version %.40q, of 1 to %d", ErrMalformed, p.Optional.Version, uint64(MaxVersion))
	}
	if s.Created, err = parseTime(p.Optional.Created); err != nil {
		return Statement{}, err
	}
	if p.Optional.Expires != "" {
		if s.Expires, err = parseTime(p.Optional.Expires); err != nil {
			return Statement{}, err
		}
	}
	return s, nil
}

func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || t.Year() < 1970 || t.Year() > 9999 {
		return time.Time{}, fmt.Errorf("%w: %.40q is not a time", ErrMalformed, s)
	}
	return t.UTC(), nil
}

// Proof is a signature that counts: what it says, and the key that says it.
type Proof struct {
	Statement
	Key    Key
	Signed Signed
}

// Verify returns the signature that counts of those over the index with that digest: by a trusted key, for an image that
// this key may sign. Of several it is one that has not expired, and then the one of the highest version; whether the one that is
// left has expired is the caller's to judge. A payload is not looked at before its signature is good. Errors wrap ErrUntrusted.
func Verify(all []Signed, keys []Key, digest string, now time.Time) (Proof, error) {
	if len(keys) == 0 {
		return Proof{}, fmt.Errorf("%w: no key is trusted on this machine (carrel image trust KEYFILE --for NAME, with the public key of whoever you want images from)", ErrUntrusted)
	}
	if len(all) == 0 {
		return Proof{}, fmt.Errorf("%w: it is not signed at all (ask for one that is)", ErrUntrusted)
	}
	var why error
	var best *Proof
	for _, s := range all {
		for _, k := range keys {
			if !ed25519.Verify(k.Public, s.Payload, s.Signature) {
				continue
			}
			st, err := parsePayload(s.Payload)
			switch {
			case err != nil:
				why = fmt.Errorf("%w: key %s (%s): %w", ErrUntrusted, k.Name, k.ID(), err)
			case st.Digest != digest:
				why = fmt.Errorf("%w: key %s (%s) has signed %s, and not %s", ErrUntrusted, k.Name, k.ID(), st.Digest, digest)
			case !k.For.Has(st.Name):
				why = k.mayNot(st.Name)
			default:
				if p := (&Proof{st, k, s}); best == nil || p.before(best, now) {
					best = p
				}
			}
		}
	}
	if best != nil {
		return *best, nil
	}
	if why == nil {
		why = fmt.Errorf("%w: none of %d signatures is by one of the %d trusted keys (carrel image key ls shows these; carrel image trust KEYFILE --for NAME adds one)", ErrUntrusted, len(all), len(keys))
	}
	return Proof{}, why
}

// before says whether p counts rather than q.
func (p *Proof) before(q *Proof, now time.Time) bool {
	if good, other := p.Expired(now) == nil, q.Expired(now) == nil; good != other {
		return good
	}
	return p.Version > q.Version
}

// Expired says, for a bundle that comes to this host, that its signature is no longer taken.
func (s Statement) Expired(now time.Time) error {
	if s.Expires.IsZero() || now.Before(s.Expires) {
		return nil
	}
	return fmt.Errorf("%w: its signature was good until %s, and this machine's clock says %s (ask for a newer one, or set the clock)",
		ErrUntrusted, s.Expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}

// WriteSignatures returns the manifest that holds signatures. Each payload is a blob of its own, and Empty another.
func WriteSignatures(all []Signed) ([]byte, error) {
	d := document{SchemaVersion: 2, MediaType: TypeManifest, Config: BlobOf(typeEmpty, Empty).descriptor()}
	for _, s := range all {
		l := BlobOf(typePayload, s.Payload).descriptor()
		l.Annotations = map[string]string{signatureKey: base64.StdEncoding.EncodeToString(s.Signature)}
		d.Layers = append(d.Layers, *l)
	}
	return json.Marshal(d)
}

// ParseSignatures returns the signatures that a manifest holds, whose payloads read fetches: it must check
// size and digest. cosign's own manifests are read, too.
func ParseSignatures(raw []byte, read func(Blob) ([]byte, error)) ([]Signed, error) {
	if len(raw) > MaxDocument {
		return nil, fmt.Errorf("signatures: %w: %d bytes, more than %d", ErrMalformed, len(raw), MaxDocument)
	}
	var d document // not strict: cosign writes more than we do, and nothing here is believed
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, fmt.Errorf("signatures: %w: %w", ErrMalformed, err)
	}
	if d.SchemaVersion != 2 || d.Manifests != nil || len(d.Layers) > maxSignatures {
		return nil, fmt.Errorf("signatures: %w: %d of them, at most %d are read", ErrMalformed, len(d.Layers), maxSignatures)
	}
	var all []Signed
	for _, l := range d.Layers {
		if l.MediaType != typePayload {
			continue
		}
		b, err := l.blob(typePayload, maxPayload)
		if err != nil {
			return nil, fmt.Errorf("signatures: %w", err)
		}
		sig, err := base64.StdEncoding.DecodeString(l.Annotations[signatureKey])
		if err != nil || len(sig) != ed25519.SignatureSize {
			continue // another kind of key's
		}
		p, err := read(b)
		if err != nil {
			return nil, fmt.Errorf("signatures: %w", err)
		}
		if DigestOf(p) != b.Digest {
			return nil, fmt.Errorf("signatures: %w: %s came as %s", ErrMalformed, b.Digest, DigestOf(p))
		}
		all = append(all, Signed{Payload: bytes.Clone(p), Signature: sig})
	}
	return all, nil
}

// errUnreadable is a memory that cannot be understood.
var errUnreadable = errors.New("it cannot be read")
