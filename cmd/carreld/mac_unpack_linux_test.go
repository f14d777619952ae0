package main

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/carrel-vm/carrel/images"
)

// TestMacUnpack: layers are parsed on a Mac in a process that entered a sandbox,
// and the root that it writes is the one that a process without one writes.
// Without the tool, or within none that holds, no image is made.
func TestMacUnpack(t *testing.T) {
	bin := macBinaries(t)
	from := smallLayout(t)
	root := func(command func(context.Context) *exec.Cmd) ([]byte, error) {
		store := images.Open(t.TempDir())
		if command != nil {
			store = store.WithUnpacker(images.Unpacker{Command: command, Start: startUnpack})
		}
		img, _, err := store.Import(t.Context(), from, "", nil)
		if err != nil {
			return nil, err
		}
		return os.ReadFile(img.Root)
	}
	want, err := root(nil)
	if err != nil {
		t.Fatal(err)
	}
	for which, say := range map[string]string{"missing": "enter the sandbox", "none": "verify the sandbox", "good": ""} {
		at := filepath.Join(bin, "sandbox-exec")
		os.Remove(at)
		if which != "missing" {
			if err := os.Symlink("sandbox-exec."+which, at); err != nil {
				t.Fatal(err)
			}
		}
		got, err := root(unpackCommand(filepath.Join(bin, "carreld")))
		switch {
		case say == "" && (err != nil || !bytes.Equal(got, want)):
			t.Errorf("sandbox-exec %s: %v, and a root of %d bytes; expected %d", which, err, len(got), len(want))
		case say != "" && (err == nil || !strings.Contains(err.Error(), say)):
			t.Errorf("sandbox-exec %s: %v, expected %q", which, err, say)
		}
	}
}

// smallLayout is an image of one layer, as a folder.
func smallLayout(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"bin/tool", "etc/passwd"} {
		body := strings.Repeat(name+"\n", 1000)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c.OS, c.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	to, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := to.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return dir
}
