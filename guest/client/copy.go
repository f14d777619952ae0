package client

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/carrel-vm/carrel/guest/api"
)

// Bounds of one copy, in either direction.
const (
	maxEntries  = 1 << 20
	maxName     = 4096
	maxDepth    = 128
	copyChunk   = 256 << 10
	maxCopySize = 64 << 30 // bytes; CopyOptions.MaxBytes lifts it
)

// CopyOptions are those of Put and Get.
type CopyOptions struct {
	// User reads or writes in the guest; empty: 1000.
	User string
	// MaxBytes bounds the copy; 0: 64 GiB.
	MaxBytes int64
	// Warn is told, in one line that may quote names, what was left out.
	Warn func(string)
	// OnBytes is told how many bytes have been copied so far. May be nil.
	OnBytes func(int64)
}

func (o *CopyOptions) fill() {
	if o.MaxBytes <= 0 {
		o.MaxBytes = maxCopySize
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	if o.OnBytes == nil {
		o.OnBytes = func(int64) {}
	}
}

// checkGuestPath says what is wrong with a path of the guest.
func checkGuestPath(p string) error {
	if !strings.HasPrefix(p, "/") || len(p) > maxName || strings.ContainsRune(p, 0) {
		return &Error{Code: "bad_path", Message: fmt.Sprintf("%.200q is not an absolute path in the guest", p), Cure: "write NAME:/PATH"}
	}
	return nil
}

// cleanName says whether name can be a path beneath the copy: fs.ValidPath
// without the dot, and on Windows, where it separates, without the backslash.
func cleanName(name string) error {
	switch {
	case name == "" || len(name) > maxName:
		return errors.New("its length is impossible")
	case path.IsAbs(name) || path.Clean(name) != name || name == "." || name == ".." || strings.HasPrefix(name, "../"):
		return errors.New("it is not a clean path beneath the copy")
	case strings.IndexByte(name, 0) >= 0 || filepath.Separator != '/' && strings.ContainsRune(name, filepath.Separator):
		return errors.New("it has a NUL byte, or a separator of this system")
	case !utf8.ValidString(name):
		return errors.New("it is not UTF-8, and the API has no form for it (pack it with tar, and copy that)")
	case strings.Count(name, "/") >= maxDepth:
		return fmt.Errorf("it lies more than %d folders deep", maxDepth)
	}
	return nil
}

// linkStays says whether a symbolic link at name, with target, leads to
// something beneath the copy. Only leading ".." are allowed: one that comes
// after another component goes up from wherever that component leads, which
// may be a link itself.
func linkStays(name, target string) bool {
	if target == "" || len(target) > maxName || path.IsAbs(target) || strings.ContainsAny(target, "\x00\\:") {
		return false
	}
	depth := strings.Count(name, "/") - 1 // folders between the copy's top and the link
	if depth < 0 {
		return false // the copy is nothing but a link: it has no inside
	}
	down := false
	for _, c := range strings.Split(target, "/") {
		switch c {
		case "", ".":
		case "..":
			if depth--; down || depth < 0 {
				return false
			}
		default:
			down = true
		}
	}
	return true
}

// entryCheck follows the entries of a copy, as the keeper does.
func entryCheck(f *api.File) error {
	if err := cleanName(f.Name); err != nil {
		return err
	}
	switch {
	case f.Type == api.FileType_FILE_TYPE_UNSPECIFIED || f.Type > api.FileType_FILE_TYPE_SYMLINK || f.Type < 0:
		return errors.New("its type is unknown")
	case f.Size < 0 || f.Size > 0 && f.Type != api.FileType_FILE_TYPE_REGULAR:
		return errors.New("its size is impossible")
	}
	return nil
}
