package wall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// lockPoll is how often a start looks whether another has unpacked the image.
const lockPoll = 50 * time.Millisecond

// Unpacked returns a folder with the files of an EROFS image, unpacked once
// for each image: ordinary users cannot mount one. The image is known by its
// inode and times, since what lies in the store was verified and never changes.
func Unpacked(ctx context.Context, cache, image string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(image, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: image, Err: err}
	}
	parent := filepath.Join(cache, "unpacked")
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", err
	}
	tree := filepath.Join(parent, fmt.Sprintf("%x-%x-%x-%x", st.Dev, st.Ino, st.Size, st.Mtim.Nano()))
	if _, err := os.Lstat(tree); err == nil {
		return tree, nil
	}
	lock := flock.New(filepath.Join(parent, "lock"))
	if _, err := lock.TryLockContext(ctx, lockPoll); err != nil {
		return "", err
	}
	defer lock.Close()
	if _, err := os.Lstat(tree); err == nil {
		return tree, nil // another guest's start did it meanwhile
	}
	half := tree + ".new"
	if err := removeTree(half); err != nil {
		return "", err
	}
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, fsck, "--extract="+half, "--preserve-perms", "--no-preserve-owner", image).CombinedOutput()
	if err != nil {
		return "", errors.Join(fmt.Errorf("fsck.erofs: %w: %.300q", err, out), removeTree(half))
	}
	return tree, os.Rename(half, tree)
}

// removeTree removes a tree in which folders may lack their owner's permissions.
func removeTree(root string) error {
	_ = filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(root)
}
