package secret

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zalando/go-keyring"

	"github.com/carrel-vm/carrel/guest/place"
)

// TestCredentialManager runs the store against the Credential Manager.
func TestCredentialManager(t *testing.T) {
	ctx := t.Context()
	if ok, err := keychainAnswers(ctx); !ok || err != nil {
		t.Fatalf("the Credential Manager does not answer: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "config")
	if err := place.MakePrivate(dir); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	testStore(t, s, inKeychain)

	if _, err := s.Set(ctx, "npm", nil, []byte(value)); err != nil {
		t.Fatal(err)
	}
	x, err := s.load()
	if err != nil {
		t.Fatal(err)
	}
	at := x.at(x.find("npm")).Name
	if v, err := keyring.Get(service, at); err != nil || v != value {
		t.Errorf("the item in the Credential Manager: %v", err)
	}
	// Windows keeps 2,560 bytes, and a longer value is refused by that name.
	if _, err := s.Set(ctx, "npm", nil, []byte(strings.Repeat("x", 3000))); err == nil || !strings.Contains(err.Error(), "CARREL_SECRET_STORE=file") {
		t.Errorf("3,000 bytes: %v", err)
	}
	if values(t, s, "npm")[0] != value {
		t.Error("a value that was refused took the place of the one before")
	}
	if err := s.Remove(ctx, "npm"); err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.Get(service, at); !errors.Is(err, keyring.ErrNotFound) {
		t.Errorf("the value of a secret that was removed: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "secrets.age")); err == nil {
		t.Error("there is a file beside the Credential Manager")
	}
}
