package images

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// plant puts a small valid image into a store, as a build does.
func plant(t *testing.T, s *Store, name string) {
	t.Helper()
	dir := s.dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m := sample(name)
	for i := range m.Parts {
		p := &m.Parts[i]
		content := []byte(strings.Repeat(p.Name+" of "+name+"\n", 100))
		p.Size, p.SHA256 = int64(len(content)), fmt.Sprintf("%x", sha256.Sum256(content))
		if err := os.WriteFile(filepath.Join(dir, p.Name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	writeManifest(t, dir, m)
}

func sample(name string) *Manifest {
	h := fmt.Sprintf("%x", sha256.Sum256(nil))
	return &Manifest{
		Version: 1, Name: name, Created: "2026-01-02T03:04:05Z", Arch: "amd64", KernelVersion: "6.12.1-carrel",
		Parts: []Part{{Name: Kernel, SHA256: h, Size: 1, Compressed: true}, {Name: Initrd, SHA256: h, Size: 1}, {Name: Root, SHA256: h, Size: 1, Compressed: true}},
		Tools: []Item{{"git", "1:2.39"}}, Packages: []Item{{"libc6:amd64", "2.36-9+deb12u14"}}, RootUncompressed: 9,
		Inputs: Inputs{Kernel: h, Root: h, Agent: h, Initrd: 1},
	}
}

func writeManifest(t *testing.T, dir string, m *Manifest) {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, manifestName), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestGet(t *testing.T) {
	s := Open(t.TempDir())
	plant(t, s, "one")
	img, err := s.Get(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{img.Kernel, img.Initrd, img.Root} {
		if !filepath.IsAbs(p) {
			t.Errorf("%s is not absolute", p)
		}
		if _, err := os.Stat(p); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Get(t.Context(), "two"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "carrel image build two") {
		t.Errorf("Get of an absent image: %v, expected ErrNotFound with its cure", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "../one", "-x", "One", "a\x00b", strings.Repeat("a", 32), "é", "a.b", "a\n"} {
		if _, err := s.Get(t.Context(), name); !errors.Is(err, ErrName) {
			t.Errorf("Get(%q): %v, expected ErrName", name, err)
		}
	}
	if err := CheckName(strings.Repeat("a", 31)); err != nil {
		t.Error(err)
	}
}

// Each damage is found by Get, and Get is content before it and after it is taken back.
func TestDamage(t *testing.T) {
	for _, part := range []string{Kernel, Initrd, Root} {
		damages := map[string]func(path string, content []byte) error{
			"one bit": func(path string, b []byte) error {
				b[len(b)/2] ^= 1
				return os.WriteFile(path, b, 0o600)
			},
			"cut":      func(path string, b []byte) error { return os.WriteFile(path, b[:len(b)-1], 0o600) },
			"grown":    func(path string, b []byte) error { return os.WriteFile(path, append(b, 0), 0o600) },
			"gone":     func(path string, _ []byte) error { return os.Remove(path) },
			"a folder": func(path string, _ []byte) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		}
		maps.Copy(damages, hostDamages)
		for what, damage := range damages {
			t.Run(part+"/"+what, func(t *testing.T) {
				s := Open(t.TempDir())
				plant(t, s, "one")
				if _, err := s.Get(t.Context(), "one"); err != nil {
					t.Fatalf("before: %v", err)
				}
				path := filepath.Join(s.dir("one"), part)
				content, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := damage(path, append([]byte(nil), content...)); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Get(t.Context(), "one"); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), part) {
					t.Errorf("Get: %v, expected ErrDamaged that names %s", err, part)
				}
				if err := s.Verify(t.Context(), "one"); !errors.Is(err, ErrDamaged) {
					t.Errorf("Verify: %v, expected ErrDamaged", err)
				}
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, content, 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Get(t.Context(), "one"); err != nil {
					t.Errorf("taken back: %v", err)
				}
			})
		}
	}
}

func TestListAndRemove(t *testing.T) {
	s := Open(t.TempDir())
	if all, err := s.List(t.Context()); err != nil || len(all) != 0 {
		t.Fatalf("List of no store: %v, %v", all, err)
	}
	plant(t, s, "beta")
	plant(t, s, "alpha")
	plant(t, s, "broken")
	if err := os.WriteFile(filepath.Join(s.dir("broken"), manifestName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := s.List(t.Context())
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "broken") {
		t.Errorf("List: %v, expected ErrDamaged that names broken", err)
	}
	if len(all) != 2 || all[0].Name != "alpha" || all[1].Name != "beta" {
		t.Errorf("List: %v", all)
	}
	if err := s.Remove(t.Context(), "broken"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(t.Context(), "alpha"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(t.Context(), "alpha"); !errors.Is(err, ErrNotFound) {
		t.Errorf("second Remove: %v, expected ErrNotFound", err)
	}
	if all, err := s.List(t.Context()); err != nil || len(all) != 1 || all[0].Name != "beta" {
		t.Errorf("List: %v, %v", all, err)
	}
}

func TestGetEndsWithItsContext(t *testing.T) {
	s := Open(t.TempDir())
	plant(t, s, "one")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Get(ctx, "one"); !errors.Is(err, context.Canceled) || errors.Is(err, ErrDamaged) {
		t.Errorf("Get: %v, expected only the context's error", err)
	}
}
