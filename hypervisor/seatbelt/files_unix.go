//go:build unix

package seatbelt

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
)

// proxyListener makes a listener for the guest's proxy, to be inherited, and
// returns its port.
func proxyListener() (*os.File, uint16, error) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, 0, err
	}
	defer l.Close() // the copy goes on
	f, err := l.File()
	if err != nil {
		return nil, 0, err
	}
	return f, uint16(l.Addr().(*net.TCPAddr).Port), nil
}

// removeTree removes a folder that a guest wrote. It may have left folders that
// nobody may look into; links in it are never followed.
func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove the guest's files: %w", err)
	}
	_ = root.Chmod(".", 0o700)
	_ = fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			_ = root.Chmod(p, 0o700)
		}
		return nil
	})
	root.Close()
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the guest's files: %w", err)
	}
	return nil
}
