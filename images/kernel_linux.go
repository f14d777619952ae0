package images

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// BuildKernel builds the kernel for an architecture, "amd64" or "arm64", and returns its path. It is
// kept by the hash of its source and configuration, so that the next call, and an image's build, find it.
// Of o, Recipes and Progress count.
func (s *Store) BuildKernel(ctx context.Context, arch string, o BuildOptions) (string, error) {
	if arch != "amd64" && arch != "arm64" {
		return "", fmt.Errorf("build kernel: there is none for %.40q, only for amd64 and arm64", arch)
	}
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	lock, err := s.lockFile(ctx, func() {
		o.Progress(Event{Stage: "wait", Line: "another build is under way in " + s.cache})
	})
	if err != nil {
		return "", err
	}
	defer lock.Close()
	recipes, done, err := s.recipes(o.Recipes)
	if err != nil {
		return "", err
	}
	defer done()
	b := &builder{store: s, progress: o.Progress, lock: lock, arch: arch}
	e, err := b.kernel(ctx, recipes)
	if err != nil {
		return "", fmt.Errorf("build kernel for %s: %w", arch, err)
	}
	return filepath.Join(e.dir, Kernel), nil
}

// kernel is the kernel's entry.
func (b *builder) kernel(ctx context.Context, recipes string) (*entry, error) {
	return b.entry(ctx, b.kind("kernel"), filepath.Join(recipes, "kernel"), Kernel, "release")
}

// kind is where what a recipe makes lies. That of another architecture than the first lies by itself: who looks
// for any kernel to boot must not find it.
func (b *builder) kind(recipe string) string {
	if b.arch == "amd64" {
		return recipe
	}
	return recipe + "-" + b.arch
}

// recipes returns the folder of the recipes: dir, or if that is empty a private copy of those inside this
// program, which done removes.
func (s *Store) recipes(dir string) (_ string, done func(), err error) {
	if dir != "" {
		return dir, func() {}, nil
	}
	if dir, err = s.temp("recipes-"); err != nil {
		return "", nil, err
	}
	done = func() { _ = os.RemoveAll(dir) }
	if err := extractRecipes(dir); err != nil {
		done()
		return "", nil, fmt.Errorf("recipes: %w", err)
	}
	return dir, done, nil
}
