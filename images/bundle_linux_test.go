package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	registrytest "github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/images/bundle"
)

// publisher is a store of images to publish, and a key.
type publisher struct {
	*Store
	key string
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	p := &publisher{Open(t.TempDir()), filepath.Join(t.TempDir(), "release.key")}
	if _, err := CreateKey(p.key); err != nil {
		t.Fatal(err)
	}
	return p
}

// make puts a built image in the publisher's store, whose root, kernel and initrd say what they are of.
func (p *publisher) make(t *testing.T, name, arch, kernel, initrd, root string) {
	t.Helper()
	dir := p.dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m := sample(name)
	m.Arch = arch
	for i, content := range []string{kernel, initrd, root} {
		b := bytes.Repeat([]byte(content+"\n"), 20_000)
		m.Parts[i].Size, m.Parts[i].SHA256 = int64(len(b)), fmt.Sprintf("%x", sha256.Sum256(b))
		if err := os.WriteFile(filepath.Join(dir, m.Parts[i].Name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	writeManifest(t, dir, m)
}

// export writes the bundle of a version, with parts of that version but for the kernel.
func (p *publisher) export(t *testing.T, version uint64) string {
	t.Helper()
	p.make(t, "box", runtime.GOARCH, "kernel", fmt.Sprint("initrd ", version), fmt.Sprint("root ", version))
	file := filepath.Join(t.TempDir(), fmt.Sprintf("box-%d.tar", version))
	if _, err := p.ExportBundle(t.Context(), []string{"box"}, file, SignOptions{Key: p.key, Version: version}); err != nil {
		t.Fatal(err)
	}
	return file
}

// newTaker is a store that takes bundles, and those of these publishers.
func newTaker(t *testing.T, from ...*publisher) *Store {
	t.Helper()
	home := t.TempDir()
	s := Open(filepath.Join(home, "cache")).WithBundles(filepath.Join(home, "config", "trusted-keys"), filepath.Join(home, "state", "bundles"))
	for i, p := range from {
		if _, err := s.TrustKey(p.key+".pub", fmt.Sprint("key-", i), []string{"*"}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// rootSays is what the root of an image is of.
func rootSays(t *testing.T, s *Store, name string) string {
	t.Helper()
	img, release, err := s.Use(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	b, err := os.ReadFile(img.Root)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

// privateRegistry is go-containerregistry's on loopback, with TLS, a token for those who know a word, and
// what a test puts before it.
type privateRegistry struct {
	host   string
	roots  *x509.CertPool
	before func(w http.ResponseWriter, r *http.Request) bool // true: it has answered

	mu    sync.Mutex
	blobs []string // that were asked for
}

func newPrivateRegistry(t *testing.T) *privateRegistry {
	t.Helper()
	s := &privateRegistry{roots: x509.NewCertPool()}
	reg := registrytest.New(registrytest.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewUnstartedServer(nil)
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			if user, pass, _ := r.BasicAuth(); user != "publisher" || pass != "sesame" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fmt.Fprint(w, `{"token":"let-me-in"}`)
			return
		}
		if r.Header.Get("Authorization") != "Bearer let-me-in" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test"`, srv.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if _, digest, ok := strings.Cut(r.URL.Path, "/blobs/sha256:"); ok && r.Method == http.MethodGet {
			s.mu.Lock()
			s.blobs = append(s.blobs, digest)
			s.mu.Unlock()
		}
		if s.before != nil && s.before(w, r) {
			return
		}
		reg.ServeHTTP(w, r)
	})
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s.roots.AddCert(srv.Certificate())
	s.host = strings.TrimPrefix(srv.URL, "https://")
	config := t.TempDir()
	auth := fmt.Sprintf(`{"auths":{%q:{"username":"publisher","password":"sesame"}}}`, s.host)
	if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(auth), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", config)
	return s
}

func (s *privateRegistry) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.blobs
	s.blobs = nil
	return all
}

// A bundle of two architectures goes to a registry and comes from it, is replaced by a later one of which
// only what differs is downloaded, and is restored.
func TestBundleRegistry(t *testing.T) {
	reg := newPrivateRegistry(t)
	p := newPublisher(t)
	p.roots = reg.roots
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	push := func(version uint64, root string) *Published {
		t.Helper()
		p.make(t, "box", runtime.GOARCH, "kernel", "initrd", root)
		p.make(t, "box-other", other, "kernel", "initrd", "root of the other")
		out, err := p.PushBundle(t.Context(), []string{"box", "box-other"}, reg.host+"/me/box:1", SignOptions{Key: p.key, Version: version})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	first := push(1, "root one")
	if first.Name != "box" || !slices.Equal(first.Archs, []string{"amd64", "arm64"}) {
		t.Errorf("%+v", first)
	}
	s := newTaker(t, p)
	s.roots = reg.roots
	ref := reg.host + "/me/box:1"
	if _, _, err := s.Pull(t.Context(), ref, nil); !IsBundle(err) {
		t.Fatalf("pulled as an image: %v", err)
	}
	img, err := s.PullBundle(t.Context(), ref, BundleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if b := img.Bundle; b.Version != 1 || b.Digest != first.Digest || b.Key != "key-0" || b.From != ref || img.Manifest.Arch != runtime.GOARCH {
		t.Errorf("%+v", b)
	}
	if got := rootSays(t, s, "box"); got != "root one" {
		t.Errorf("the root is %q", got)
	}
	if err := s.Verify(t.Context(), "box"); err != nil {
		t.Error(err)
	}
	// A host of the other architecture, such as a Mac, takes the other one of the same name.
	mac := newTaker(t, p)
	mac.roots, mac.arch = reg.roots, other
	theirs, err := mac.PullBundle(t.Context(), ref, BundleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := rootSays(t, mac, "box"); got != "root of the other" || theirs.Manifest.Arch != other || mac.Fits(theirs) != nil || !errors.Is(s.Fits(theirs), ErrArch) {
		t.Errorf("the other host has %q, for %s: %v, %v", got, theirs.Manifest.Arch, mac.Fits(theirs), s.Fits(theirs))
	}
	reg.asked()
	if _, err := s.PullBundle(t.Context(), ref, BundleOptions{}); err != nil {
		t.Error(err)
	}
	for _, part := range img.Manifest.Parts {
		if slices.Contains(reg.asked(), part.SHA256) {
			t.Errorf("%s was downloaded again", part.Name)
		}
	}
	if _, err := s.Previous("box"); !errors.Is(err, ErrNotFound) {
		t.Errorf("there is one before the first: %v", err)
	}

	push(2, "root two")
	reg.asked()
	second, err := s.PullBundle(t.Context(), ref, BundleOptions{})
	if err != nil || second.Bundle.Version != 2 || rootSays(t, s, "box") != "root two" {
		t.Fatalf("%+v, %v", second, err)
	}
	asked := reg.asked()
	if slices.Contains(asked, second.Manifest.Part(Kernel).SHA256) || !slices.Contains(asked, second.Manifest.Part(Root).SHA256) {
		t.Errorf("asked for %v", asked)
	}
	for _, want := range []string{"root one", "root two"} {
		if _, err := s.Restore(t.Context(), "box"); err != nil {
			t.Fatal(err)
		}
		if got := rootSays(t, s, "box"); got != want {
			t.Errorf("restored: %q, expected %q", got, want)
		}
	}
	all, err := s.List(t.Context())
	if err != nil || len(all) != 1 || all[0].Bundle == nil || all[0].Bundle.Version != 2 {
		t.Errorf("%+v, %v", all, err)
	}
	// The same again, signed as a later version, is that version, and brings nothing new.
	push(3, "root two")
	reg.asked()
	third, err := s.PullBundle(t.Context(), ref, BundleOptions{})
	if err != nil || third.Bundle.Version != 3 || third.Bundle.Digest != second.Bundle.Digest || slices.Contains(reg.asked(), third.Manifest.Part(Root).SHA256) {
		t.Errorf("%+v, %v", third, err)
	}
	if before, err := s.Previous("box"); err != nil || before.Bundle.Version != 1 {
		t.Errorf("the one before: %+v, %v", before, err)
	}
	// What a registry has lost of a bundle is not made up for.
	reg.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, ".sig") {
			http.NotFound(w, r)
			return true
		}
		return false
	}
	if _, err := newTakerAt(t, reg, p).PullBundle(t.Context(), ref, BundleOptions{}); !errors.Is(err, ErrUntrusted) {
		t.Errorf("without its signature: %v", err)
	}
	reg.before = nil
	if _, err := newTakerAt(t, reg, p).PullBundle(t.Context(), ref, BundleOptions{}); err != nil {
		t.Errorf("with it: %v", err)
	}
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	if _, err := p.PushBundle(t.Context(), []string{"box"}, ref, SignOptions{Key: p.key}); err == nil {
		t.Error("pushed without credentials")
	}
}

func newTakerAt(t *testing.T, reg *privateRegistry, p *publisher) *Store {
	s := newTaker(t, p)
	s.roots = reg.roots
	return s
}

// repack writes an exported bundle again, its members as change makes them.
func repack(t *testing.T, file string, change func(name string, b []byte) []byte) string {
	t.Helper()
	in, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r, w := tar.NewReader(bytes.NewReader(in)), tar.NewWriter(&out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if b = change(h.Name, b); b == nil {
			continue
		}
		h.Size = int64(len(b))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "repacked.tar")
	if err := os.WriteFile(to, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

// forge replaces a part, or what else change makes of the image, and makes every digest above it right again, as
// an attacker does who has everything but the key.
func forge(t *testing.T, file string, change func(m *Manifest, parts map[string][]byte)) string {
	t.Helper()
	blobs := map[string][]byte{}
	repack(t, file, func(name string, b []byte) []byte { blobs[name] = b; return b })
	read := func(d string) []byte { return blobs[blobPath(d)] }
	var top struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal(blobs["index.json"], &top); err != nil {
		t.Fatal(err)
	}
	index, signatures := read(top.Manifests[0].Digest), read(top.Manifests[1].Digest)
	archs, err := bundle.ParseIndex(index)
	if err != nil {
		t.Fatal(err)
	}
	bm, err := bundle.ParseManifest(read(archs[runtime.GOARCH].Digest))
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseManifest(read(bm.Config.Digest))
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string][]byte{}
	for _, p := range m.Parts {
		parts[p.Name] = read("sha256:" + p.SHA256)
	}
	change(m, parts)
	out := map[string][]byte{"oci-layout": blobs["oci-layout"]}
	put := func(mediaType string, b []byte) bundle.Blob {
		d := bundle.BlobOf(mediaType, b)
		out[blobPath(d.Digest)] = b
		return d
	}
	var nm bundle.Manifest
	for i := range m.Parts {
		b := parts[m.Parts[i].Name]
		d := put(bundle.TypePart, b)
		nm.Parts = append(nm.Parts, d)
		m.Parts[i].SHA256, m.Parts[i].Size = strings.TrimPrefix(d.Digest, "sha256:"), d.Size
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	nm.Config = put(bundle.TypeConfig, text)
	doc, err := bundle.WriteManifest(nm)
	if err != nil {
		t.Fatal(err)
	}
	newIndex, err := bundle.WriteIndex(map[string]bundle.Blob{m.Arch: put(bundle.TypeManifest, doc)})
	if err != nil {
		t.Fatal(err)
	}
	put(bundle.TypeIndex, newIndex)
	put(bundle.TypeManifest, signatures)
	for name, b := range blobs { // payloads
		if strings.Contains(string(b), "docker-manifest-digest") {
			out[name] = b
		}
	}
	if out["index.json"], err = bundle.WriteLayout(newIndex, signatures); err != nil {
		t.Fatal(err)
	}
	var tarred bytes.Buffer
	w := tar.NewWriter(&tarred)
	for name, b := range out {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(b))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "forged.tar")
	if err := os.WriteFile(to, tarred.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

// I11: nothing comes in that no trusted key has signed, that is older than what was here, or that has been
// altered; and what was there before stays. The control is the same bundle as it was.
func TestBundleRefused(t *testing.T) {
	p, stranger := newPublisher(t), newPublisher(t)
	v1, v2, v3 := p.export(t, 1), p.export(t, 2), p.export(t, 3)
	theirs := stranger.export(t, 9)
	expired := filepath.Join(t.TempDir(), "expired.tar")
	p.make(t, "box", runtime.GOARCH, "kernel", "initrd", "root 4")
	if _, err := p.ExportBundle(t.Context(), []string{"box"}, expired, SignOptions{Key: p.key, Version: 4, Expires: time.Nanosecond}); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "again.tar")
	if _, err := p.ExportBundle(t.Context(), []string{"box"}, again, SignOptions{Key: p.key, Version: 2}); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(t.TempDir(), "foreign.tar")
	p.make(t, "elsewhere", map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH], "k", "i", "r")
	if _, err := p.ExportBundle(t.Context(), []string{"elsewhere"}, foreign, SignOptions{Key: p.key, Version: 5}); err != nil {
		t.Fatal(err)
	}
	// The root of version 3, by the name of its blob.
	root := "blobs/sha256/" + fmt.Sprintf("%x", sha256.Sum256(bytes.Repeat([]byte("root 3\n"), 20_000)))
	half := func(b []byte) []byte { return b[:len(b)/2] }

	nobody := newTaker(t)
	if _, err := nobody.ImportBundle(t.Context(), v1, BundleOptions{}); !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), "carrel image trust KEYFILE --for NAME") {
		t.Errorf("with no trusted key: %v", err)
	}
	s := newTaker(t, p)
	if _, err := s.ImportBundle(t.Context(), v2, BundleOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file string
		want error
	}{
		"an older one":            {v1, ErrRolledBack},
		"another of that version": {again, ErrRolledBack},
		"a stranger's":            {theirs, ErrUntrusted},
		"one that has expired":    {expired, ErrUntrusted},
		"one for another machine": {foreign, ErrNotFound},
		"another kernel":          {forge(t, v3, func(_ *Manifest, parts map[string][]byte) { parts[Kernel] = []byte("evil") }), ErrUntrusted},
		"another root":            {forge(t, v3, func(_ *Manifest, parts map[string][]byte) { parts[Root] = []byte("evil") }), ErrUntrusted},
		"another initrd":          {forge(t, v3, func(_ *Manifest, parts map[string][]byte) { parts[Initrd] = []byte("evil") }), ErrUntrusted},
		"kernel and initrd change": {forge(t, v3, func(_ *Manifest, parts map[string][]byte) {
			parts[Kernel], parts[Initrd] = parts[Initrd], parts[Kernel]
		}), ErrUntrusted},
		"another manifest":         {forge(t, v3, func(m *Manifest, _ map[string][]byte) { m.KernelVersion = "9" }), ErrUntrusted},
		"no signature":             {repack(t, v3, func(name string, b []byte) []byte { return []byte(strings.Replace(string(b), ".sig", ".gis", 1)) }), ErrUntrusted},
		"a root cut short":         {repack(t, v3, func(name string, b []byte) []byte { return map[bool][]byte{true: half(b), false: b}[name == root] }), nil},
		"a root that is not there": {repack(t, v3, func(name string, b []byte) []byte { return map[bool][]byte{true: nil, false: b}[name == root] }), nil},
		"a root of other bytes": {repack(t, v3, func(name string, b []byte) []byte {
			if name == root {
				b = bytes.Clone(b)
				b[len(b)/2] ^= 1
			}
			return b
		}), nil},
	} {
		_, err := s.ImportBundle(t.Context(), c.file, BundleOptions{})
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if got := rootSays(t, s, "box"); got != "root 2" {
			t.Fatalf("%s: the root is %q", name, got)
		}
		whole(t, s, 1)
	}
	if left, _ := filepath.Glob(filepath.Join(s.cache, "half", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := s.ImportBundle(t.Context(), v1, BundleOptions{AllowRollback: true}); err != nil || rootSays(t, s, "box") != "root 1" {
		t.Errorf("a roll-back that is meant: %v", err)
	}
	if _, err := s.ImportBundle(t.Context(), v1, BundleOptions{}); !errors.Is(err, ErrRolledBack) {
		t.Errorf("what was seen was forgotten by a roll-back: %v", err)
	}
	if _, err := s.ImportBundle(t.Context(), v3, BundleOptions{}); err != nil || rootSays(t, s, "box") != "root 3" {
		t.Errorf("the control: %v", err)
	}
	if err := os.RemoveAll(s.cache); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ImportBundle(t.Context(), v2, BundleOptions{}); !errors.Is(err, ErrRolledBack) {
		t.Errorf("what was seen was forgotten with the cache: %v", err)
	}
	if _, err := s.ImportBundle(t.Context(), v3, BundleOptions{}); err != nil {
		t.Fatal(err)
	}

	// A key that is trusted no more: its images start no more, whatever needs them.
	if err := s.ForgetKey("key-0"); err != nil {
		t.Fatal(err)
	}
	for what, use := range map[string]func() (*Image, func(), error){
		"use": func() (*Image, func(), error) { return s.Use(t.Context(), "box") }, "use its kernel": func() (*Image, func(), error) { return s.UseKernel(t.Context(), "box") },
	} {
		if _, _, err := use(); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s after its key was removed: %v", what, err)
		}
	}
	if err := s.Verify(t.Context(), "box"); !errors.Is(err, ErrUntrusted) {
		t.Errorf("verify after its key was removed: %v", err)
	}
	if _, err := s.TrustKey(p.key+".pub", "again", []string{"*"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), "box"); err != nil {
		t.Errorf("with it: %v", err)
	}
}

// I11: each file of a bundle, cut short, altered or gone, is found, named, and mended by the command that
// is printed.
func TestBundleDamaged(t *testing.T) {
	p := newPublisher(t)
	file := filepath.Join(t.TempDir(), "a bundle's file.tar")
	if err := os.Rename(p.export(t, 3), file); err != nil {
		t.Fatal(err)
	}
	s := newTaker(t, p)
	if _, err := s.ImportBundle(t.Context(), file, BundleOptions{}); err != nil {
		t.Fatal(err)
	}
	cure := "carrel image import " + shellWord(file)
	for _, name := range []string{Kernel, Initrd, Root, manifestName, bundleName} {
		for how, damage := range map[string]func(path string, b []byte) error{
			"cut short": func(path string, b []byte) error { return os.WriteFile(path, b[:len(b)/2], 0o600) },
			"altered": func(path string, b []byte) error {
				b[len(b)/3] ^= 1
				return os.WriteFile(path, b, 0o600)
			},
			"gone":   func(path string, _ []byte) error { return os.Remove(path) },
			"a link": func(path string, _ []byte) error { return errors.Join(os.Remove(path), os.Symlink("/dev/zero", path)) },
		} {
			path := filepath.Join(s.dir("box"), name)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(path, b); err != nil {
				t.Fatal(err)
			}
			_, _, err = s.Use(t.Context(), "box")
			if err == nil || !strings.Contains(err.Error(), cure) && !(name == bundleName && errors.Is(err, ErrUntrusted)) {
				t.Errorf("%s %s: %v", name, how, err)
			}
			if err != nil && errors.Is(err, ErrDamaged) && !strings.Contains(err.Error(), strings.TrimSuffix(name, ".json")) && !strings.Contains(err.Error(), bundleName) {
				t.Errorf("%s %s is not named: %v", name, how, err)
			}
			if err := exec.Command("sh", "-c", "set -- "+strings.TrimPrefix(cure, "carrel image import")+`; test "$#" = 1 -a "$1" = "$0"`, file).Run(); err != nil {
				t.Fatalf("a shell reads %s otherwise: %v", cure, err)
			}
			if _, err := s.ImportBundle(t.Context(), file, BundleOptions{}); err != nil {
				t.Fatalf("%s %s: mend it: %v", name, how, err)
			}
			if got := rootSays(t, s, "box"); got != "root 3" {
				t.Errorf("%s %s: mended, the root is %q", name, how, got)
			}
			if err := s.Verify(t.Context(), "box"); err != nil {
				t.Errorf("%s %s: mended: %v", name, how, err)
			}
		}
	}
	if _, err := s.Previous("box"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a damaged one was kept: %v", err)
	}
}

// Variables by which this program, started again by a test, learns which bundle to take.
const (
	childBundle = "CARREL_TEST_BUNDLE"
	childHome   = "CARREL_TEST_HOME"
)

func takerAt(home string) *Store {
	return Open(filepath.Join(home, "cache")).WithBundles(filepath.Join(home, "config"), filepath.Join(home, "state"))
}

// TestBundleChild is no test: it is what is killed.
func TestBundleChild(t *testing.T) {
	if os.Getenv(childHome) == "" {
		t.Skip("it is started by TestKilledBundle and TestFullDiskBundle")
	}
	home, file := os.Getenv(childHome), os.Getenv(childBundle)
	s := takerAt(home)
	s.step = func(step string) error {
		if step == os.Getenv(childStep) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	if os.Getenv(childStep) == "restored" {
		_, err := s.Restore(t.Context(), "box")
		t.Fatal(err)
	}
	size := os.Getenv(childDisk)
	if size == "" {
		_, err := s.ImportBundle(t.Context(), file, BundleOptions{})
		t.Fatal(err)
	}
	if err := unix.Mount("small", filepath.Join(home, "disk"), "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	small := takerAt(filepath.Join(home, "disk"))
	small.trust = s.trust
	if _, err := small.ImportBundle(t.Context(), file, BundleOptions{}); err == nil {
		fmt.Println("it had room")
		whole(t, small, 1)
		return
	} else if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("%v, expected that there is no room", err)
	}
	fmt.Println("it had no room")
	whole(t, small, 0)
	if err := unix.Mount("small", filepath.Join(home, "disk"), "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if _, err := small.ImportBundle(t.Context(), file, BundleOptions{}); err != nil {
		t.Fatalf("with room: %v", err)
	}
	whole(t, small, 1)
}

func bundleChild(env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestBundleChild$", "-test.v")
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// A bundle that is being taken, or restored, when its process is killed leaves the image that was there or
// the new one, whole, and the one before it; the next try succeeds.
func TestKilledBundle(t *testing.T) {
	p := newPublisher(t)
	v1, v2, v3 := p.export(t, 1), p.export(t, 2), p.export(t, 3)
	for _, step := range []string{"fetched", "taken", "described", "remembered", "kept", "placed", "restored"} {
		t.Run(step, func(t *testing.T) {
			home := t.TempDir()
			s := takerAt(home)
			if _, err := s.TrustKey(p.key+".pub", "", []string{"*"}); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{v1, v2} {
				if _, err := s.ImportBundle(t.Context(), file, BundleOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			cmd := bundleChild(childHome+"="+home, childBundle+"="+v3, childStep+"="+step)
			out, err := cmd.CombinedOutput()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
				t.Fatalf("it was not killed: %v\n%s", err, out)
			}
			whole(t, s, 1)
			now := map[string]string{"placed": "root 3", "restored": "root 1"}[step]
			if now == "" {
				now = "root 2"
			}
			if got := rootSays(t, s, "box"); got != now {
				t.Errorf("the image is of %q, expected %q", got, now)
			}
			before, err := s.Previous("box")
			if err != nil {
				t.Fatalf("the one before: %v", err)
			}
			if err := s.verifyParts(t.Context(), s.previous("box"), before, true); err != nil {
				t.Errorf("the one before: %v", err)
			}
			if _, err := s.ImportBundle(t.Context(), v3, BundleOptions{}); err != nil || rootSays(t, s, "box") != "root 3" {
				t.Fatalf("after it was killed: %v", err)
			}
			if _, err := s.Restore(t.Context(), "box"); err != nil || rootSays(t, s, "box") == "root 3" {
				t.Errorf("restore: %v", err)
			}
			if _, err := s.Prune(t.Context(), func(string) bool { return false }, false, false); err != nil {
				t.Fatal(err)
			}
			whole(t, s, 1)
			if left, _ := filepath.Glob(filepath.Join(home, "cache", "half", "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// On a disk that is full at any point a bundle is not taken and nothing is seen of it; with room it is.
func TestFullDiskBundle(t *testing.T) {
	p := newPublisher(t)
	file := p.export(t, 1) // of 460 KB
	room := 0
	sizes := []string{"16k", "64k", "140k", "160k", "300k", "400k", "440k", "460k", "8m"}
	for _, size := range sizes {
		home := t.TempDir()
		if err := os.Mkdir(filepath.Join(home, "disk"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := takerAt(home).TrustKey(p.key+".pub", "", []string{"*"}); err != nil {
			t.Fatal(err)
		}
		cmd := bundleChild(childHome+"="+home, childBundle+"="+file, childDisk+"="+size)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("a disk of %s: %v\n%s", size, err, out)
		}
		if strings.Contains(string(out), "it had room") {
			room++
		} else if !strings.Contains(string(out), "it had no room") {
			t.Errorf("a disk of %s: neither happened\n%s", size, out)
		}
	}
	if room == 0 || room > len(sizes)/2 {
		t.Errorf("%d of %d disks had room: that tests nothing", room, len(sizes))
	}
}

// What others hold is not replaced under them, and what was damaged is not restored.
func TestBundleRestore(t *testing.T) {
	p := newPublisher(t)
	v1, v2 := p.export(t, 1), p.export(t, 2)
	s := newTaker(t, p)
	if _, err := s.Restore(t.Context(), "box"); !errors.Is(err, ErrNotFound) {
		t.Errorf("where nothing is: %v", err)
	}
	for _, file := range []string{v1, v2} {
		if _, err := s.ImportBundle(t.Context(), file, BundleOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(s.previous("box"), Root), 100); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Restore(t.Context(), "box"); !errors.Is(err, ErrDamaged) || rootSays(t, s, "box") != "root 2" {
		t.Errorf("one that is damaged: %v", err)
	}
	if _, err := s.ImportBundle(t.Context(), v1, BundleOptions{AllowRollback: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(s.dir("box"), Root), 100); err != nil {
		t.Fatal(err)
	}
	// The pull that mends it says that it is a step back.
	if _, err := s.Get(t.Context(), "box"); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "carrel image import --allow-rollback ") {
		t.Errorf("damaged after a step back: %v", err)
	}
	if img, err := s.Restore(t.Context(), "box"); err != nil || img.Bundle.Version != 2 || rootSays(t, s, "box") != "root 2" {
		t.Errorf("in the place of one that is damaged: %v", err)
	}
	if _, err := s.Previous("box"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the damaged one was kept: %v", err)
	}
	_, release, err := s.Use(t.Context(), "box")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := s.ImportBundle(ctx, v1, BundleOptions{AllowRollback: true})
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("it was replaced while it was held: %v", err)
	default:
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("it was replaced while it was held")
	}
	release()
	if _, err := s.ImportBundle(t.Context(), v1, BundleOptions{AllowRollback: true}); err != nil {
		t.Errorf("the control: %v", err)
	}
	if err := s.Remove(t.Context(), "box"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(s.previous("box")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the one before outlives it: %v", err)
	}
}

// What somebody else puts where a bundle is about to be written is not replaced, however late it comes, and nothing else is left there.
func TestExportTaken(t *testing.T) {
	p := newPublisher(t)
	p.make(t, "box", "amd64", "kernel", "initrd", "root")
	dir := t.TempDir()
	to := filepath.Join(dir, "box.tar")
	theirs := *p.Store
	theirs.step = func(step string) error {
		if step != "exported" {
			return nil
		}
		return os.WriteFile(to, []byte("theirs"), 0o600)
	}
	o := SignOptions{Key: p.key, Version: 1}
	if _, err := theirs.ExportBundle(t.Context(), []string{"box"}, to, o); err == nil || !strings.Contains(err.Error(), "there already (remove it") {
		t.Errorf("a name that was taken meanwhile: %v", err)
	}
	if b, err := os.ReadFile(to); err != nil || string(b) != "theirs" {
		t.Errorf("it has become %.20q, %v", b, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left there: %v, %v", entries, err)
	}
	if err := os.Remove(to); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ExportBundle(t.Context(), []string{"box"}, to, o); err != nil { // the control
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left there: %v, %v", entries, err)
	}
}
