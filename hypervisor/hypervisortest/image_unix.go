//go:build linux || darwin

package hypervisortest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

// Guest builds the conformance suite's guest program and returns its path.
func Guest(t testing.TB) string {
	t.Helper()
	return Program(t, "github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestprog")
}

// Agent builds the real agent and returns its path.
func Agent(t testing.TB) string {
	t.Helper()
	return Program(t, "github.com/carrel-vm/carrel/cmd/carrel-agent")
}

// BesideAgent is Agent with what macOS's driver starts it for, which that of Linux
// guests lacks.
func BesideAgent(t testing.TB) string {
	t.Helper()
	return ProgramFor(t, runtime.GOARCH, "github.com/carrel-vm/carrel/cmd/carrel-agent", "-tags=carrelbeside")
}

// Programs is the variable that names a folder with the programs, built
// before: for tests that run as a user who cannot build.
const Programs = "CARREL_TEST_PROGRAMS"

// Program builds one of our programs, static, and returns its path.
func Program(t testing.TB, pkg string) string {
	t.Helper()
	if dir := os.Getenv(Programs); dir != "" {
		return filepath.Join(dir, filepath.Base(pkg))
	}
	return ProgramFor(t, runtime.GOARCH, pkg)
}

// ProgramFor is Program for guests of another architecture, or built with more flags.
func ProgramFor(t testing.TB, arch, pkg string, flags ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(pkg))
	cmd := exec.Command("go", slices.Concat([]string{"build", "-ldflags=-s -w", "-o", out}, flags, []string{pkg})...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS=linux", "GOARCH="+arch)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, b)
	}
	return out
}

// Initrd packs one program as the init of an initrd and returns its path.
func Initrd(t testing.TB, program string) string {
	t.Helper()
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := cpio.Newc.Writer(&buf)
	records := []cpio.Record{
		cpio.Directory("dev", 0o755),
		// The kernel opens it for init before any devtmpfs is mounted.
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.StaticFile("init", string(b), 0o755),
	}
	if err := cpio.WriteRecords(w, records); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Kernel returns the kernel of the default image: $CARREL_TEST_KERNEL, or the
// newest in Carrel's cache. Tests that need a machine do not pass without one.
func Kernel(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("the third ring needs a built kernel and real machines: make test runs it")
	}
	if k := os.Getenv("CARREL_TEST_KERNEL"); k != "" {
		return k
	}
	return cachedKernel(t, "kernel", "make image, or set CARREL_TEST_KERNEL")
}

// KernelARM64 returns the newest kernel for that architecture in Carrel's cache.
func KernelARM64(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("the third ring needs a built kernel and emulated machines: make test runs it")
	}
	return cachedKernel(t, "kernel-arm64", "make kernel ARCH=arm64")
}

// ImageARM64 returns the parts of the image for that architecture in Carrel's cache.
func ImageARM64(t testing.TB) (kernel, initrd, root string) {
	t.Helper()
	if testing.Short() {
		t.Skip("the third ring needs a built image and emulated machines: make test runs it")
	}
	dir := filepath.Join(cacheDir(), "images", "default-arm64")
	for _, part := range []string{"vmlinuz", "initrd", "root.erofs"} {
		if _, err := os.Stat(filepath.Join(dir, part)); err != nil {
			t.Fatalf("%v: make image-arm64", err)
		}
	}
	return filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd"), filepath.Join(dir, "root.erofs")
}

// cacheDir is where Carrel keeps images.
func cacheDir() string {
	cache := os.Getenv("CARREL_CACHE")
	if home := os.Getenv("CARREL_HOME"); cache == "" && home != "" {
		cache = filepath.Join(home, "cache")
	}
	if dir, err := os.UserCacheDir(); cache == "" && err == nil {
		cache = filepath.Join(dir, "carrel")
	}
	return cache
}

func cachedKernel(t testing.TB, kind, cure string) string {
	t.Helper()
	cache := cacheDir()
	var newest string
	var when int64
	found, _ := filepath.Glob(filepath.Join(cache, kind, "*", "vmlinuz")) // the pattern is sound
	for _, f := range found {
		if fi, err := os.Stat(f); err == nil && fi.ModTime().UnixNano() > when {
			newest, when = f, fi.ModTime().UnixNano()
		}
	}
	if newest == "" {
		t.Fatalf("no kernel in %s/%s: %s", cache, kind, cure)
	}
	return newest
}
