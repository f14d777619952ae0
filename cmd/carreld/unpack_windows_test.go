package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/images"
)

// TestUnpackHere: layers are parsed in a process that confines itself. Where that does not hold, as under Wine, or when
// the process dies, no image is made; one that does not confine itself, which only this test has, writes the root that
// the daemon would have written, and refuses what is hostile.
func TestUnpackHere(t *testing.T) {
	switch os.Getenv("UNPACK_TEST") {
	case "confined":
		if err := runUnpack(nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case "bare":
		given := images.Given{Request: inherit.File(3, "request"), Answers: inherit.File(4, "answers"), Root: inherit.File(5, "root"), Spool: inherit.File(6, "spool")}
		if err := images.Unpack(t.Context(), given, images.Confinement{Confine: func(string) error { return nil }}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case "die":
		fmt.Fprintln(os.Stderr, "it hurts")
		os.Exit(3)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	good, hostile := imageFolder(t, "etc/passwd"), imageFolder(t, "../etc/passwd")
	root := func(how, from string) ([]byte, error) {
		store := images.Open(t.TempDir())
		if how != "" {
			store = store.WithUnpacker(images.Unpacker{Start: startUnpack, Command: func(ctx context.Context) *exec.Cmd {
				cmd := unpackCommand(self)(ctx)
				cmd.Args = []string{self, "-test.run=^TestUnpackHere$"}
				cmd.Env = append(os.Environ(), "UNPACK_TEST="+how)
				return cmd
			}})
		}
		img, _, err := store.Import(t.Context(), from, "", nil)
		if err != nil {
			return nil, err
		}
		return os.ReadFile(img.Root)
	}
	want, err := root("", good)
	if err != nil {
		t.Fatal(err)
	}
	same := []string{"bare"}
	if underWine {
		if _, err := root("confined", good); err == nil || !strings.Contains(err.Error(), "could not give up what it does not need") {
			t.Errorf("Wine confines nothing, and the import says %v", err)
		}
	} else {
		same = append(same, "confined")
	}
	for _, how := range same {
		if got, err := root(how, good); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, and a root of %d bytes; expected %d", how, err, len(got), len(want))
		}
		if _, err := root(how, hostile); err == nil || !strings.Contains(err.Error(), `the path "../etc/passwd" has a ".."`) {
			t.Errorf("%s: a path that leads out: %v", how, err)
		}
	}
	if _, err := root("die", good); err == nil || !strings.Contains(err.Error(), `ended without an answer: exit status 3: "it hurts`) {
		t.Errorf("a process that dies: %v", err)
	}
}

// imageFolder is an image of one layer with one file, as an OCI layout.
func imageFolder(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(at string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, at), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	type object = map[string]any
	blob := func(kind string, b []byte) object {
		sum := sha256.Sum256(b)
		write(filepath.Join("blobs", "sha256", hex.EncodeToString(sum[:])), b)
		return object{"mediaType": "application/vnd.oci.image." + kind, "digest": "sha256:" + hex.EncodeToString(sum[:]), "size": len(b)}
	}
	text := func(o object) []byte {
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := strings.Repeat("a line\n", 1000)
	err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))})
	if err == nil {
		_, err = w.Write([]byte(body))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	layer := blob("layer.v1.tar", b.Bytes())
	config := blob("config.v1+json", text(object{"os": "linux", "architecture": "amd64", "rootfs": object{"type": "layers", "diff_ids": []any{layer["digest"]}}}))
	manifest := blob("manifest.v1+json", text(object{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []any{layer}}))
	write("index.json", text(object{"schemaVersion": 2, "manifests": []any{manifest}}))
	write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return dir
}
