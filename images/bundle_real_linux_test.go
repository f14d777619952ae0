package images

import (
	"bytes"
	"debug/elf"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

// builtStore is the one in which make has built this host's image and the one for arm64.
func builtStore() *Store {
	cache := os.Getenv("CARREL_CACHE")
	if home := os.Getenv("CARREL_HOME"); cache == "" && home != "" {
		cache = filepath.Join(home, "cache")
	}
	if dir, err := os.UserCacheDir(); cache == "" && err == nil {
		cache = filepath.Join(dir, "carrel")
	}
	return Open(cache)
}

// TestBundleBuilt: the images that were built for both architectures become one bundle; a host of each gets its own,
// whole, and under the name that was asked for.
func TestBundleBuilt(t *testing.T) {
	if testing.Short() {
		t.Skip("this needs built images, and room for them four times: make test runs it")
	}
	built := builtStore()
	names := []string{"default-" + otherArch, "default"}
	for _, name := range names {
		if _, err := built.Get(t.Context(), name); err != nil {
			t.Fatalf("%v: make image image-arm64", err)
		}
	}
	p := newPublisher(t)
	file := filepath.Join(t.TempDir(), "both.carrel.tar")
	out, err := built.ExportBundle(t.Context(), names, file, SignOptions{Key: p.key, As: "desk"})
	if err != nil {
		t.Fatal(err)
	}
	if out.Name != "desk" || !slices.Equal(out.Archs, []string{"amd64", "arm64"}) {
		t.Errorf("%+v", out)
	}
	for arch, name := range map[string]string{runtime.GOARCH: "default", otherArch: "default-" + otherArch} {
		s := newTaker(t, p)
		s.arch = arch
		img, err := s.ImportBundle(t.Context(), file, BundleOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(t.Context(), "desk"); err != nil {
			t.Error(err)
		}
		was, err := built.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if img.Name != "desk" || !slices.Equal(img.Manifest.Parts, was.Manifest.Parts) || !slices.Equal(img.Manifest.Packages, was.Manifest.Packages) {
			t.Errorf("%s: %s has other parts or packages than %s", arch, img.Name, name)
		}
		isFor(t, img, arch)
	}
}

// isFor looks into an image's kernel and initrd for what they are made for.
func isFor(t *testing.T, img *Image, arch string) {
	t.Helper()
	kernel, err := os.ReadFile(img.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	// Documentation/arch/arm64/booting.rst, Documentation/arch/x86/boot.rst
	magic := map[string]struct {
		at   int
		text string
	}{"arm64": {56, "ARM\x64"}, "amd64": {514, "HdrS"}}[arch]
	if !bytes.HasPrefix(kernel[magic.at:], []byte(magic.text)) {
		t.Errorf("%s: the kernel has %q at %d", arch, kernel[magic.at:magic.at+4], magic.at)
	}
	initrd, err := os.Open(img.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	defer initrd.Close()
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(initrd))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if r.Name != "init" {
			continue
		}
		e, err := elf.NewFile(io.NewSectionReader(r, 0, int64(r.FileSize)))
		if err != nil || e.Machine != machines[arch] {
			t.Errorf("%s: the agent: %v, %v", arch, e, err)
		}
		return
	}
	t.Errorf("%s: the initrd has no init", arch)
}
