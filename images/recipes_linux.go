package images

import (
	"embed"
	"io/fs"
	"os"
	"path/filepath"
)

// recipes are the kernel's and the default image's, inside the program, so that a daemon that was
// installed by itself can build.
//
//go:embed kernel default
var recipes embed.FS

func extractRecipes(dir string) error {
	return fs.WalkDir(recipes, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, filepath.FromSlash(path))
		if d.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		b, err := recipes.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o600)
	})
}
