package images

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/carrel-vm/carrel/images/bundle"
	"github.com/carrel-vm/carrel/images/oci"
)

// TrustedKey is a key whose bundles are taken.
type TrustedKey struct {
	Name, ID string
	Path     string   // of its file; empty: it came with this program
	For      []string // the images that it may sign: names, beginnings with * after them, or *
}

func trustedKey(k bundle.Key) TrustedKey { return TrustedKey{k.Name, k.ID(), k.Path, k.For} }

// Keys lists the keys that are trusted.
func (s *Store) Keys() ([]TrustedKey, error) {
	keys, err := bundle.LoadKeys(s.trust)
	if err != nil {
		return nil, err
	}
	var all []TrustedKey
	for _, k := range keys {
		all = append(all, trustedKey(k))
	}
	return all, nil
}

// TrustKey takes from now on what the key of a file has signed, of the images that are said: names, beginnings of names
// with * after them, or * for any. Without a name it is called as the file.
func (s *Store) TrustKey(file, name string, images []string) (TrustedKey, error) {
	k, err := bundle.Trust(s.trust, file, name, images)
	if err != nil {
		return TrustedKey{}, err
	}
	return trustedKey(k), nil
}

// ForgetKey takes no more what a key has signed; images that it has signed no longer start.
func (s *Store) ForgetKey(name string) error { return bundle.Distrust(s.trust, name) }

// KeyAt is the pair of files at a path, if both are there.
func KeyAt(path string) (TrustedKey, error) {
	if fi, err := os.Lstat(path); err != nil {
		return TrustedKey{}, err
	} else if !fi.Mode().IsRegular() {
		return TrustedKey{}, fmt.Errorf("%s is no file", path)
	}
	f, err := oci.OpenRegular(path + ".pub")
	if err != nil {
		return TrustedKey{}, err
	}
	defer f.Close()
	const most = 64 << 10 // bytes; a public key has a few hundred
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return TrustedKey{}, err
	}
	pub, err := bundle.ParsePublic(b)
	if err != nil {
		return TrustedKey{}, err
	}
	return trustedKey(bundle.Key{Name: filepath.Base(path), Path: path, Public: pub}), nil
}

// CreateKey makes a pair of files to sign with: the private key at path, 0600, and the public one with
// .pub after it, 0644, since it is there to be handed on.
func CreateKey(path string) (TrustedKey, error) {
	private, public, err := bundle.NewKey()
	if err != nil {
		return TrustedKey{}, fmt.Errorf("make a key: %w", err)
	}
	// The public one first: a private one without it could be mistaken for a whole pair.
	for _, f := range []struct {
		path string
		b    []byte
		mode os.FileMode
	}{{path + ".pub", public, 0o644}, {path, private, 0o600}} {
		err := writeFile(f.path, func(w *os.File) error { _, err := w.Write(f.b); return errors.Join(err, w.Chmod(f.mode)) })
		if err != nil && f.path == path { // a public key whose private one nobody has would be mistaken for that of what is there
			err = errors.Join(err, os.Remove(path+".pub"))
		}
		if errors.Is(err, os.ErrExist) {
			return TrustedKey{}, fmt.Errorf("make a key: %s is there already (choose another name)", f.path)
		} else if err != nil {
			return TrustedKey{}, fmt.Errorf("make a key: %w", err)
		}
	}
	pub, err := bundle.ParsePublic(public)
	if err != nil {
		return TrustedKey{}, err
	}
	return trustedKey(bundle.Key{Name: filepath.Base(path), Path: path, Public: pub}), syncFolder(filepath.Dir(path))
}
