package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// e is one entry of a layer; body goes into a regular file.
type e struct {
	name, body string
	kind       byte // default: a directory if name ends in a slash, else a regular file
	link       string
	mode       int64 // default 0755 and 0644
	uid, gid   int
	major      int64
	minor      int64
	xattrs     map[string]string // with their prefixes
	at         time.Time
}

// dir2000 is when all files of the tests were changed.
var dir2000 = time.Date(2000, 1, 2, 3, 4, 5, 0, time.UTC)

func layerOf(t testing.TB, entries ...e) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, x := range entries {
		h := &tar.Header{Name: x.name, Typeflag: x.kind, Linkname: x.link, Mode: x.mode, Uid: x.uid, Gid: x.gid,
			Devmajor: x.major, Devminor: x.minor, Size: int64(len(x.body)), ModTime: x.at, Format: tar.FormatPAX}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if x.name[len(x.name)-1] == '/' {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.ModTime.IsZero() {
			h.ModTime = dir2000
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		for k, v := range x.xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		if _, err := w.Write([]byte(x.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zstded(b []byte) []byte {
	var out bytes.Buffer
	w, _ := zstd.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

// made is an image that a test has built: its blobs by digest, its manifest's bytes.
type made struct {
	blobs    map[string][]byte
	manifest []byte
	config   []byte
}

var amd64 = Platform{OS: "linux", Arch: "amd64"}

// imageOf builds an image of tars, as they are (plain) or packed, with the config's "config" object.
func imageOf(t testing.TB, config string, pack func([]byte) []byte, tars ...[]byte) *made {
	t.Helper()
	m := &made{blobs: map[string][]byte{}}
	var diffs []string
	var layers []descriptor
	for _, tarred := range tars {
		blob, mediaType := tarred, typeLayer
		if pack != nil {
			blob, mediaType = pack(tarred), typeLayer+"+gzip"
		}
		diffs = append(diffs, digestOf(tarred))
		layers = append(layers, m.add(mediaType, blob))
	}
	if config == "" {
		config = "{}"
	}
	m.config = marshal(t, map[string]any{"os": "linux", "architecture": "amd64", "config": json.RawMessage(config), "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	m.manifest = marshal(t, map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "config": m.add(typeConfig, m.config), "layers": layers})
	m.add(typeManifest, m.manifest)
	return m
}

func (m *made) add(mediaType string, blob []byte) descriptor {
	d := descriptor{MediaType: mediaType, Digest: digestOf(blob), Size: int64(len(blob))}
	m.blobs[d.Digest] = blob
	return d
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// layoutOf writes an image as an OCI layout and returns its folder.
func layoutOf(t testing.TB, m *made, tag string) string {
	t.Helper()
	dir := t.TempDir()
	index := map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []any{map[string]any{
		"mediaType": typeManifest, "digest": digestOf(m.manifest), "size": len(m.manifest),
		"platform":    map[string]string{"os": "linux", "architecture": "amd64"},
		"annotations": map[string]string{"org.opencontainers.image.ref.name": tag},
	}}}
	writeFile(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	writeFile(t, filepath.Join(dir, "index.json"), marshal(t, index))
	for d, blob := range m.blobs {
		writeFile(t, filepath.Join(dir, "blobs", "sha256", d[len("sha256:"):]), blob)
	}
	return dir
}

func writeFile(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// rootOf fetches an image through a layout, writes its root and has fsck.erofs read every byte of it.
func rootOf(t testing.TB, m *made, lim Limits) (path string, stats Stats, err error) {
	t.Helper()
	b := Open(filepath.Join(t.TempDir(), "blobs"))
	img, err := b.Fetch(context.Background(), Layout(layoutOf(t, m, "it"), "it"), amd64, nil)
	if err != nil {
		return "", Stats{}, err
	}
	return writeRoot(t, b, img, lim)
}

func writeRoot(t testing.TB, b *Blobs, img *Image, lim Limits) (string, Stats, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "root.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tmp := func() string { left, _ := os.ReadDir(filepath.Join(b.dir, "tmp")); return fmt.Sprint(left) }
	before := tmp() // a process that was killed has left something, which Prune removes
	stats, err := b.WriteRoot(context.Background(), img, f, lim, nil)
	if after := tmp(); after != before {
		t.Errorf("%s stays in tmp, where %s was before", after, before)
	}
	if err != nil {
		return "", Stats{}, err
	}
	fsck(t, f.Name())
	return f.Name(), stats, nil
}

// fsck has the reference implementation read the whole image.
func fsck(t testing.TB, path string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		return // erofs-utils are Linux's; the same bytes are checked there (TestDeterministic)
	}
	if out, err := exec.Command("fsck.erofs", "--extract", path).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs (Debian package erofs-utils, scripts/setup): %v: %s", err, out)
	}
}
