package guest

import (
	"net"
	"path/filepath"

	"github.com/carrel-vm/carrel/guest/place"
)

// ListenPrivate makes a named pipe that only this user and SYSTEM may open; its
// name is noted at path. The caller holds the lock that says nobody else listens
// there, so that a note left by a killed process is replaced.
func ListenPrivate(path string) (net.Listener, error) {
	if err := place.CheckPrivate(filepath.Dir(path)); err != nil {
		return nil, err
	}
	return place.Listen(path)
}
