package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"

	"github.com/carrel-vm/carrel/images/oci"
)

// entry is one thing that a recipe made: a folder of the cache under the hash of everything that
// went into it.
type entry struct {
	key, dir string
	files    map[string]madeFile
}

// madeFile is one file of an entry. It is checked before use: an entry that a full disk
// or a stray write has damaged is made again, instead of being put in an image.
type madeFile struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

const madeName = "made.json"

// An entry that no image names and no build has used for this long is deleted.
const keepUnused = 14 * 24 * time.Hour

// builder runs recipes for one build.
type builder struct {
	store    *Store
	progress func(Event)
	lock     *os.File
	arch     string // what is built for, as GOARCH
}

// entry returns what the recipe in dir makes, from the cache or by running it. The recipe is
// dir/build: "build --inputs ARCH" prints everything outside dir that decides the result, and
// "build OUT ARCH" makes the files named by outputs in the empty folder OUT.
func (b *builder) entry(ctx context.Context, kind, dir string, outputs ...string) (*entry, error) {
	inputs, err := b.inputs(ctx, kind, dir)
	if err != nil {
		return nil, err
	}
	key, err := recipeKey(b.arch, dir, inputs)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	e := &entry{key: key, dir: filepath.Join(b.store.cache, kind, key)}
	if err := e.load(ctx, outputs); err == nil {
		now := time.Now()
		_ = os.Chtimes(e.dir, now, now) // its last use; see prune
		b.progress(Event{Stage: kind, Done: 1, Total: 1, Line: "cached"})
		return e, nil
	} else if ctx.Err() != nil {
		return nil, ctx.Err()
	} else if !errors.Is(err, os.ErrNotExist) {
		b.progress(Event{Stage: kind, Line: plain("cache is damaged and made anew: " + err.Error())})
	}
	tmp, err := b.store.temp(kind + "-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "out")
	if err := os.Mkdir(out, 0o700); err != nil {
		return nil, err
	}
	if err := b.run(ctx, kind, dir, out); err != nil {
		return nil, err
	}
	if err := finish(ctx, out, outputs); err != nil {
		return nil, fmt.Errorf("%s: the recipe's result: %w", kind, err)
	}
	if err := os.MkdirAll(filepath.Dir(e.dir), 0o700); err != nil {
		return nil, err
	}
	if err := replace(out, e.dir); err != nil {
		return nil, err
	}
	if err := e.load(ctx, outputs); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return e, nil
}

// recipeKey hashes the recipe's files by name and content, its inputs, and the architecture.
func recipeKey(arch, dir, inputs string) (string, error) {
	var names []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	sort.Strings(names)
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%q\n", arch, inputs)
	for _, path := range names {
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return "", err
		}
		b, err := readSmall(path, maxManifest)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%q %x\n", filepath.ToSlash(rel), sha256.Sum256(b))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// finish writes down what was made, and removes what nobody asked for.
func finish(ctx context.Context, out string, outputs []string) error {
	files := map[string]madeFile{}
	for _, name := range outputs {
		path := filepath.Join(out, name)
		sum, size, err := hashFile(ctx, path)
		if err != nil {
			return err
		}
		if size == 0 {
			return fmt.Errorf("%s is empty", name)
		}
		files[name] = madeFile{SHA256: sum, Size: size}
		if err := errors.Join(os.Chmod(path, 0o600), syncPath(path)); err != nil {
			return err
		}
	}
	made, err := os.ReadDir(out)
	if err != nil {
		return err
	}
	for _, d := range made {
		if _, ok := files[d.Name()]; !ok {
			if err := os.RemoveAll(filepath.Join(out, d.Name())); err != nil {
				return err
			}
		}
	}
	text, err := json.Marshal(files)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(out, madeName), func(f *os.File) error { _, err := f.Write(text); return err })
}

// load checks every file of the entry against what was written down when it was made.
func (e *entry) load(ctx context.Context, outputs []string) error {
	b, err := readSmall(filepath.Join(e.dir, madeName), 1<<16)
	if err != nil {
		return err
	}
	files := map[string]madeFile{}
	if err := json.Unmarshal(b, &files); err != nil {
		return fmt.Errorf("%s: %w", madeName, err)
	}
	for _, name := range outputs {
		sum, size, err := hashFile(ctx, filepath.Join(e.dir, name))
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is gone", name)
		} else if err != nil {
			return err
		}
		if got := (madeFile{SHA256: sum, Size: size}); got != files[name] {
			return fmt.Errorf("%s: sha256 %s, expected %s", name, sum, files[name].SHA256)
		}
	}
	e.files = files
	return nil
}

// prune deletes entries that no image names and that have long been unused. What it cannot
// delete costs disk space only, so it reports nothing.
func (s *Store) prune(now time.Time) {
	used := map[string]bool{}
	all, err := s.List(context.Background())
	if err != nil {
		return // an image that cannot be read may need any of them
	}
	for _, img := range all {
		used[img.Manifest.Inputs.Kernel], used[img.Manifest.Inputs.Root] = true, true
	}
	for _, kind := range []string{"kernel", "kernel-arm64", "root", "root-arm64"} {
		dirs, _ := os.ReadDir(filepath.Join(s.cache, kind))
		for _, d := range dirs {
			fi, err := d.Info()
			if err != nil || !isHash(d.Name()) || used[d.Name()] || now.Sub(fi.ModTime()) < keepUnused {
				continue
			}
			_ = os.RemoveAll(filepath.Join(s.cache, kind, d.Name()))
		}
	}
}

func syncPath(path string) error {
	f, err := oci.OpenRegular(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
