package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	lib "modernc.org/sqlite/lib"
)

// suffixDamaged is added to the index's name for the file that says, to the next
// start, that damage was found; and begins the name of what was set aside.
const suffixDamaged = ".damaged"

// keptAside is how many damaged files are kept to be looked into.
const keptAside = 3

var errDamaged = errors.New("the index is damaged")

// damaged says whether an error means that the file is not what was written.
func damaged(err error) bool {
	switch code(err) & 0xff {
	case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB, lib.SQLITE_FORMAT:
		return true
	case lib.SQLITE_ERROR: // "no such table": a header that is sound over tables that are not
		return strings.Contains(err.Error(), "no such ") || strings.Contains(err.Error(), "malformed")
	}
	return errors.Is(err, errDamaged)
}

// leftDamaged sets the file aside if the process before found it damaged, and
// says what it found.
func leftDamaged(path string) (why string, err error) {
	b, err := os.ReadFile(path + suffixDamaged)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if err := setAside(path); err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), os.Remove(path + suffixDamaged)
}

// setAside moves a damaged index, its log with it, out of the way.
func setAside(path string) error {
	to := fmt.Sprintf("%s%s-%s", path, suffixDamaged, time.Now().UTC().Format("20060102T150405.000000000Z"))
	for _, suffix := range []string{"-wal", "-shm", ""} { // the log first: it must never meet another index
		if err := os.Rename(path+suffix, to+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set the damaged index aside: %w (move %s away yourself)", err, path+suffix)
		}
	}
	if old, _ := filepath.Glob(path + suffixDamaged + "-*Z"); len(old) > keptAside {
		for _, p := range old[:len(old)-keptAside] { // Glob sorts, and names are times
			os.Remove(p)
			os.Remove(p + "-wal")
		}
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a folder's entries durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, os.ErrInvalid) && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
