package images

import (
	"errors"
	"os"
	"path/filepath"
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
