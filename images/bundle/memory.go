package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Memory is what a host remembers of the bundles of one name: the highest version that it has taken, and
// which index that was. It lies with the state, not in the cache, which may be emptied at any time.
type Memory struct {
	Version uint64 `json:"version"`
	Digest  string `json:"digest"`
	// From is where that came from, a reference or, if Imported, a path.
	From     string `json:"from"`
	Imported bool   `json:"imported,omitempty"`
}

const maxMemory = 32 << 10 // bytes of its file: a path, mostly

func memoryPath(dir, name string) string { return filepath.Join(dir, name+".json") }

// Recall returns the zero Memory for a name that was never taken. What is there and cannot be read is an
// error: to take it for nothing would let an old version in.
func Recall(dir, name string) (Memory, error) {
	if !validName.MatchString(name) {
		return Memory{}, fmt.Errorf("%w: %.40q is no name of an image", ErrMalformed, name)
	}
	path := memoryPath(dir, name)
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return Memory{}, nil
	} else if err != nil {
		return Memory{}, fmt.Errorf("the last version of %s: %w", name, err)
	}
	var m Memory
	b, err := []byte(nil), errUnreadable
	if fi.Mode().IsRegular() && fi.Size() <= maxMemory {
		b, err = os.ReadFile(path)
	}
	if err == nil {
		err = strict(b, &m)
	}
	if err == nil && (m.Version == 0 || m.Version > MaxVersion || !validDigest.MatchString(m.Digest)) {
		err = errUnreadable
	}
	if err != nil {
		return Memory{}, fmt.Errorf("the last version of %s: %s: %w (remove it to trust the next one that comes)", name, path, err)
	}
	return m, nil
}

// Judge refuses a version below the highest, and another bundle of the same version. The very bundle that was
// the highest is none, though it was signed as an older version as well.
func (m Memory) Judge(s Statement) error {
	switch {
	case s.Digest == m.Digest:
		return nil
	case s.Version < m.Version:
		return fmt.Errorf("%w: version %d, and this host has had %d (--allow-rollback takes it all the same)", ErrRolledBack, s.Version, m.Version)
	case s.Version == m.Version:
		return fmt.Errorf("%w: another bundle of version %d, which this host has had as %s (--allow-rollback takes it all the same)", ErrRolledBack, s.Version, m.Digest)
	}
	return nil
}

// Remember notes a version that is about to be taken, on the disk when this returns. The version never falls.
func Remember(dir string, s Statement, from string, imported bool) error {
	m, err := Recall(dir, s.Name)
	if err != nil {
		return err
	}
	if s.Version <= m.Version {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("remember version %d of %s: %w", s.Version, s.Name, err)
	}
	b, err := json.Marshal(Memory{Version: s.Version, Digest: s.Digest, From: from, Imported: imported})
	if err != nil {
		return err
	}
	if err := writeWhole(memoryPath(dir, s.Name), b); err != nil {
		return fmt.Errorf("remember version %d of %s: %w", s.Version, s.Name, err)
	}
	return nil
}
