package images

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

// otherArch is one that is not this host's.
var otherArch = map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]

// Recipes that make of each part what it is for.
const (
	archKernel = "echo kernel $2 >$out/vmlinuz\necho 6.12-fake >$out/release\n"
	archRoot   = "echo root $2 >$out/root.erofs\necho 'git 1:2' >$out/packages\necho 'git 1:2' >$out/tools\necho 5 >$out/uncompressed\n"
)

// An image for another architecture has its own kernel, root and agent, lies beside this host's, takes the place of
// none, and starts no guest here.
func TestBuildOtherArch(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "cache"))
	recipes, counts := fakeRecipes(t, archKernel, archRoot)
	o := BuildOptions{Recipes: recipes, Agent: fakeAgent(t, "agent")}
	for range 2 {
		for name, arch := range map[string]string{"default": "", "default-other": otherArch} {
			o.Name, o.Arch = name, arch
			img, err := s.Build(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if arch == "" {
				arch = runtime.GOARCH
			}
			for file, want := range map[string]string{img.Kernel: "kernel " + arch, img.Root: "root " + arch} {
				if b, err := os.ReadFile(file); err != nil || string(b) != want+"\n" {
					t.Errorf("%s: %q, %v, expected %q", file, b, err, want)
				}
			}
			initrd, err := os.ReadFile(img.Initrd)
			if err != nil || !bytes.Contains(initrd, []byte("agent for "+arch)) {
				t.Errorf("the initrd of %s does not hold the agent for %s (%v)", name, arch, err)
			}
			if _, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(initrd))); err != nil {
				t.Error(err)
			}
			if err := s.Fits(img); img.Manifest.Arch != arch || errors.Is(err, ErrArch) != (arch != runtime.GOARCH) {
				t.Errorf("%s is for %s and fits: %v", name, img.Manifest.Arch, err)
			}
		}
	}
	if k, r := ran(t, counts, "kernel"), ran(t, counts, "default"); k != 2 || r != 2 {
		t.Errorf("recipes ran %d and %d times for two architectures", k, r)
	}
	for name, c := range map[string]struct{ name, arch, want string }{
		"in the other's place":     {"default", otherArch, "would take its place"},
		"in this host's place":     {"default-other", "", "would take its place"},
		"one that there is not":    {"default", "riscv64", "only for amd64 and arm64"},
		"one that is a way out":    {"default", "../amd64", "only for amd64 and arm64"},
		"one that ends a sentence": {"default", "arm64\n", "only for amd64 and arm64"},
	} {
		o.Name, o.Arch = c.name, c.arch
		if _, err := s.Build(t.Context(), o); !errors.Is(err, ErrArch) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, expected %q", name, err, c.want)
		}
	}
	if all, err := s.List(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("%d images, %v", len(all), err)
	}
}

// The agent must be for what the image is for.
func TestAgentForOtherArch(t *testing.T) {
	recipes, _ := fakeRecipes(t, archKernel, archRoot)
	agent := fakeAgent(t, "agent")
	fakeAgentFor(t, AgentFor(agent, otherArch), machines[runtime.GOARCH], "")
	s := Open(t.TempDir())
	o := BuildOptions{Name: "x", Arch: otherArch, Recipes: recipes, Agent: agent}
	if _, err := s.Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "expected "+machines[otherArch].String()) {
		t.Errorf("an agent of the wrong architecture: %v", err)
	}
	if err := os.Remove(AgentFor(agent, otherArch)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Build(t.Context(), o); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "make agent-"+otherArch) {
		t.Errorf("no agent: %v", err)
	}
	fakeAgentFor(t, AgentFor(agent, otherArch), machines[otherArch], "")
	if _, err := s.Build(t.Context(), o); err != nil {
		t.Error(err)
	}
	if elf.EM_AARCH64 != machines["arm64"] {
		t.Error("arm64 is not AArch64")
	}
}
