package main

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const blockSize = 1 << 20 // of read and write, in bytes

// writeFile writes size bytes in blocks, as dd bs=1M does.
func writeFile(path string, size int) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	block := make([]byte, blockSize)
	for size > 0 {
		n, err := unix.Write(fd, block[:min(size, len(block))])
		if err != nil {
			unix.Close(fd)
			return err
		}
		size -= n
	}
	return unix.Close(fd)
}

// readFile reads a file to its end and returns its size.
func readFile(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	block := make([]byte, blockSize)
	size := 0
	for {
		n, err := unix.Read(fd, block)
		if err != nil || n == 0 {
			return size, err
		}
		size += n
	}
}

// createFiles creates n files of some bytes each in a new folder.
func createFiles(dir string, n int) error {
	if err := unix.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i := range n {
		fd, err := unix.Open(fmt.Sprintf("%s/file%d", dir, i), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		if _, err := unix.Write(fd, []byte("hello world\n")); err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

// statTree lists folders and looks at every entry, as find -size does, and
// returns how many files there are.
func statTree(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 32<<10)
	files := 0
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil || n == 0 {
			return files, err
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return files, err
			}
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				files++
				continue
			}
			below, err := statTree(filepath.Join(dir, name))
			if files += below; err != nil {
				return files, err
			}
		}
	}
}
