//go:build unix

package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/client"
)

// Links: Wine makes none, so Windows's own are not tried.

// What is no file stays as it is.
func TestSettingsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{dir, filepath.Join(dir, "link")} {
		if _, err := prepare(file, "mcpServers", anEntry, false); client.CodeOf(err) != "settings_unreadable" {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// A link stays one, and what somebody else wrote in between is not written over.
func TestSettingsLinkAndRace(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real.json"), filepath.Join(dir, "link.json")
	if err := os.WriteFile(real, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	late, err := prepare(link, "mcpServers", anEntry, false)
	if err != nil {
		t.Fatal(err)
	}
	e, err := prepare(link, "mcpServers", anEntry, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.write(); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(link); err != nil || fi.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link became %v, %v", fi.Mode(), err)
	}
	b, _ := os.ReadFile(real)
	entryIs(t, b, "mcpServers")
	if _, err := late.write(); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Errorf("a late write: %v", err)
	}
	if _, err := os.Stat(real + ".before-carrel.2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it left a copy: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".carrel-*"))
	if len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}
