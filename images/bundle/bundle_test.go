package bundle

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var someDigest = DigestOf([]byte("an index"))

func someManifest() Manifest {
	m := Manifest{Config: BlobOf(TypeConfig, []byte("config"))}
	for _, p := range Parts {
		m.Parts = append(m.Parts, BlobOf(TypePart, []byte(p)))
	}
	return m
}

// pair returns a key to sign with and the same as a trusted one.
func pair(t testing.TB, name string) (private []byte, k Key) {
	t.Helper()
	private, public, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ParsePublic(public)
	if err != nil {
		t.Fatal(err)
	}
	return private, Key{Name: name, Public: pub, For: Names{"*"}}
}

func sign(t testing.TB, private []byte, s Statement) Signed {
	t.Helper()
	k, err := ParsePrivate(private)
	if err != nil {
		t.Fatal(err)
	}
	out, err := Sign(k, s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func said(version uint64) Statement {
	return Statement{Digest: someDigest, Name: "default", Version: version, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

// now is when tests verify; said was an hour before.
var now = said(1).Created.Add(time.Hour)

// I11: what is signed is what was signed, by a key that is trusted now; the first case is the control.
func TestVerify(t *testing.T) {
	mine, key := pair(t, "mine")
	other, otherKey := pair(t, "other")
	good := sign(t, mine, said(7))
	p, err := Verify([]Signed{good}, []Key{otherKey, key}, someDigest, now)
	if err != nil || p.Statement != said(7) || p.Key.Name != "mine" {
		t.Fatalf("%+v, %v", p, err)
	}
	if p, err := Verify([]Signed{sign(t, other, said(7)), good}, []Key{key}, someDigest, now); err != nil || p.Key.Name != "mine" {
		t.Errorf("beside a stranger's signature: %v", err)
	}
	elsewhere := said(7)
	elsewhere.Digest = DigestOf([]byte("another index"))
	for name, c := range map[string]struct {
		signed []Signed
		keys   []Key
		want   string
	}{
		"no key is trusted":      {[]Signed{good}, nil, "carrel image trust KEYFILE --for NAME"},
		"not signed":             {nil, []Key{key}, "not signed at all"},
		"a key that was removed": {[]Signed{good}, []Key{otherKey}, "none of 1 signatures"},
		"a stranger's":           {[]Signed{sign(t, other, said(7))}, []Key{key}, "none of 1 signatures"},
		"over another index":     {[]Signed{sign(t, mine, elsewhere)}, []Key{key}, "has signed sha256"},
		"an empty signature":     {[]Signed{{Payload: good.Payload}}, []Key{key}, "none of 1"},
		"half a signature":       {[]Signed{{Payload: good.Payload, Signature: good.Signature[:32]}}, []Key{key}, "none of 1"},
	} {
		if _, err := Verify(c.signed, c.keys, someDigest, now); !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range good.Payload {
		bad := Signed{Payload: bytes.Clone(good.Payload), Signature: good.Signature}
		bad.Payload[i] ^= 1
		if _, err := Verify([]Signed{bad}, []Key{key}, someDigest, now); !errors.Is(err, ErrUntrusted) {
			t.Fatalf("byte %d of the payload altered: %v", i, err)
		}
	}
	for i := range good.Signature {
		bad := Signed{Payload: good.Payload, Signature: bytes.Clone(good.Signature)}
		bad.Signature[i] ^= 0x10
		if _, err := Verify([]Signed{bad}, []Key{key}, someDigest, now); !errors.Is(err, ErrUntrusted) {
			t.Fatalf("byte %d of the signature altered: %v", i, err)
		}
	}
}

func TestExpired(t *testing.T) {
	s := said(7)
	if err := s.Expired(now); err != nil {
		t.Errorf("without an end: %v", err)
	}
	s.Expires = now.Add(time.Second)
	if err := s.Expired(now); err != nil {
		t.Errorf("a second before it: %v", err)
	}
	if err := s.Expired(s.Expires); !errors.Is(err, ErrUntrusted) {
		t.Errorf("at its end: %v", err)
	}
}

// What a trusted key may say of an image is bounded, too: a mistake of its owner's is not taken for something.
func TestPayload(t *testing.T) {
	mine, _ := pair(t, "mine")
	raw := string(sign(t, mine, said(7)).Payload)
	if _, err := parsePayload([]byte(raw)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"another name":     {"carrel/default", "carrel/../default"},
		"no name of ours":  {"carrel/default", "docker.io/library/python"},
		"a long name":      {"carrel/default", "carrel/" + strings.Repeat("a", 100)},
		"another type":     {payloadType, "atomic container signature"},
		"another digest":   {someDigest, "sha512:00"},
		"no version":       {`"carrel.version":"7"`, `"carrel.version":""`},
		"version 0":        {`"carrel.version":"7"`, `"carrel.version":"0"`},
		"a negative one":   {`"carrel.version":"7"`, `"carrel.version":"-7"`},
		"one beyond":       {`"carrel.version":"7"`, `"carrel.version":"9007199254740993"`},
		"one that wraps":   {`"carrel.version":"7"`, `"carrel.version":"18446744073709551623"`},
		"a time of no day": {"2026-01-02", "2026-13-02"},
		"an unknown word":  {`"optional":{`, `"optional":{"carrel.widens":"yes",`},
		"more after it":    {`}}`, `}}{}`},
	} {
		if !strings.Contains(raw, c[0]) {
			t.Fatalf("%s: %q is not in %s", name, c[0], raw)
		}
		if _, err := parsePayload([]byte(strings.Replace(raw, c[0], c[1], 1))); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	long := said(7)
	long.Name = "../../etc"
	k, err := ParsePrivate(mine)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Sign(k, long); !errors.Is(err, ErrMalformed) {
		t.Errorf("signing what nobody takes: %v", err)
	}
}

// Documents are refused for each thing that they may not say; unchanged they are taken.
func TestDocuments(t *testing.T) {
	doc, err := WriteManifest(someManifest())
	if err != nil {
		t.Fatal(err)
	}
	index, err := WriteIndex(map[string]Blob{"amd64": BlobOf(TypeManifest, doc), "arm64": BlobOf(TypeManifest, []byte("x"))})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := ParseManifest(doc); err != nil || m.Config != someManifest().Config || len(m.Parts) != 3 {
		t.Fatalf("%+v, %v", m, err)
	}
	if archs, err := ParseIndex(index); err != nil || len(archs) != 2 || archs["amd64"] != BlobOf(TypeManifest, doc) {
		t.Fatalf("%+v, %v", archs, err)
	}
	part := someManifest().Parts[2]
	manifest := func(b []byte) error { _, err := ParseManifest(b); return err }
	indexed := func(b []byte) error { _, err := ParseIndex(b); return err }
	for name, c := range map[string]struct {
		parse    func([]byte) error
		from     []byte
		old, new string
	}{
		"manifest: nothing":          {manifest, doc, string(doc), ``},
		"manifest: an index":         {manifest, index, "x", "x"},
		"manifest: no artifact":      {manifest, doc, `"artifactType":"` + Type + `",`, ``},
		"manifest: schema 1":         {manifest, doc, `"schemaVersion":2`, `"schemaVersion":1`},
		"manifest: another type":     {manifest, doc, `"mediaType":"` + TypeManifest, `"mediaType":"` + TypeIndex},
		"manifest: a subject":        {manifest, doc, `"schemaVersion":2`, `"schemaVersion":2,"subject":{}`},
		"manifest: an index as well": {manifest, doc, `"layers":[`, `"manifests":[],"layers":[`},
		"manifest: a path":           {manifest, doc, "vmlinuz", "../../vmlinuz"},
		"manifest: parts swapped":    {manifest, doc, "initrd", "vmlinuz"},
		"manifest: a part twice":     {manifest, doc, `"layers":[`, `"layers":[{"mediaType":"` + TypePart + `","digest":"` + part.Digest + `","size":1},`},
		"manifest: sha512":           {manifest, doc, part.Digest, "sha512:" + strings.Repeat("0", 128)},
		"manifest: a path's digest":  {manifest, doc, part.Digest, "sha256:../../../../../../../../../../../../../../../../etc/passwd-pad"},
		"manifest: capitals":         {manifest, doc, part.Digest, strings.ToUpper(part.Digest)},
		"manifest: a negative size":  {manifest, doc, `"size":10`, `"size":-1`},
		"manifest: no size":          {manifest, doc, `"size":10`, `"size":0`},
		"manifest: an exabyte":       {manifest, doc, `"size":10`, `"size":1152921504606846976`},
		"manifest: a long config":    {manifest, doc, `"size":6}`, `"size":4194305}`},
		"manifest: urls":             {manifest, doc, `"size":10`, `"size":10,"urls":["https://neighbour/"]`},
		"manifest: long":             {manifest, doc, `"layers":[`, `"layers":[` + strings.Repeat(" ", MaxDocument)},
		"manifest: more":             {manifest, doc, string(doc), string(doc) + "{}"},
		"index: an image":            {indexed, doc, "x", "x"},
		"index: no manifest":         {indexed, []byte(`{"schemaVersion":2,"mediaType":"` + TypeIndex + `","artifactType":"` + Type + `","manifests":[]}`), "x", "x"},
		"index: one arch twice":      {indexed, index, "arm64", "amd64"},
		"index: another arch":        {indexed, index, "arm64", "riscv64"},
		"index: another system":      {indexed, index, `"os":"linux"`, `"os":"windows"`},
		"index: a long manifest":     {indexed, index, `"size":1,`, `"size":1000000,`},
		"index: of an index":         {indexed, index, `"mediaType":"` + TypeManifest, `"mediaType":"` + TypeIndex},
		"index: a layer as well":     {indexed, index, `"manifests":[`, `"layers":[{}],"manifests":[`},
	} {
		if c.old != "x" && !bytes.Contains(c.from, []byte(c.old)) {
			t.Fatalf("%s: %q is not in %s", name, c.old, c.from)
		}
		b := c.from
		if c.old != "x" {
			b = bytes.Replace(c.from, []byte(c.old), []byte(c.new), 1)
		}
		if err := c.parse(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Signatures of others in the same manifest are passed over; too many, or too long ones, are not read.
func TestSignatures(t *testing.T) {
	mine, key := pair(t, "mine")
	good := sign(t, mine, said(7))
	raw, err := WriteSignatures([]Signed{good})
	if err != nil {
		t.Fatal(err)
	}
	reads := 0
	read := func(b Blob) ([]byte, error) {
		reads++
		return good.Payload, nil
	}
	all, err := ParseSignatures(raw, read)
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	if _, err := Verify(all, []Key{key}, someDigest, now); err != nil {
		t.Fatal(err)
	}
	var d map[string]any
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	layer := d["layers"].([]any)[0]
	with := func(layers ...any) []byte {
		d["layers"] = layers
		b, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ecdsaOne := map[string]any{"mediaType": typePayload, "digest": someDigest, "size": 3, "annotations": map[string]string{signatureKey: "MEUCIQD"}}
	if all, err := ParseSignatures(with(ecdsaOne, map[string]any{"mediaType": "application/x"}, layer), read); err != nil || len(all) != 1 {
		t.Errorf("beside others': %v, %v", all, err)
	}
	many := make([]any, 17)
	for i := range many {
		many[i] = layer
	}
	long := map[string]any{"mediaType": typePayload, "digest": someDigest, "size": 1 << 20, "annotations": map[string]string{signatureKey: "x"}}
	other := map[string]any{"mediaType": typePayload, "digest": someDigest, "size": len(good.Payload), "annotations": layer.(map[string]any)["annotations"]}
	reads = 0
	for name, b := range map[string][]byte{"17 signatures": with(many...), "a megabyte of payload": with(long), "no JSON": []byte("<"), "long": bytes.Repeat([]byte(" "), MaxDocument+1)} {
		if _, err := ParseSignatures(b, read); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if reads != 0 {
		t.Errorf("%d payloads of these were read", reads)
	}
	if _, err := ParseSignatures(with(other), read); !errors.Is(err, ErrMalformed) {
		t.Errorf("a payload that is not its digest's: %v", err)
	}
}

// A version never falls, and a memory that cannot be read is not taken for none.
func TestMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "seen")
	see := func(version uint64, digest string) Statement {
		s := said(version)
		s.Digest = digest
		return s
	}
	a, b := DigestOf([]byte("a")), DigestOf([]byte("b"))
	m, err := Recall(dir, "default")
	if err != nil || m != (Memory{}) || m.Judge(see(1, a)) != nil {
		t.Fatalf("the first: %+v, %v", m, err)
	}
	for _, v := range []uint64{5, 3} {
		if err := Remember(dir, see(v, a), "here", false); err != nil {
			t.Fatal(err)
		}
	}
	if m, err = Recall(dir, "default"); err != nil || m.Version != 5 || m.Digest != a || m.From != "here" {
		t.Fatalf("%+v, %v", m, err)
	}
	for _, c := range []struct {
		s    Statement
		want error
	}{{see(5, a), nil}, {see(6, b), nil}, {see(4, a), nil}, {see(4, b), ErrRolledBack}, {see(5, b), ErrRolledBack}} {
		if err := m.Judge(c.s); !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
			t.Errorf("version %d: %v", c.s.Version, err)
		}
	}
	if m, err := Recall(dir, "another"); err != nil || m.Version != 0 {
		t.Errorf("another name: %+v, %v", m, err)
	}
	path := filepath.Join(dir, "default.json")
	for _, bad := range []string{"", "{}", `{"version":0,"digest":"` + a + `","from":""}`, `{"version":5,"digest":"x","from":""}`, `{"version":5`, `{"version":-1,"digest":"` + a + `","from":""}`, strings.Repeat(" ", maxMemory+1)} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Recall(dir, "default"); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%.40q: %v", bad, err)
		}
		if err := Remember(dir, see(9, a), "", false); err == nil {
			t.Errorf("%.40q was written over", bad)
		}
	}
	if _, err := Recall(dir, "../default"); !errors.Is(err, ErrMalformed) {
		t.Errorf("a path for a name: %v", err)
	}
}

func TestKeys(t *testing.T) {
	dir, files := filepath.Join(t.TempDir(), "keys"), t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(files, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	private, public, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := LoadKeys(dir); err != nil || len(keys) != len(Released) {
		t.Fatalf("no folder: %v, %v", keys, err)
	}
	k, err := Trust(dir, write("Release.pub", append([]byte("made by hand\n"), public...)), "", Names{"default"})
	if err != nil || k.Name != "release" || len(k.ID()) != 32 {
		t.Fatalf("%+v, %v", k, err)
	}
	keys, err := LoadKeys(dir)
	if err != nil || len(keys) != 1 || !keys[0].Public.Equal(k.Public) {
		t.Fatalf("%v, %v", keys, err)
	}
	if _, err := Trust(dir, filepath.Join(files, "Release.pub"), "release", Names{"default"}); err != nil {
		t.Errorf("the same again: %v", err)
	}
	_, second, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(ec.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"private": private, "empty": nil, "two": append(bytes.Clone(public), second...), "text": []byte("release"),
		"long": bytes.Repeat(public, 100), "ecdsa": pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: der}),
		"half": public[:60], "bad": pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: []byte("x")}),
	} {
		if _, err := Trust(dir, write(name, b), "", Names{"default"}); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := Trust(dir, write("second.pub", second), "release", Names{"default"}); err == nil || !strings.Contains(err.Error(), "another name") {
		t.Errorf("another key of the same name: %v", err)
	}
	for _, name := range []string{"../x", "a/b", "A", strings.Repeat("a", 40), "-x"} {
		if _, err := Trust(dir, filepath.Join(files, "second.pub"), name, Names{"default"}); err == nil {
			t.Errorf("a key called %q", name)
		}
		if err := Distrust(dir, name); err == nil {
			t.Errorf("a key called %q was removed", name)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "broken.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKeys(dir); err == nil || !strings.Contains(err.Error(), "broken.pem") {
		t.Errorf("a file that is no key: %v", err)
	}
	if err := errors.Join(Distrust(dir, "broken"), Distrust(dir, "release")); err != nil {
		t.Fatal(err)
	}
	if keys, err := LoadKeys(dir); err != nil || len(keys) != 0 {
		t.Errorf("%v, %v", keys, err)
	}
	path := write("private.key", private)
	if _, err := ReadPrivate(path); err != nil {
		t.Errorf("a private key: %v", err)
	}
	if _, err := ReadPrivate(filepath.Join(files, "Release.pub")); err == nil {
		t.Error("a public key was taken to sign with")
	}
	if modes {
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadPrivate(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("a private key that others may read: %v", err)
		}
	}
}

// TestOpenSSL has another program verify a signature: keys and signatures are what everybody's are.
func TestOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatalf("%v (scripts/setup installs it: openssl)", err)
	}
	dir := t.TempDir()
	private, public, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	s := sign(t, private, said(7))
	for name, b := range map[string][]byte{"public": public, "payload": s.Payload, "signature": s.Signature, "altered": append(bytes.Clone(s.Payload), ' ')} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(file string) ([]byte, error) {
		cmd := exec.Command("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "public", "-rawin", "-in", file, "-sigfile", "signature")
		cmd.Dir = dir
		return cmd.CombinedOutput()
	}
	if out, err := verify("payload"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := verify("altered"); err == nil {
		t.Errorf("an altered payload was good: %s", out)
	}
	cmd := exec.Command("openssl", "genpkey", "-algorithm", "ed25519", "-out", "theirs")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "theirs"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParsePrivate(b); err != nil {
		t.Errorf("a key that openssl has made: %v", err)
	}
}

// FuzzDocuments: whatever is parsed stays within the bounds, and what we have written is read again.
func FuzzDocuments(f *testing.F) {
	mine, _ := pair(f, "mine")
	signed := sign(f, mine, said(7))
	doc, err1 := WriteManifest(someManifest())
	index, err2 := WriteIndex(map[string]Blob{"amd64": BlobOf(TypeManifest, doc)})
	signatures, err3 := WriteSignatures([]Signed{signed})
	if err := errors.Join(err1, err2, err3); err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{doc, index, signatures, signed.Payload, nil} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if archs, err := ParseIndex(b); err == nil && (len(archs) == 0 || len(archs) > len(Archs)) {
			t.Errorf("%d architectures", len(archs))
		}
		if m, err := ParseManifest(b); err == nil {
			for _, p := range append(m.Parts, m.Config) {
				if !validDigest.MatchString(p.Digest) || p.Size <= 0 || p.Size > MaxPart {
					t.Errorf("%+v", p)
				}
			}
		}
		if all, err := ParseSignatures(b, func(b Blob) ([]byte, error) {
			if b.Size > maxPayload {
				t.Errorf("%d bytes would be read", b.Size)
			}
			return signed.Payload, nil
		}); err == nil && len(all) > maxSignatures {
			t.Errorf("%d signatures", len(all))
		}
		if s, err := parsePayload(b); err == nil && (!validName.MatchString(s.Name) || s.Version == 0 || s.Version > MaxVersion) {
			t.Errorf("%+v", s)
		}
	})
}
