package selftest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func exists(path string) func() (string, error) {
	return func() (string, error) {
		_, err := os.Lstat(path)
		return "", err
	}
}

func absent(path string) func() (string, error) {
	return func() (string, error) {
		if _, err := os.Lstat(path); err == nil {
			return "", fmt.Errorf("there is %s", path)
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		return "", nil
	}
}

// holds wants a file to hold one of some values.
func holds(path string, values ...string) func() (string, error) {
	return func() (string, error) {
		b, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		got := strings.TrimSpace(string(b))
		for _, v := range values {
			if got == v {
				return got, nil
			}
		}
		return "", fmt.Errorf("%s is %.40q", path, got)
	}
}

// listed wants a word in a file of words.
func listed(path, word string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, w := range strings.Fields(string(b)) {
		if w == word {
			return nil
		}
	}
	return fmt.Errorf("%s does not list %s", path, word)
}

func filesystem(name string) func() (string, error) {
	return func() (string, error) { return "", listed("/proc/filesystems", name) }
}

func noFilesystem(name string) func() (string, error) {
	return func() (string, error) {
		if listed("/proc/filesystems", name) == nil {
			return "", errors.New("/proc/filesystems lists " + name)
		}
		return "", nil
	}
}

// inMemory gives f a fresh tmpfs, and takes it away again with whatever f mounted in it.
func inMemory(f func(dir string) error) (err error) {
	dir, err := os.MkdirTemp("/dev", "selftest")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := unix.Mount("selftest", dir, "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)) }()
	return f(dir)
}

func fuse() (string, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("/dev/fuse: %w", err)
	}
	defer unix.Close(fd)
	return "", inMemory(func(dir string) error {
		// Nobody answers, and nobody asks: mounting waits for no answer.
		if err := unix.Mount("selftest", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
			return err
		}
		return unix.Unmount(dir, unix.MNT_DETACH)
	})
}

func tmpfsXattr() (string, error) {
	return "", inMemory(func(dir string) error {
		return unix.Setxattr(dir, "trusted.overlay.opaque", []byte("y"), 0)
	})
}

// overlay deletes a file of a lower folder in a layer over it.
func overlay() (string, error) {
	return "", inMemory(func(dir string) error {
		for _, d := range []string{"lower", "upper", "work", "merged"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "lower", "file"), nil, 0o644); err != nil {
			return err
		}
		merged := filepath.Join(dir, "merged")
		options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work,redirect_dir=off,metacopy=off,index=off", dir)
		if err := unix.Mount("selftest", merged, "overlay", 0, options); err != nil {
			return err
		}
		defer func() { _ = unix.Unmount(merged, unix.MNT_DETACH) }()
		if err := os.Remove(filepath.Join(merged, "file")); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, "upper", "file"), &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			return errors.New("a deleted file leaves no whiteout")
		}
		return nil
	})
}

func fileHandles() (string, error) {
	_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/proc", 0)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EOVERFLOW) {
		return "", nil // the call is there
	}
	return "", err
}

func inotify() (string, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return "", err
	}
	return "", unix.Close(fd)
}
