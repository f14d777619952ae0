package oci

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	registrytest "github.com/google/go-containerregistry/pkg/registry"
)

// server is go-containerregistry's registry on loopback with TLS and token authentication, and what a
// test puts before it.
type server struct {
	*httptest.Server
	host   string
	auth   bool
	before func(w http.ResponseWriter, r *http.Request) bool // true: it has answered

	mu   sync.Mutex
	seen []string // method, path, range
}

func newServer(t testing.TB, tls bool) *server {
	t.Helper()
	s := &server{}
	reg := registrytest.New(registrytest.Logger(log.New(io.Discard, "", 0)))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
		s.mu.Unlock()
		if s.before != nil && s.before(w, r) {
			return
		}
		if s.auth && r.URL.Path == "/token" {
			if user, pass, _ := r.BasicAuth(); user != "reader" || pass != "sesame" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fmt.Fprint(w, `{"token":"let-me-in"}`)
			return
		}
		if s.auth && r.Header.Get("Authorization") != "Bearer let-me-in" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test"`, s.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		reg.ServeHTTP(w, r)
	})
	if tls {
		s.Server = httptest.NewTLSServer(h)
	} else {
		s.Server = httptest.NewServer(h)
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	s.host = s.URL[strings.LastIndex(s.URL, "/")+1:]
	t.Setenv("DOCKER_CONFIG", t.TempDir()) // nobody's credentials
	return s
}

// push puts an image there as repo:tag, without asking whoever guards it.
func (s *server) push(t testing.TB, repo, tag string, m *made) {
	t.Helper()
	auth, before := s.auth, s.before
	s.auth, s.before = false, nil
	defer func() { s.auth, s.before = auth, before }()
	put := func(method, path, mediaType string, body []byte) {
		req, err := http.NewRequest(method, s.URL+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", mediaType)
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode >= 300 {
			t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
	}
	for d, blob := range m.blobs {
		if d != digestOf(m.manifest) {
			put("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d, "application/octet-stream", blob)
		}
	}
	mediaType := typeManifest
	if bytes.Contains(m.manifest, []byte(`"manifests"`)) {
		mediaType = typeIndex
	}
	put("PUT", "/v2/"+repo+"/manifests/"+digestOf(m.manifest), mediaType, m.manifest)
	put("PUT", "/v2/"+repo+"/manifests/"+tag, mediaType, m.manifest)
}

func (s *server) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	if c := s.Certificate(); c != nil {
		pool.AddCert(c)
	}
	return pool
}

func (s *server) image(ref string) Source {
	return Registry(s.host+"/"+ref, RegistryOptions{RootCAs: s.roots()})
}

func (s *server) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

func someImage(t testing.TB) *made {
	return imageOf(t, `{"Entrypoint":["/bin/it"],"Cmd":["-v"],"Env":["A=b","PATH=/bin"],"User":"1000:1000","WorkingDir":"/w","StopSignal":"SIGINT","Labels":{"l":"m"}}`, gzipped,
		layerOf(t, e{name: "a", body: strings.Repeat("a", 10_000)}), layerOf(t, e{name: "b", body: "b"}))
}

// TestRegistry pulls by tag, by digest and by both, and a second time without a byte of a layer.
func TestRegistry(t *testing.T) {
	s := newServer(t, true)
	m := someImage(t)
	s.push(t, "me/it", "v1", m)
	digest := digestOf(m.manifest)
	b := Open(t.TempDir())
	for _, ref := range []string{"me/it:v1", "me/it@" + digest, "me/it:other@" + digest} {
		var steps []Progress
		img, err := b.Fetch(t.Context(), s.image(ref), amd64, func(p Progress) { steps = append(steps, p) })
		if err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
		if img.Digest != digest || img.Ref != s.host+"/"+ref || len(img.Layers) != 2 || img.Config.User != "1000:1000" || img.Config.Labels["l"] != "m" || len(img.Config.Env) != 2 {
			t.Errorf("%+v", img)
		}
		last := steps[len(steps)-1]
		if steps[0].Step != "resolve" || last.Step != "download" || last.Done != last.Total || last.Total != img.Layers[0].Size+img.Layers[1].Size {
			t.Errorf("progress: %+v", steps)
		}
		if _, _, err := writeRoot(t, b, img, Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	s.requests()
	if _, err := b.Fetch(t.Context(), s.image("me/it:v1"), amd64, nil); err != nil {
		t.Fatal(err)
	}
	for _, r := range s.requests() {
		if strings.Contains(r, "/blobs/") && !strings.Contains(r, digestOf(m.config)) {
			t.Errorf("asked again: %s", r)
		}
	}
	loaded, err := b.Load(digest)
	if err != nil || loaded.Digest != digest || len(loaded.Layers) != 2 || loaded.Config.WorkingDir != "/w" {
		t.Errorf("%+v, %v", loaded, err)
	}
	for ref, want := range map[string]error{
		"me/it:v2": ErrNotFound, "me/none:v1": ErrNotFound, "me/it@sha256:" + strings.Repeat("0", 64): ErrNotFound,
		"me/it@sha512:" + strings.Repeat("0", 128): ErrUnsupported, "ME/it": ErrMalformed, "me/it:" + strings.Repeat("x", 600): ErrMalformed, "a b": ErrMalformed,
	} {
		if _, err := b.Fetch(t.Context(), s.image(ref), amd64, nil); !errors.Is(err, want) {
			t.Errorf("%.60s: %v", ref, err)
		}
	}
	if _, err := b.Fetch(t.Context(), s.image("me/it:v1"), Platform{OS: "linux", Arch: "arm64"}, nil); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "linux/amd64") {
		t.Errorf("another platform: %v", err)
	}
}

// TestRegistryAuth takes credentials from docker's config, plain and by a helper, and says so when there are none.
func TestRegistryAuth(t *testing.T) {
	s := newServer(t, true)
	s.auth = true
	s.push(t, "me/it", "v1", someImage(t))
	fetch := func() error {
		_, err := Open(t.TempDir()).Fetch(t.Context(), s.image("me/it:v1"), amd64, nil)
		return err
	}
	if err := fetch(); !errors.Is(err, ErrDenied) {
		t.Errorf("without credentials: %v", err)
	}
	config := filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json")
	for pass, want := range map[string]error{"sesame": nil, "wrong": ErrDenied} {
		auth := base64.StdEncoding.EncodeToString([]byte("reader:" + pass))
		writeFile(t, config, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, s.host, auth))
		if err := fetch(); !errors.Is(err, want) {
			t.Errorf("password %s: %v", pass, err)
		}
	}
	helper := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = %q ] && echo '{\"ServerURL\":\"%s\",\"Username\":\"reader\",\"Secret\":\"sesame\"}'\n", s.host, s.host)
	if err := os.WriteFile(filepath.Join(helper, "docker-credential-carreltest"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", helper+string(os.PathListSeparator)+os.Getenv("PATH"))
	writeFile(t, config, fmt.Appendf(nil, `{"credHelpers":{%q:"carreltest"}}`, s.host))
	if err := fetch(); err != nil {
		t.Errorf("by a helper: %v", err)
	}
	writeFile(t, config, []byte(`{"credHelpers":`))
	if err := fetch(); err == nil {
		t.Error("a broken config is taken for none")
	}
}

// TestRegistryTLS: unknown roots and plain HTTP are refused, the latter unless it is asked for and on loopback.
func TestRegistryTLS(t *testing.T) {
	s := newServer(t, true)
	s.push(t, "me/it", "v1", someImage(t))
	if _, err := Open(t.TempDir()).Fetch(t.Context(), Registry(s.host+"/me/it:v1", RegistryOptions{}), amd64, nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown roots: %v", err)
	}
	plain := newServer(t, false)
	plain.push(t, "me/it", "v1", someImage(t))
	plain.requests()
	if _, err := Open(t.TempDir()).Fetch(t.Context(), Registry(plain.host+"/me/it:v1", RegistryOptions{}), amd64, nil); err == nil {
		t.Error("plain HTTP that nobody asked for")
	}
	if seen := plain.requests(); len(seen) > 0 {
		t.Errorf("sent without TLS: %v", seen)
	}
	if _, err := Open(t.TempDir()).Fetch(t.Context(), Registry(plain.host+"/me/it:v1", RegistryOptions{PlainHTTP: true}), amd64, nil); err != nil {
		t.Errorf("plain HTTP on loopback: %v", err)
	}
	g := &guarded{next: http.DefaultTransport, registry: "192.0.2.1:5000", plain: true}
	req, _ := http.NewRequest("GET", "http://192.0.2.1:5000/v2/", nil)
	if _, err := g.RoundTrip(req); !errors.Is(err, errForbidden) {
		t.Errorf("plain HTTP elsewhere: %v", err)
	}
}

// TestRegistrySendsUsOn: to other hosts at public addresses only, whether by a redirect or by a token's realm.
func TestRegistrySendsUsOn(t *testing.T) {
	var hits atomic.Int32
	victim := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		fmt.Fprint(w, `{"token":"x"}`)
	}))
	defer victim.Close()
	victim.Config.ErrorLog = log.New(io.Discard, "", 0)
	port := victim.URL[strings.LastIndex(victim.URL, ":")+1:]
	s := newServer(t, true)
	s.push(t, "me/it", "v1", someImage(t))
	for _, to := range []string{"https://127.0.0.1:" + port, "https://localhost:" + port, "https://[::1]:" + port, "https://[::ffff:127.0.0.1]:" + port,
		"https://169.254.169.254", "https://10.0.0.1", "http://127.0.0.1:" + port, "file:///etc/passwd", "https://0.0.0.0:" + port, "https://2130706433:" + port} {
		for how, before := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
			"redirect": func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/blobs/") {
					return false
				}
				http.Redirect(w, r, to+"/x", http.StatusTemporaryRedirect)
				return true
			},
			"realm": func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, to))
				w.WriteHeader(http.StatusUnauthorized)
				return true
			},
		} {
			s.before = before
			if _, err := Open(t.TempDir()).Fetch(t.Context(), s.image("me/it:v1"), amd64, nil); err == nil {
				t.Errorf("%s to %s: followed", how, to)
			}
		}
	}
	if n := hits.Load(); n > 0 {
		t.Errorf("the neighbour was asked %d times", n)
	}
	// The control: to itself, a registry may redirect; and the neighbour does answer.
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || r.URL.RawQuery != "" {
			return false
		}
		http.Redirect(w, r, r.URL.Path+"?again", http.StatusTemporaryRedirect)
		return true
	}
	if _, err := Open(t.TempDir()).Fetch(t.Context(), s.image("me/it:v1"), amd64, nil); err != nil {
		t.Errorf("a redirect to itself: %v", err)
	}
	if resp, err := victim.Client().Get(victim.URL); err != nil || hits.Load() != 1 {
		t.Errorf("%v", err)
	} else {
		resp.Body.Close()
	}
	for addr, ok := range map[string]bool{"1.1.1.1:443": true, "[2606:4700::1111]:443": true, "127.0.0.1:443": false, "[::ffff:10.0.0.1]:443": false, "100.100.100.200:80": false,
		"[64:ff9b::a9fe:a9fe]:80": false, "[fe80::1%eth0]:80": false, "[fd00:ec2::254]:80": false, "0.0.0.0:80": false, "[2002:7f00:1::]:80": false, "255.255.255.255:80": false, "x": false} {
		if err := publicOnly("tcp", addr, nil); (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// TestResume has servers cut, lie about ranges, change the file, answer with all of it, or be busy:
// what lands in the store is the blob or nothing.
func TestResume(t *testing.T) {
	body := strings.Repeat("0123456789", 5000)
	m := imageOf(t, "", nil, layerOf(t, e{name: "f", body: body}))
	layer := m.blobs[func() string { d, _ := parseManifest(m.manifest); return d.Layers[0].Digest }()]
	half := len(layer) / 2
	rng := func(r *http.Request) (off int) {
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &off)
		return off
	}
	send := func(w http.ResponseWriter, code int, etag string, from, said int, b []byte) {
		w.Header().Set("ETag", etag)
		if code == http.StatusPartialContent {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", said, len(layer)-1, len(layer)))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(layer)-from))
		w.WriteHeader(code)
		w.Write(b)
	}
	type answer func(w http.ResponseWriter, r *http.Request, n int)
	honest := func(w http.ResponseWriter, r *http.Request) {
		if off := rng(r); off > 0 {
			send(w, 206, `"a"`, off, off, layer[off:])
			return
		}
		send(w, 200, `"a"`, 0, 0, layer)
	}
	cut := func(at int) answer {
		return func(w http.ResponseWriter, r *http.Request, n int) {
			if n == 0 {
				send(w, 200, `"a"`, 0, 0, layer[:at])
				return
			}
			honest(w, r)
		}
	}
	then := func(f func(w http.ResponseWriter, r *http.Request, n int)) answer {
		return func(w http.ResponseWriter, r *http.Request, n int) {
			if n == 0 {
				send(w, 200, `"a"`, 0, 0, layer[:half])
				return
			}
			f(w, r, n)
		}
	}
	type outcome struct {
		answer answer
		want   error
		asked  int // requests for the layer; 0: any
	}
	cases := map[string]outcome{
		"whole":       {func(w http.ResponseWriter, r *http.Request, n int) { honest(w, r) }, nil, 1},
		"200 for 206": {then(func(w http.ResponseWriter, r *http.Request, n int) { send(w, 200, `"a"`, 0, 0, layer) }), nil, 2},
		"another range": {then(func(w http.ResponseWriter, r *http.Request, n int) {
			if rng(r) > 0 {
				send(w, 206, `"a"`, half-10, half-10, layer[half-10:])
				return
			}
			honest(w, r)
		}), nil, 3},
		"a range that lies": {then(func(w http.ResponseWriter, r *http.Request, n int) {
			if off := rng(r); off > 0 {
				send(w, 206, `"a"`, off, off, append(bytes.Repeat([]byte("x"), 100), layer[off+100:]...))
				return
			}
			honest(w, r)
		}), ErrDamaged, 0},
		"another ETag": {then(func(w http.ResponseWriter, r *http.Request, n int) {
			if off := rng(r); off > 0 {
				send(w, 206, `"b"`, off, off, bytes.Repeat([]byte("x"), len(layer)-off))
				return
			}
			honest(w, r)
		}), nil, 3},
		"416": {then(func(w http.ResponseWriter, r *http.Request, n int) {
			if rng(r) > 0 {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			honest(w, r)
		}), nil, 3},
		"busy at first": {func(w http.ResponseWriter, r *http.Request, n int) {
			if n < 2 {
				w.WriteHeader([]int{503, 429}[n])
				return
			}
			honest(w, r)
		}, nil, 3},
		"busy for ever": {func(w http.ResponseWriter, r *http.Request, n int) { w.WriteHeader(500) }, errTemporary, tries},
		"forbidden":     {func(w http.ResponseWriter, r *http.Request, n int) { w.WriteHeader(403) }, ErrDenied, 1},
		"gone":          {func(w http.ResponseWriter, r *http.Request, n int) { w.WriteHeader(404) }, ErrNotFound, 1},
		"206 for 200":   {func(w http.ResponseWriter, r *http.Request, n int) { send(w, 206, "", 0, 0, layer) }, errRange, 1},
		"other bytes":   {func(w http.ResponseWriter, r *http.Request, n int) { w.Write(bytes.Repeat([]byte("x"), len(layer))) }, ErrDamaged, 1},
		"too long, honestly": {func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("Content-Length", fmt.Sprint(len(layer)+1))
			w.Write(append(bytes.Clone(layer), 'x'))
		}, ErrDamaged, 1},
		"too long, chunked": {func(w http.ResponseWriter, r *http.Request, n int) {
			w.(http.Flusher).Flush()
			w.Write(append(bytes.Clone(layer), 'x'))
		}, ErrDamaged, 1},
		"too short, chunked": {func(w http.ResponseWriter, r *http.Request, n int) { w.(http.Flusher).Flush(); w.Write(layer[:half]) }, errTemporary, 0},
	}
	for i := range 100 {
		cases[fmt.Sprintf("cut at %d %%", i)] = outcome{cut(len(layer) * i / 100), nil, 2}
	}
	s := newServer(t, true)
	var mu sync.Mutex
	asked := map[string]int{}
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		name, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
		if !strings.HasSuffix(rest, digestOf(layer)) {
			return false
		}
		mu.Lock()
		n := asked[name]
		asked[name]++
		mu.Unlock()
		for what, c := range cases {
			if repoName(what) == name {
				c.answer(w, r, n)
			}
		}
		return true
	}
	for what := range cases {
		s.push(t, repoName(what), "v1", m)
	}
	var all sync.WaitGroup // at once, as they wait between tries
	for what, c := range cases {
		b := Open(t.TempDir())
		all.Go(func() {
			_, err := b.Fetch(context.Background(), s.image(repoName(what)+":v1"), amd64, nil)
			if !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", what, err, c.want)
			}
			mu.Lock()
			n := asked[repoName(what)]
			mu.Unlock()
			if c.asked != 0 && n != c.asked {
				t.Errorf("%s: asked %d times, want %d", what, n, c.asked)
			}
			got, err := os.ReadFile(b.path(digestOf(layer)[len("sha256:"):]))
			if c.want == nil && !bytes.Equal(got, layer) {
				t.Errorf("%s: the store has %d bytes, %v", what, len(got), err)
			} else if c.want != nil && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: the store has %d bytes of it", what, len(got))
			}
		})
	}
	all.Wait()
}

func repoName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, strings.ToLower(s))
}
