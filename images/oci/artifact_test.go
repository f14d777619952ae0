package oci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// An artifact is told from an image, whether a registry or a layout has it; an image whose descriptor has an
// artifactType, as some tools write it, stays one.
func TestArtifact(t *testing.T) {
	const kind = "application/vnd.example.thing.v1"
	thing := []byte(`{"schemaVersion":2,"mediaType":"` + typeManifest + `","artifactType":"` + kind + `","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"` + digestOf([]byte("{}")) + `","size":2},"layers":[]}`)
	s := newServer(t, true)
	m := &made{blobs: map[string][]byte{}, manifest: thing}
	m.add("", []byte("{}"))
	s.push(t, "me/thing", "v1", m)
	var a *ArtifactError
	if _, err := Open(t.TempDir()).Fetch(t.Context(), s.image("me/thing:v1"), amd64, nil); !errors.As(err, &a) || a.Type != kind {
		t.Errorf("from a registry: %v", err)
	}
	layout := func(artifactType string, m *made) string {
		dir := layoutOf(t, m, "it")
		path := filepath.Join(dir, "index.json")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.Replace(b, []byte(`"digest":`), []byte(`"artifactType":"`+artifactType+`","digest":`), 1)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	m.add(typeManifest, thing)
	if _, err := Open(t.TempDir()).Fetch(t.Context(), Layout(layout(kind, m), ""), amd64, nil); !errors.As(err, &a) || a.Type != kind {
		t.Errorf("from a layout: %v", err)
	}
	if _, err := Open(t.TempDir()).Fetch(t.Context(), Layout(layout(typeConfig, someImage(t)), ""), amd64, nil); err != nil {
		t.Errorf("an image: %v", err)
	}
	open, err := OpenArtifact(t.Context(), Layout(layout(kind, m), ""), kind, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if raw, err := open.Root(t.Context()); err != nil || !bytes.Equal(raw, thing) {
		t.Errorf("%s, %v", raw, err)
	}
	if raw, err := open.Tagged(t.Context(), "it"); err != nil || !bytes.Equal(raw, thing) {
		t.Errorf("by its tag: %s, %v", raw, err)
	}
	if _, err := open.Tagged(t.Context(), "other"); !errors.Is(err, ErrNotFound) {
		t.Errorf("by another: %v", err)
	}
}

// What is pushed comes back; a blob that the registry has is not sent again, and one that breaks off is.
func TestPush(t *testing.T) {
	s := newServer(t, true)
	var broken atomic.Int32
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPatch || broken.Add(1) != 1 {
			return false
		}
		_, _ = io.CopyN(io.Discard, r.Body, 1000)
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	content := bytes.Repeat([]byte("0123456789"), 10_000)
	blob := Upload{Blob{"application/octet-stream", digestOf(content), int64(len(content))}, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }}
	doc := []byte(`{"schemaVersion":2,"mediaType":"` + typeManifest + `","artifactType":"application/x","config":{"mediaType":"application/x","digest":"` + blob.Digest + fmt.Sprintf(`","size":%d},"layers":[]}`, blob.Size))
	var last Progress
	push := func(opt RegistryOptions, ref string) error {
		return Push(t.Context(), ref, opt, []Upload{blob}, []Document{{MediaType: typeManifest, Raw: doc}, {Tag: "v1", MediaType: typeManifest, Raw: doc}}, func(p Progress) { last = p })
	}
	opt := RegistryOptions{RootCAs: s.roots()}
	if err := push(opt, s.host+"/me/it:v1"); err != nil {
		t.Fatal(err)
	}
	if last.Done != blob.Size || last.Total != blob.Size || broken.Load() < 2 {
		t.Errorf("%+v after %d tries", last, broken.Load())
	}
	if err := push(opt, s.host+"/me/it:v1"); err != nil {
		t.Fatal(err)
	}
	sent := 0
	for _, r := range s.requests() {
		if strings.HasPrefix(r, "PATCH ") {
			sent++
		}
	}
	if sent != 2 {
		t.Errorf("it was sent %d times", sent)
	}
	a, err := OpenArtifact(t.Context(), s.image("me/it:v1"), "application/x", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if raw, err := a.Root(t.Context()); err != nil || !bytes.Equal(raw, doc) {
		t.Errorf("%s, %v", raw, err)
	}
	if b, err := a.Read(t.Context(), blob.Blob); err != nil || !bytes.Equal(b, content) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	wrong := blob.Blob
	wrong.Size--
	if _, err := a.Read(t.Context(), wrong); !errors.Is(err, ErrDamaged) {
		t.Errorf("of another size: %v", err)
	}
	if err := push(RegistryOptions{}, s.host+"/me/it:v1"); err == nil {
		t.Error("pushed to a registry whose certificate nobody knows")
	}
	if err := push(opt, "Not A Reference"); !errors.Is(err, ErrMalformed) {
		t.Errorf("%v", err)
	}
}
