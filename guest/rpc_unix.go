//go:build !windows

package guest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/carrel-vm/carrel/guest/place"
)

// ListenPrivate listens on a unix socket that only this user may open: in a
// folder of mode 0700, of mode 0600 itself, and every peer's user is checked.
// The caller holds the lock that says nobody else listens there, so that a
// socket left by a killed process is replaced.
func ListenPrivate(path string) (net.Listener, error) { return listenPrivate("unix", path) }

// listenPrivate is ListenPrivate for a socket of another kind.
func listenPrivate(network, path string) (net.Listener, error) {
	if err := place.CheckPrivate(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket == 0 {
		return nil, fmt.Errorf("%s is in the way: it is not a socket (remove it)", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return &privateListener{ln}, nil
}

type privateListener struct{ *net.UnixListener }

// Accept drops connections of other users before a byte of them is read.
func (l *privateListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if place.CheckPeer(c) == nil {
			return c, nil
		}
		c.Close()
	}
}
