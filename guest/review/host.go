package review

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/carrel-vm/carrel/guest/share"
)

// lstat looks at the host's entry; nil: there is none. A path that leads
// through a link or a file leads to nothing.
func lstat(root *share.Root, name string) (*share.Info, error) {
	is, err := root.Lstat(name)
	switch {
	case err == nil:
		return &is, nil
	case errors.Is(err, fs.ErrNotExist) || share.IsAstray(err):
		return nil, nil
	}
	return nil, err
}

// inFolder calls do with the folder that name is in.
func inFolder(root *share.Root, name string, do func(f *share.Folder, base string) error) error {
	f, err := root.Folder(parent(name))
	if err != nil {
		return err
	}
	defer f.Close()
	return do(f, path.Base(name))
}

func readlink(root *share.Root, name string) (target string, err error) {
	err = inFolder(root, name, func(f *share.Folder, base string) error {
		target, err = f.Readlink(base)
		return err
	})
	return target, err
}

// errLarge means that a file has more bytes than are wanted.
var errLarge = errors.New("it is too large")

// readFile reads the host's regular file, of at most max bytes.
func readFile(root *share.Root, name string, max int64) (content []byte, err error) {
	err = inFolder(root, name, func(f *share.Folder, base string) error {
		h, is, err := f.Open(base)
		if err != nil {
			return err
		}
		defer h.Close()
		if is.Size > max {
			return fmt.Errorf("read %.300q: %w", name, errLarge)
		}
		// As long as it was, in one read; it may grow meanwhile.
		b := bytes.NewBuffer(make([]byte, 0, is.Size+bytes.MinRead))
		_, err = b.ReadFrom(io.NewSectionReader(h, 0, max+1))
		if err == nil && int64(b.Len()) > max {
			err = fmt.Errorf("read %.300q: %w", name, errLarge)
		}
		content = b.Bytes()
		return err
	})
	return content, err
}

// hashFile returns the SHA-256, in hex, of a host's regular file that has size
// bytes, "" if it has another size.
func hashFile(root *share.Root, name string, size int64) (sum string, err error) {
	err = inFolder(root, name, func(f *share.Folder, base string) error {
		h, is, err := f.Open(base)
		if err != nil {
			return err
		}
		defer h.Close()
		if is.Size != size {
			return nil
		}
		to := sha256.New()
		n, err := io.Copy(to, io.NewSectionReader(h, 0, size+1))
		if err == nil && n == size {
			sum = hex.EncodeToString(to.Sum(nil))
		}
		return err
	})
	return sum, err
}

const linkType = os.ModeSymlink

// perm are the bits that a guest is shown, and may change.
func perm(is *share.Info) uint32 { return uint32(is.Mode & os.ModePerm) }

// sameMode says whether a mode of the guest's is the host's, as far as this host has
// modes. What it cannot keep would be told as a change for ever.
func sameMode(mode uint32, is *share.Info) bool { return (mode^perm(is))&settable == 0 }
