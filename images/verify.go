package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/carrel-vm/carrel/images/oci"
)

// Get returns an image whose parts are what its manifest says. A part is hashed unless its file is
// to the kernel the very one that was hashed last; see record. Errors wrap ErrNotFound or ErrDamaged.
func (s *Store) Get(ctx context.Context, name string) (*Image, error) {
	return s.verify(ctx, name, false)
}

// Verify hashes every part of an image, whatever is remembered.
func (s *Store) Verify(ctx context.Context, name string) error {
	_, err := s.verify(ctx, name, true)
	return err
}

func (s *Store) verify(ctx context.Context, name string, full bool) (*Image, error) {
	img, err := s.load(name)
	if err != nil {
		return nil, err
	}
	if err := s.trusted(img); err != nil {
		return nil, err
	}
	if err := s.verifyParts(ctx, s.dir(name), img, full); err != nil {
		return nil, err
	}
	return img, nil
}

func (s *Store) verifyParts(ctx context.Context, dir string, img *Image, full bool) error {
	for _, p := range img.Manifest.Parts {
		err := s.verifyPart(ctx, dir, p, full)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return s.damagedAt(dir, img.Name, err)
		}
	}
	return nil
}

// load reads an image's manifest and nothing else.
func (s *Store) load(name string) (*Image, error) {
	if err := checkID(name); err != nil {
		return nil, err
	}
	return s.loadFrom(s.dir(name), name)
}

// loadFrom does the same with one that lies elsewhere.
func (s *Store) loadFrom(dir, name string) (*Image, error) {
	if fi, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, notFound(name)
	} else if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	} else if !fi.IsDir() {
		return nil, s.damagedAt(dir, name, fmt.Errorf("%s is not a folder", dir))
	}
	b, err := readSmall(filepath.Join(dir, manifestName), maxManifest)
	if err != nil {
		return nil, s.damagedAt(dir, name, err)
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, s.damagedAt(dir, name, err)
	}
	if m.Name != name {
		return nil, s.damagedAt(dir, name, fmt.Errorf("manifest: made for image %s", m.Name))
	}
	img := &Image{Name: name, Manifest: *m, Root: filepath.Join(dir, Root)}
	if m.Version == bundledVersion {
		if img.Bundle, err = loadBundle(dir, m, b); err != nil {
			return nil, s.damagedAt(dir, name, err)
		}
	}
	if m.Origin == nil {
		img.Kernel, img.Initrd = filepath.Join(dir, Kernel), filepath.Join(dir, Initrd)
	}
	return img, nil
}

// checkPart hashes one file against the manifest and returns the identity that it had meanwhile.
func checkPart(ctx context.Context, path string, p Part) (identity, error) {
	f, err := oci.OpenRegular(path)
	if err != nil {
		return identity{}, fmt.Errorf("part %s: %w", p.Name, err)
	}
	defer f.Close()
	before, err := identify(f)
	if err != nil {
		return identity{}, fmt.Errorf("part %s: %w", p.Name, err)
	}
	if before.Size != p.Size {
		return identity{}, fmt.Errorf("part %s: %d bytes, expected %d", p.Name, before.Size, p.Size)
	}
	sum, _, err := hashReader(ctx, f)
	if err != nil {
		return identity{}, fmt.Errorf("part %s: %w", p.Name, err)
	}
	if sum != p.SHA256 {
		return identity{}, fmt.Errorf("part %s: sha256 %s, expected %s", p.Name, sum, p.SHA256)
	}
	after, err := identify(f)
	if err != nil {
		return identity{}, fmt.Errorf("part %s: %w", p.Name, err)
	}
	if before != after {
		return identity{}, fmt.Errorf("part %s: changed while it was read", p.Name)
	}
	return after, nil
}

// identity is how the host's kernel tells one state of one file from another.
type identity struct {
	Dev, Ino           uint64
	Size, Mtime, Ctime int64 // bytes; nanoseconds since 1970
	known              bool  // whether the platform gives all five
}

// record is what a full hash of a part left behind. It spares the next starts that hash as long
// as device, inode, size, mtime and ctime are the same: any write, truncation, replacement or
// utimes through the file system changes ctime, which no program can set. It does not see
// a disk that returns other bytes than were written; Verify does. It lies beside the image, 0600,
// in a folder that only the user may write, and whoever can forge it can as well replace manifest
// and image together, so it takes nothing away.
type record struct {
	SHA256 string `json:"sha256"`
	Dev    uint64 `json:"dev"`
	Ino    uint64 `json:"ino"`
	Size   int64  `json:"size"`
	Mtime  int64  `json:"mtime"`
	Ctime  int64  `json:"ctime"`
}

func (s *Store) verifyPart(ctx context.Context, dir string, p Part, full bool) error {
	path := filepath.Join(dir, p.Name)
	if !full {
		f, err := oci.OpenRegular(path)
		if err != nil {
			return fmt.Errorf("part %s: %w", p.Name, err)
		}
		id, err := identify(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("part %s: %w", p.Name, err)
		}
		if id.known && readRecord(dir, p.Name) == id.record(p.SHA256) && id.Size == p.Size {
			return nil
		}
	}
	id, err := checkPart(ctx, path, p)
	if err != nil {
		return err
	}
	if id.known {
		// A record that cannot be written costs a hash at the next start, nothing else.
		_ = writeRecord(dir, p.Name, id.record(p.SHA256))
	}
	return nil
}

func (id identity) record(sum string) record {
	return record{SHA256: sum, Dev: id.Dev, Ino: id.Ino, Size: id.Size, Mtime: id.Mtime, Ctime: id.Ctime}
}

// recordOf is the file with the record of a part.
func recordOf(part string) string {
	if part == Root {
		return recordName
	}
	return part + "." + recordName
}

// readRecord returns the zero record, which matches no file, if there is none that can be read.
func readRecord(dir, part string) record {
	var r record
	b, err := readSmall(filepath.Join(dir, recordOf(part)), 4096)
	if err != nil || json.Unmarshal(b, &r) != nil {
		return record{}
	}
	return r
}

func writeRecord(dir, part string, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, recordOf(part)+".*") // 0600
	if err != nil {
		return err
	}
	_, werr := f.Write(b)
	if err := errors.Join(werr, f.Close()); err != nil {
		os.Remove(f.Name())
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, recordOf(part))); err != nil {
		os.Remove(f.Name())
		return err
	}
	return nil
}

// readSmall reads a regular file of at most limit bytes, following no link.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := oci.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	return b, nil
}

// hashReader returns the sha256 of what r holds, and its length. It stops when ctx ends.
func hashReader(ctx context.Context, r io.Reader) (string, int64, error) {
	h := sha256.New()
	buf := make([]byte, 1<<20)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return "", n, err
		}
		k, err := r.Read(buf)
		h.Write(buf[:k])
		n += int64(k)
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), n, nil
		}
		if err != nil {
			return "", n, err
		}
	}
}

// damaged says what is wrong with an image, and the command that makes it whole: a build for a built
// one, for a bundle what brought it; for a pulled one a pull, which needs no registry as long as its layers are here and whole.
func (s *Store) damaged(id string, err error) error { return s.damagedAt(s.dir(id), id, err) }

// damagedAt does the same for an image that lies in dir.
func (s *Store) damagedAt(dir, id string, err error) error {
	cure := "carrel image build " + id
	if again := s.again(dir, id); again != "" {
		cure = again
	}
	if h, ok := strings.CutPrefix(id, "sha256-"); ok && isHash(h) {
		repo := "IMAGE"
		if refs, err := s.refs(); err == nil && len(refs[digestPrefix+h]) > 0 {
			repo, _, _ = strings.Cut(refs[digestPrefix+h][0], "@")
		}
		cure = "carrel image pull " + repo + "@" + digestPrefix + h
	}
	return fmt.Errorf("image %s: %w: %w (%s makes it anew)", id, ErrDamaged, err, cure)
}
