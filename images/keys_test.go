package images

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// A private key that is there already is not given the public one of another pair.
func TestCreateKeyBesideAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateKey(path); err == nil {
		t.Fatal("a key was replaced")
	}
	if _, err := os.Lstat(path + ".pub"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a public key that fits none was left beside it: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Errorf("%q, %v", b, err)
	}
}

// The private key is its owner's alone; the public one is there to be handed on.
func TestKeyModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	path := filepath.Join(t.TempDir(), "key")
	if _, err := CreateKey(path); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]os.FileMode{path: 0o600, path + ".pub": 0o644} {
		if fi, err := os.Stat(p); err != nil {
			t.Error(err)
		} else if fi.Mode() != want {
			t.Errorf("%s: %v, want %v", p, fi.Mode(), want)
		}
	}
}
