//go:build unix

package images

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/images/oci"
)

// hostDamages are those that every user of this host can do, and not of every host.
var hostDamages = map[string]func(path string, content []byte) error{
	"a link to the same bytes": func(path string, _ []byte) error {
		return errors.Join(os.Rename(path, path+".real"), os.Symlink(path+".real", path))
	},
	"a fifo": func(path string, _ []byte) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) },
}

// The record spares the hash of an untouched root, and nothing that a program can do to the file
// gets past it: not even the same size with the old times put back.
func TestRecord(t *testing.T) {
	s := Open(t.TempDir())
	plant(t, s, "one")
	if _, err := s.Get(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	dir := s.dir("one")
	path := filepath.Join(dir, Root)
	if fi, err := os.Stat(filepath.Join(dir, recordName)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("record: %v, %v, expected mode 0600", fi, err)
	}
	// A record of another content for this very file: Get believes it (so it is what Get reads) …
	f, err := oci.OpenRegular(path)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identify(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.load("one")
	if err != nil {
		t.Fatal(err)
	}
	lying := m.Manifest
	lying.Parts[2].SHA256 = strings.Repeat("0", 64)
	writeManifest(t, dir, &lying)
	if err := writeRecord(dir, Root, id.record(lying.Parts[2].SHA256)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "one"); err != nil {
		t.Fatalf("Get hashed the root although its record matches: %v", err)
	}
	// … and Verify does not.
	if err := s.Verify(t.Context(), "one"); !errors.Is(err, ErrDamaged) {
		t.Fatalf("Verify: %v, expected ErrDamaged", err)
	}

	s = Open(t.TempDir())
	plant(t, s, "one")
	path = filepath.Join(s.dir("one"), Root)
	if _, err := s.Get(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("X"), 10); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Now(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "one"); !errors.Is(err, ErrDamaged) {
		t.Fatalf("Get of a root that changed under its old times: %v, expected ErrDamaged", err)
	}
}
