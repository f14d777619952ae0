package bundle

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Key is a key whose signatures are taken.
type Key struct {
	Name   string // of its file, without .pem
	Path   string // of its file; empty: it is one of Released
	Public ed25519.PublicKey
	For    Names // of the images that it may sign
}

// ID tells keys apart for people: the first half of the SHA-256 of the key as SubjectPublicKeyInfo.
func (k Key) ID() string {
	der, err := x509.MarshalPKIXPublicKey(k.Public)
	if err != nil {
		return "unknown" // not with an ed25519 key
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:16])
}

// Released are the keys of Carrel's own releases, trusted without a file. There is none yet.
var Released []Key

// Bounds of the folder of trusted keys.
const (
	maxKeys    = 64
	maxKeyFile = 4 << 10 // bytes; a key has 113
)

// The PEM blocks of keys, as openssl and cosign have them (RFC 8410, section 7; RFC 7468).
const (
	publicBlock  = "PUBLIC KEY"
	privateBlock = "PRIVATE KEY"
)

// NewKey returns a new pair, each half as a PEM file's content.
func NewKey() (private, public []byte, err error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	p8, err1 := x509.MarshalPKCS8PrivateKey(priv)
	pk, err2 := x509.MarshalPKIXPublicKey(pub)
	if err := errors.Join(err1, err2); err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: p8}), pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: pk}), nil
}

// ParsePublic reads a public key's file: one PEM block of an ed25519 key. Text before it is a comment.
func ParsePublic(b []byte) (ed25519.PublicKey, error) {
	der, err := block(b, publicBlock)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	pub, ok := k.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("public key: it is a %T, and ed25519 is what is taken", k)
	}
	return pub, nil
}

// ParsePrivate reads a private key's file.
func ParsePrivate(b []byte) (ed25519.PrivateKey, error) {
	der, err := block(b, privateBlock)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("private key: it cannot be read") // what it holds stays out of messages
	}
	priv, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("private key: it is a %T, and ed25519 is what is taken", k)
	}
	return priv, nil
}

func block(b []byte, kind string) ([]byte, error) {
	if len(b) > maxKeyFile {
		return nil, fmt.Errorf("key: more than %d bytes", maxKeyFile)
	}
	p, rest := pem.Decode(b)
	if p == nil || p.Type != kind || strings.TrimSpace(string(rest)) != "" {
		return nil, fmt.Errorf("key: one PEM block %q was to be in it, and nothing after it", kind)
	}
	return p.Bytes, nil
}

var validKeyName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

const keySuffix = ".pem"

// LoadKeys returns the keys that are trusted: those of the folder, one PEM file each, and Released. A
// folder that is not there is empty. A file that cannot be read is an error, not a key less: the one who
// put it there would wonder.
func LoadKeys(dir string) ([]Key, error) {
	keys := append([]Key(nil), Released...)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("trusted keys: %w", err)
	}
	if len(entries) > maxKeys {
		return nil, fmt.Errorf("trusted keys: more than %d files in %s", maxKeys, dir)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), keySuffix)
		if !ok || !validKeyName.MatchString(name) {
			continue // a README, a backup
		}
		path := filepath.Join(dir, e.Name())
		b, err := readKeyFile(path)
		if err != nil {
			return nil, fmt.Errorf("trusted keys: %w", err)
		}
		pub, err := ParsePublic(b)
		if err != nil {
			return nil, fmt.Errorf("trusted keys: %s: %w (put a key there, or remove the file)", path, err)
		}
		names, err := namesOf(b)
		if err != nil {
			return nil, fmt.Errorf("trusted keys: %s: %w", path, err)
		}
		keys = append(keys, Key{Name: name, Path: path, Public: pub, For: names})
	}
	return keys, nil
}

// ReadPrivate reads a private key's file, which others may not read.
func ReadPrivate(path string) (ed25519.PrivateKey, error) {
	b, err := readKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("the key to sign with: %w (carrel image key new makes one)", err)
	}
	if fi, err := os.Stat(path); err != nil {
		return nil, err
	} else if modes && fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the key to sign with: %s has mode %04o, so that others may use it (chmod 600)", path, fi.Mode().Perm())
	}
	k, err := ParsePrivate(b)
	if err != nil {
		return nil, fmt.Errorf("the key to sign with: %s: %w", path, err)
	}
	return k, nil
}

// readKeyFile reads a small regular file; it may be reached through a link, as config folders often are.
func readKeyFile(path string) ([]byte, error) {
	fi, err := os.Stat(path) // before the open, which would wait for a FIFO's writer
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, maxKeyFile)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxKeyFile+1))
}

// Trust puts a public key's file into the folder of trusted keys, with the images that it may sign. A key of that
// name that is another is not replaced; of the same one the images are. Without a name it is called after its file.
func Trust(dir, file, name string, images Names) (Key, error) {
	if err := images.check(); err != nil {
		return Key{}, fmt.Errorf("trust a key: %w", err)
	}
	b, err := readKeyFile(file)
	if err != nil {
		return Key{}, fmt.Errorf("trust a key: %w", err)
	}
	pub, err := ParsePublic(b)
	if err != nil {
		return Key{}, fmt.Errorf("trust a key: %s: %w (a public key is wanted, such as carrel image key new writes beside the private one)", file, err)
	}
	if name == "" {
		name = strings.ToLower(filepath.Base(file))
		for _, suffix := range []string{keySuffix, ".pub", ".key"} {
			name = strings.TrimSuffix(name, suffix)
		}
	}
	if !validKeyName.MatchString(name) {
		return Key{}, fmt.Errorf("trust a key: %.40q is no name for it (--name NAME, of 1 to 31 of a-z, 0-9 and -)", name)
	}
	path := filepath.Join(dir, name+keySuffix)
	k := Key{Name: name, Path: path, Public: pub, For: images}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Key{}, fmt.Errorf("trust a key: %w", err)
	}
	known, err := LoadKeys(dir)
	if err != nil {
		return Key{}, err
	}
	for _, have := range known {
		if have.Name == name && !have.Public.Equal(pub) {
			return Key{}, fmt.Errorf("trust a key: another key is called %s already (give this one another name with --name, or carrel image key rm %s)", name, name)
		}
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return Key{}, err
	}
	if err := writeWhole(path, append(images.line(), pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: der})...)); err != nil {
		return Key{}, fmt.Errorf("trust a key: %w", err)
	}
	return k, nil
}

// Distrust takes a key out of the folder.
func Distrust(dir, name string) error {
	if !validKeyName.MatchString(name) {
		return fmt.Errorf("%.40q is no name of a key (carrel image key ls shows those that there are)", name)
	}
	err := os.Remove(filepath.Join(dir, name+keySuffix))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no key that is trusted is called %s (carrel image key ls shows those that there are)", name)
	}
	return err
}

// writeWhole writes a small file that is there wholly, and on the disk, or as it was before.
func writeWhole(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600
	if err != nil {
		return err
	}
	_, werr := f.Write(b)
	err = errors.Join(werr, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncFolder(filepath.Dir(path))
}
